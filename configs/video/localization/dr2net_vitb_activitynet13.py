"""ActionFormer over VideoMAE's ViT-B trained end to end on ActivityNet-1.3 as a Dr²Net.

    python tools/train.py configs/video/localization/dr2net_vitb_activitynet13.py
    tools/dist_train.sh configs/video/localization/dr2net_vitb_activitynet13.py 4
    python tools/test.py configs/video/localization/dr2net_vitb_activitynet13.py CHECKPOINT

Recipe: that of conventional_vitb_activitynet13.py, held at (7/8, 1/8), on the line α = 1 − β,
throughout (docs/evidence.md).

Dr2NetBackbone converts where the model is built, which Dr2NetHook does in a run alone: inferencers
and tools/predict.py know no hooks.
"""

_base_ = "./conventional_vitb_activitynet13.py"

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
