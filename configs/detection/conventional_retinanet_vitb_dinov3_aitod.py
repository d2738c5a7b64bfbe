"""RetinaNet over DINOv3's ViT-B finetuned conventionally on AI-TOD-v2.

    python tools/train.py configs/detection/conventional_retinanet_vitb_dinov3_aitod.py
    tools/dist_train.sh configs/detection/conventional_retinanet_vitb_dinov3_aitod.py 8
    python tools/test.py configs/detection/conventional_retinanet_vitb_dinov3_aitod.py CHECKPOINT

Recipe: that of conventional_retinanet_vitb_dinov3_coco.py.
docs/detection.md says how to prepare the data.
"""

_base_ = [
    "../_base_/models/retinanet_vitb_dinov3.py",
    "../_base_/datasets/aitod.py",
    "../_base_/schedules/vitdet_b_12e.py",
    "../_base_/detection_runtime.py",
]

model = dict(
    bbox_head=dict(
        num_classes=8,
        # From 16 pixels on instead of 32.
        anchor_generator=dict(octave_base_scale=2),
    ),
    # As many detections as the metric takes.
    test_cfg=dict(nms_pre=3000, max_per_img=1500),
)

# Random weights instead of the pretrained ones: --cfg-options model.backbone.pretrained=False
