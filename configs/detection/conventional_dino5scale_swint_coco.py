"""DINO with five feature levels over Swin-T finetuned conventionally on COCO.

    python tools/train.py configs/detection/conventional_dino5scale_swint_coco.py
    tools/dist_train.sh configs/detection/conventional_dino5scale_swint_coco.py 8
    python tools/test.py configs/detection/conventional_dino5scale_swint_coco.py CHECKPOINT

Recipe: configs/dino/dino-4scale_r50_8xb2-12e_coco.py of
https://github.com/open-mmlab/mmdetection, on 8 processes of 2 images, with the Swin-T of its
configs/swin/.
"""

_base_ = [
    "../_base_/models/dino_5scale_swint.py",
    "../_base_/datasets/coco_detr.py",
    "../_base_/schedules/dino_12e.py",
    "../_base_/detection_runtime.py",
]

# Random weights instead of the pretrained file: --cfg-options model.backbone.init_cfg=None
