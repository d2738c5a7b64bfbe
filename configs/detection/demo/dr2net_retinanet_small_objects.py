"""Finetune the demo's tiny Swin detector as a Dr²Net with (α, β) held near the pretrained one.

    make demo-detection  # once, for the images and the pretrained weights
    python tools/train.py configs/detection/demo/dr2net_retinanet_small_objects.py

Recipe: that of conventional_retinanet_small_objects.py, with (α, β) at (7/8, 1/8)
throughout, on the line α = 1 − β.
"""

_base_ = "./conventional_retinanet_small_objects.py"

model = dict(detector=dict(backbone=dict(alpha=7 / 8, beta=1 / 8)))

# Without arguments it holds the point, also where a checkpoint brings another, and logs it.
default_hooks = dict(coefficients=dict(type="CoefficientScheduleHook"))
