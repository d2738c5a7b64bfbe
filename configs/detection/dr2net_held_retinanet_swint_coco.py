"""RetinaNet over Swin-T finetuned on COCO as a Dr²Net with (α, β) held.

    python tools/train.py configs/detection/dr2net_held_retinanet_swint_coco.py
    tools/dist_train.sh configs/detection/dr2net_held_retinanet_swint_coco.py 8
    python tools/test.py configs/detection/dr2net_held_retinanet_swint_coco.py CHECKPOINT

Recipe: that of conventional_retinanet_swint_coco.py, with (α, β) at (7/8, 1/8), on the line
α = 1 − β near the pretrained network, throughout. The paper's schedule:
dr2net_retinanet_swint_coco.py
"""

_base_ = "./conventional_retinanet_swint_coco.py"

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
