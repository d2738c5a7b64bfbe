"""DINO with five feature levels over Swin-L finetuned conventionally on COCO.

    python tools/train.py configs/detection/conventional_dino5scale_swinl_coco.py
    tools/dist_train.sh configs/detection/conventional_dino5scale_swinl_coco.py 8
    python tools/test.py configs/detection/conventional_dino5scale_swinl_coco.py CHECKPOINT

Recipe: configs/dino/dino-5scale_swin-l_8xb2-12e_coco.py of
https://github.com/open-mmlab/mmdetection, on 8 processes of 2 images; 57.2 AP there, with with_cp.
"""

_base_ = "./conventional_dino5scale_swint_coco.py"

model = dict(
    backbone=dict(
        pretrain_img_size=384,
        embed_dims=192,
        depths=[2, 2, 18, 2],
        num_heads=[6, 12, 24, 48],
        window_size=12,
        init_cfg=dict(
            checkpoint="https://github.com/SwinTransformer/storage/releases/download/v1.0.0/"
            "swin_large_patch4_window12_384_22k.pth"
        ),
    ),
    neck=dict(in_channels=[192, 384, 768, 1536]),
)
