"""DINO with five feature levels over Swin-S finetuned on COCO as a Dr²Net, the paper's way.

    python tools/train.py configs/detection/dr2net_paper_dino5scale_swins_coco.py
    tools/dist_train.sh configs/detection/dr2net_paper_dino5scale_swins_coco.py 8
    python tools/test.py configs/detection/dr2net_paper_dino5scale_swins_coco.py CHECKPOINT

Recipe: that of conventional_dino5scale_swins_coco.py; coefficients as in
dr2net_paper_dino5scale_swint_coco.py.
"""

_base_ = "./dr2net_paper_dino5scale_swint_coco.py"

model = dict(
    backbone=dict(
        backbone=dict(
            depths=[2, 2, 18, 2],
            init_cfg=dict(
                checkpoint="https://github.com/SwinTransformer/storage/releases/download/v1.0.0/"
                "swin_small_patch4_window7_224.pth"
            ),
        )
    ),
)
