"""Train the demo's tiny ViT from random weights: what pretraining is worth.

    make demo  # once, for the clips and the pretrained weights
    python tools/train.py configs/video/demo/from_scratch_vit_tiny_motion.py

Recipe: that of conventional_vit_tiny_motion.py.
"""

_base_ = "./conventional_vit_tiny_motion.py"

load_from = None
