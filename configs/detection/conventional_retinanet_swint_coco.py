"""RetinaNet over Swin-T finetuned conventionally on COCO: quicker to train than DINO.

    python tools/train.py configs/detection/conventional_retinanet_swint_coco.py
    tools/dist_train.sh configs/detection/conventional_retinanet_swint_coco.py 8
    python tools/test.py configs/detection/conventional_retinanet_swint_coco.py CHECKPOINT

Recipe: configs/swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py of
https://github.com/open-mmlab/mmdetection, on 8 processes of 2 images.
"""

_base_ = [
    "../_base_/models/retinanet_swint.py",
    "../_base_/datasets/coco.py",
    "../_base_/schedules/sgd_12e.py",
    "../_base_/detection_runtime.py",
]

optim_wrapper = dict(optimizer=dict(lr=0.01))

# Random weights instead of the pretrained file: --cfg-options model.backbone.init_cfg=None
