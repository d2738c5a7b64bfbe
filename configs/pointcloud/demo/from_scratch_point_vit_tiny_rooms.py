"""Train the demo's tiny PointViT from random weights: what pretraining is worth.

    make demo-pointcloud  # once, for the rooms and the pretrained weights
    python tools/train.py configs/pointcloud/demo/from_scratch_point_vit_tiny_rooms.py

Recipe: that of conventional_point_vit_tiny_rooms.py, at the learning rate of pretraining.
"""

_base_ = "./conventional_point_vit_tiny_rooms.py"

load_from = None
optim_wrapper = dict(optimizer=dict(lr=2e-3))
