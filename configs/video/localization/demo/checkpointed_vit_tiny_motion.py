"""Train the demo's tiny localizer with activation checkpointing.

    make demo-localization  # once, for the videos and the pretrained weights
    python tools/train.py configs/video/localization/demo/checkpointed_vit_tiny_motion.py

Recipe: that of conventional_vit_tiny_motion.py; each block of the backbone is computed again in
backward, and losses and weights are the same, bit for bit.
"""

_base_ = "./conventional_vit_tiny_motion.py"

model = dict(backbone=dict(checkpointed=True))
