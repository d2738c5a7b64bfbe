"""Finetune the demo's tiny PointViT with activation checkpointing.

    make demo-pointcloud  # once, for the rooms and the pretrained weights
    python tools/train.py configs/pointcloud/demo/checkpointed_point_vit_tiny_rooms.py

Recipe: that of conventional_point_vit_tiny_rooms.py; each block of the backbone is computed
again in backward, and losses and weights are the same, bit for bit.
"""

_base_ = "./conventional_point_vit_tiny_rooms.py"

model = dict(segmentor=dict(backbone=dict(checkpointed=True)))
