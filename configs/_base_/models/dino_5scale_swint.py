"""DINO with five feature levels over Swin-T: the finest has a quarter of the image's sides.

Values: configs/dino/dino-5scale_swin-l_8xb2-12e_coco.py of
https://github.com/open-mmlab/mmdetection.
"""

_base_ = "./dino_4scale_swint.py"

model = dict(
    num_feature_levels=5,
    backbone=dict(out_indices=(0, 1, 2, 3)),
    neck=dict(in_channels=[96, 192, 384, 768], num_outs=5),
    encoder=dict(layer_cfg=dict(self_attn_cfg=dict(num_levels=5))),
    decoder=dict(layer_cfg=dict(cross_attn_cfg=dict(num_levels=5))),
)
