"""DINO with four feature levels over DINOv3's ViT-B/16 and ViTDet's simple feature pyramid.

Values: dino_4scale_swint.py for DINO; projects/ViTDet/configs/COCO/mask_rcnn_vitdet_b_100ep.py of
https://github.com/facebookresearch/detectron2 for stochastic depth.
"""

_base_ = "./dino_4scale_swint.py"

model = dict(
    # Whole patches, and levels up to a stride of 32 that cover the image exactly.
    data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(
        _delete_=True,
        type="TimmViT",
        name="vit_base_patch16_dinov3.lvd1689m",
        # timm's file of this name; a path for a file of one's own, False for random weights.
        pretrained=True,
        with_cp=False,
        drop_path_rate=0.1,
    ),
    # Strides 8, 16, 32 and 64.
    neck=dict(
        _delete_=True, type="SimpleFeaturePyramid", in_channels=768, scales=(2, 1, 0.5, 0.25)
    ),
)
