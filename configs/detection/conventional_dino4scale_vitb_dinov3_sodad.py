"""DINO with four levels over DINOv3's ViT-B finetuned conventionally on SODA-D.

    python tools/train.py configs/detection/conventional_dino4scale_vitb_dinov3_sodad.py
    tools/dist_train.sh configs/detection/conventional_dino4scale_vitb_dinov3_sodad.py 8
    python tools/test.py configs/detection/conventional_dino4scale_vitb_dinov3_sodad.py CHECKPOINT

Recipe: that of conventional_dino4scale_vitb_dinov3_coco.py.
docs/detection.md says how to prepare the data.
"""

_base_ = [
    "../_base_/models/dino_4scale_vitb_dinov3.py",
    "../_base_/datasets/sodad.py",
    "../_base_/schedules/dino_vitb_12e.py",
    "../_base_/detection_runtime.py",
]

model = dict(
    _delete_=True,
    type="TiledDetector",
    detector=dict(_base_.model, bbox_head=dict(_base_.model.bbox_head, num_classes=9)),
    tile_size=800,
    overlap=150,
    scale_factor=1.5,
    # DINO gives every query a score, and low ones count for AP.
    score_threshold=0.01,
    # All that the metric may take: 1,000 of each class.
    max_detections=9 * 1000,
)

# Random weights: --cfg-options model.detector.backbone.pretrained=False
