"""Finetune the demo's tiny PointViT as earlier methods do: reversible, (0, 1), from the first step.

    make demo-pointcloud  # once, for the rooms and the pretrained weights
    python tools/train.py configs/pointcloud/demo/previous_reversible_point_vit_tiny_rooms.py

Recipe: that of conventional_point_vit_tiny_rooms.py.
"""

_base_ = "./conventional_point_vit_tiny_rooms.py"

model = dict(segmentor=dict(backbone=dict(alpha=0.0, beta=1.0, arithmetic="float")))
