"""RetinaNet over DINOv3's ViT-B finetuned conventionally on COCO.

    python tools/train.py configs/detection/conventional_retinanet_vitb_dinov3_coco.py
    tools/dist_train.sh configs/detection/conventional_retinanet_vitb_dinov3_coco.py 8
    python tools/test.py configs/detection/conventional_retinanet_vitb_dinov3_coco.py CHECKPOINT

Recipe: RetinaNet's, of conventional_retinanet_swint_coco.py, with ViTDet's optimizer,
_base_/schedules/vitdet_b_12e.py, on 8 processes of 2 images.
"""

_base_ = [
    "../_base_/models/retinanet_vitb_dinov3.py",
    "../_base_/datasets/coco.py",
    "../_base_/schedules/vitdet_b_12e.py",
    "../_base_/detection_runtime.py",
]

# Random weights instead of the pretrained ones: --cfg-options model.backbone.pretrained=False
