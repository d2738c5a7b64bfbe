"""DINO with four feature levels over Swin-L finetuned on COCO as a Dr²Net, the paper's way.

    python tools/train.py configs/detection/dr2net_paper_dino4scale_swinl_coco.py
    tools/dist_train.sh configs/detection/dr2net_paper_dino4scale_swinl_coco.py 8
    python tools/test.py configs/detection/dr2net_paper_dino4scale_swinl_coco.py CHECKPOINT

Recipe: that of conventional_dino4scale_swinl_coco.py; coefficients as in
dr2net_paper_dino4scale_swint_coco.py.
"""

_base_ = "./dr2net_paper_dino4scale_swint_coco.py"

model = dict(
    backbone=dict(
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
        )
    ),
    neck=dict(in_channels=[384, 768, 1536]),
)
