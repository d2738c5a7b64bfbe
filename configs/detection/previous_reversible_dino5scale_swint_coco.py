"""DINO with five feature levels over Swin-T finetuned on COCO as earlier reversible methods do.

    python tools/train.py configs/detection/previous_reversible_dino5scale_swint_coco.py
    tools/dist_train.sh configs/detection/previous_reversible_dino5scale_swint_coco.py 8
    python tools/test.py configs/detection/previous_reversible_dino5scale_swint_coco.py CHECKPOINT

Recipe: that of conventional_dino5scale_swint_coco.py; the backbone is
reversible, (0, 1), from the first step.
"""

_base_ = "./conventional_dino5scale_swint_coco.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="Dr2NetBackbone",
        backbone={{_base_.model.backbone}},
        alpha=0.0,
        beta=1.0,
        arithmetic="float",
    )
)
