"""DINO with four levels over DINOv3's ViT-B finetuned conventionally on AI-TOD-v2.

    python tools/train.py configs/detection/conventional_dino4scale_vitb_dinov3_aitod.py
    tools/dist_train.sh configs/detection/conventional_dino4scale_vitb_dinov3_aitod.py 8
    python tools/test.py configs/detection/conventional_dino4scale_vitb_dinov3_aitod.py CHECKPOINT

Recipe: that of conventional_dino4scale_vitb_dinov3_coco.py.
docs/detection.md says how to prepare the data.
"""

_base_ = [
    "../_base_/models/dino_4scale_vitb_dinov3.py",
    "../_base_/datasets/aitod.py",
    "../_base_/schedules/dino_vitb_12e.py",
    "../_base_/detection_runtime.py",
]

# As many queries and detections as the metric takes.
model = dict(num_queries=1500, bbox_head=dict(num_classes=8), test_cfg=dict(max_per_img=1500))

# Random weights instead of the pretrained ones: --cfg-options model.backbone.pretrained=False
