"""Train the demo's tiny localizer on the features of the pretrained backbone, which stays as it is.

    make demo-localization  # once, for the videos and the pretrained weights
    python tools/train.py configs/video/localization/demo/frozen_features_vit_tiny_motion.py

Recipe: that of conventional_vit_tiny_motion.py; what people do where activations do not fit.
"""

_base_ = "./conventional_vit_tiny_motion.py"

model = dict(frozen_backbone=True)
