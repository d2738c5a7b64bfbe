"""Train the demo's tiny localizer end to end as a Dr²Net held near the pretrained network.

    make demo-localization  # once, for the videos and the pretrained weights
    python tools/train.py configs/video/localization/demo/dr2net_vit_tiny_motion.py

Recipe: that of conventional_vit_tiny_motion.py, with (α, β) at (7/8, 1/8) throughout, on the line
α = 1 − β.
"""

_base_ = "./conventional_vit_tiny_motion.py"

model = dict(backbone=dict(alpha=7 / 8, beta=1 / 8))

# Without arguments it holds the point, also where a checkpoint brings another, and logs it.
default_hooks = dict(coefficients=dict(type="CoefficientScheduleHook"))
