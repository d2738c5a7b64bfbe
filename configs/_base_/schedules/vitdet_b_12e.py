"""ViTDet's AdamW for ViT-B in mmdetection's schedule "1x", for detectors with anchors.

Values: projects/ViTDet/configs/COCO/mask_rcnn_vitdet_b_100ep.py and configs/common/optim.py of
https://github.com/facebookresearch/detectron2 (rate, weight decay, warm-up), sgd_12e.py (epochs).
The rate is for 16 images here, where mmdetection's transformers have it, and for 64 there.
"""

_base_ = "./dino_vitb_12e.py"

optim_wrapper = dict(optimizer=dict(weight_decay=0.1), clip_grad=None)

param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=250),
    dict(type="MultiStepLR", begin=0, end=12, by_epoch=True, milestones=[8, 11], gamma=0.1),
]
