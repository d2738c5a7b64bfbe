"""DINO with four levels over DINOv3's ViT-B finetuned conventionally on COCO.

    python tools/train.py configs/detection/conventional_dino4scale_vitb_dinov3_coco.py
    tools/dist_train.sh configs/detection/conventional_dino4scale_vitb_dinov3_coco.py 8
    python tools/test.py configs/detection/conventional_dino4scale_vitb_dinov3_coco.py CHECKPOINT

Recipe: DINO's, of conventional_dino4scale_swint_coco.py, and ViTDet's for the backbone,
put together in _base_/schedules/dino_vitb_12e.py, on 8 processes of 2 images.
"""

_base_ = [
    "../_base_/models/dino_4scale_vitb_dinov3.py",
    "../_base_/datasets/coco_detr.py",
    "../_base_/schedules/dino_vitb_12e.py",
    "../_base_/detection_runtime.py",
]

# Random weights instead of the pretrained ones: --cfg-options model.backbone.pretrained=False
