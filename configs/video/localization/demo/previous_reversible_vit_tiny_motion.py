"""Train the demo's tiny localizer as earlier methods do: reversible, (0, 1), from the first step.

    make demo-localization  # once, for the videos and the pretrained weights
    python tools/train.py configs/video/localization/demo/previous_reversible_vit_tiny_motion.py

Recipe: that of conventional_vit_tiny_motion.py.
"""

_base_ = "./conventional_vit_tiny_motion.py"

model = dict(backbone=dict(alpha=0.0, beta=1.0, arithmetic="float"))
