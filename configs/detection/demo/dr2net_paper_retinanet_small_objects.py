"""Finetune the demo's tiny Swin detector as a Dr²Net, the paper's way.

    make demo-detection  # once, for the images and the pretrained weights
    python tools/train.py configs/detection/demo/dr2net_paper_retinanet_small_objects.py

Recipe: that of conventional_retinanet_small_objects.py.
"""

_base_ = "./conventional_retinanet_small_objects.py"

model = dict(detector=dict(backbone=dict(alpha=1.0, beta=0.1, arithmetic="exact")))

# Over the first 10 of 50 iterations.
default_hooks = dict(
    coefficients=dict(
        type="CoefficientScheduleHook",
        alpha=(1.0, 0.0),
        beta=(0.1, 1.0),
        begin=0,
        end=10,
        by_epoch=False,
        order="alternate",
    )
)
