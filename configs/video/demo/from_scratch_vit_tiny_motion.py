"""Train the demo's tiny ViT from random weights: what pretraining is worth.

    make demo  # once, for the clips and the pretrained weights
    python tools/train.py configs/video/demo/from_scratch_vit_tiny_motion.py

Recipe: that of conventional_vit_tiny_motion.py, at the learning rates of pretraining.
"""

_base_ = "./conventional_vit_tiny_motion.py"

load_from = None
# As in pretraining: from random weights every layer learns at the same rate.
optim_wrapper = dict(optimizer=dict(lr=1e-3), paramwise_cfg=dict(decay_rate=1.0))
