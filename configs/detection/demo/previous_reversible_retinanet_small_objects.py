"""Finetune the demo's tiny Swin detector as earlier methods do: (0, 1) from the first step.

    make demo-detection  # once, for the images and the pretrained weights
    python tools/train.py configs/detection/demo/previous_reversible_retinanet_small_objects.py

Recipe: that of conventional_retinanet_small_objects.py.
"""

_base_ = "./conventional_retinanet_small_objects.py"

model = dict(detector=dict(backbone=dict(alpha=0.0, beta=1.0, arithmetic="float")))
