"""RetinaNet over DINOv3's ViT-B finetuned on COCO with activation checkpointing.

    python tools/train.py configs/detection/checkpointed_retinanet_vitb_dinov3_coco.py
    tools/dist_train.sh configs/detection/checkpointed_retinanet_vitb_dinov3_coco.py 8
    python tools/test.py configs/detection/checkpointed_retinanet_vitb_dinov3_coco.py CHECKPOINT

Recipe: that of conventional_retinanet_vitb_dinov3_coco.py; each block of the
backbone is computed again in backward.
"""

_base_ = "./conventional_retinanet_vitb_dinov3_coco.py"

model = dict(backbone=dict(with_cp=True))
