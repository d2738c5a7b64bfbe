"""DINO with five feature levels over Swin-B finetuned on COCO as a Dr²Net.

    python tools/train.py configs/detection/dr2net_dino5scale_swinb_coco.py
    tools/dist_train.sh configs/detection/dr2net_dino5scale_swinb_coco.py 8
    python tools/test.py configs/detection/dr2net_dino5scale_swinb_coco.py CHECKPOINT

Recipe: that of conventional_dino5scale_swinb_coco.py, held at (7/8, 1/8), on the line α = 1 − β,
throughout (docs/evidence.md). The paper's schedule: dr2net_paper_dino5scale_swinb_coco.py

Dr2NetBackbone converts where the model is built, which Dr2NetHook does in a run alone: inferencers
and tools/predict.py know no hooks.
"""

_base_ = "./conventional_dino5scale_swinb_coco.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="Dr2NetBackbone",
        backbone={{_base_.model.backbone}},
        # alpha and beta are left out: β is 1/8 then, and α is 1 − β.
    )
)

# Without arguments it holds the point, also where a checkpoint brings another, and logs it.
default_hooks = dict(coefficients=dict(type="CoefficientScheduleHook"))
