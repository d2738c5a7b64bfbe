"""DINO with four levels over DINOv2's ViT-B finetuned on COCO with activation checkpointing.

    python tools/train.py configs/detection/checkpointed_dino4scale_vitb_dinov2_coco.py
    tools/dist_train.sh configs/detection/checkpointed_dino4scale_vitb_dinov2_coco.py 8
    python tools/test.py configs/detection/checkpointed_dino4scale_vitb_dinov2_coco.py CHECKPOINT

Recipe: that of conventional_dino4scale_vitb_dinov2_coco.py; each block of the
backbone is computed again in backward.
"""

_base_ = "./conventional_dino4scale_vitb_dinov2_coco.py"

model = dict(backbone=dict(with_cp=True))
