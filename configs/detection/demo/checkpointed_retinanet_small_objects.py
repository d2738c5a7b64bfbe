"""Finetune the demo's tiny Swin detector with activation checkpointing.

    make demo-detection  # once, for the images and the pretrained weights
    python tools/train.py configs/detection/demo/checkpointed_retinanet_small_objects.py

Recipe: that of conventional_retinanet_small_objects.py; each block of the backbone is computed
again in backward, and losses and weights are the same, bit for bit.
"""

_base_ = "./conventional_retinanet_small_objects.py"

model = dict(detector=dict(backbone=dict(checkpointed=True)))
