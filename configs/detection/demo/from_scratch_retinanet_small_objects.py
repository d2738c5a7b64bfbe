"""Train the demo's tiny Swin detector from random weights: what pretraining is worth.

    make demo-detection  # once, for the images and the pretrained weights
    python tools/train.py configs/detection/demo/from_scratch_retinanet_small_objects.py

Recipe: that of conventional_retinanet_small_objects.py, at the learning rate of pretraining.
"""

_base_ = "./conventional_retinanet_small_objects.py"

load_from = None
optim_wrapper = dict(optimizer=dict(lr=2e-3))
