"""Finetune the demo's tiny PointViT as a Dr²Net, the paper's way.

    make demo-pointcloud  # once, for the rooms and the pretrained weights
    python tools/train.py configs/pointcloud/demo/dr2net_paper_point_vit_tiny_rooms.py

Recipe: that of conventional_point_vit_tiny_rooms.py.
"""

_base_ = "./conventional_point_vit_tiny_rooms.py"

model = dict(segmentor=dict(backbone=dict(alpha=1.0, beta=0.1, arithmetic="exact")))

# Over the first half of the training.
default_hooks = dict(
    coefficients=dict(
        type="CoefficientScheduleHook",
        alpha=(1.0, 0.0),
        beta=(0.1, 1.0),
        begin=0,
        end=16,
        by_epoch=False,
        order="alternate",
    )
)
