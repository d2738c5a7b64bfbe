"""DINO with four feature levels over Swin-T finetuned conventionally on VisDrone-DET.

    python tools/train.py configs/detection/conventional_dino4scale_swint_visdrone.py
    tools/dist_train.sh configs/detection/conventional_dino4scale_swint_visdrone.py 8
    python tools/test.py configs/detection/conventional_dino4scale_swint_visdrone.py CHECKPOINT

Recipe: that of conventional_dino4scale_swint_coco.py.
docs/detection.md says how to prepare the data.
"""

_base_ = [
    "../_base_/models/dino_4scale_swint.py",
    "../_base_/datasets/visdrone.py",
    "../_base_/schedules/dino_12e.py",
    "../_base_/detection_runtime.py",
]

# As many detections as the metric takes.
model = dict(bbox_head=dict(num_classes=10), test_cfg=dict(max_per_img=500))

# Random weights instead of the pretrained file: --cfg-options model.backbone.init_cfg=None
