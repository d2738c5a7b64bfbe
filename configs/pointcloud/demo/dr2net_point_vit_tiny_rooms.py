"""Finetune the demo's tiny PointViT as a Dr²Net with (α, β) held near the pretrained one.

    make demo-pointcloud  # once, for the rooms and the pretrained weights
    python tools/train.py configs/pointcloud/demo/dr2net_point_vit_tiny_rooms.py

Recipe: that of conventional_point_vit_tiny_rooms.py, with (α, β) at (7/8, 1/8)
throughout, on the line α = 1 − β.
"""

_base_ = "./conventional_point_vit_tiny_rooms.py"

model = dict(segmentor=dict(backbone=dict(alpha=7 / 8, beta=1 / 8)))

# Without arguments it holds the point, also where a checkpoint brings another, and logs it.
default_hooks = dict(coefficients=dict(type="CoefficientScheduleHook"))
