"""VideoMAE's ViT-S finetuned on Something-Something V2 as a Dr²Net.

    python tools/train.py configs/video/dr2net_vits_ssv2.py
    tools/dist_train.sh configs/video/dr2net_vits_ssv2.py 8
    python tools/test.py configs/video/dr2net_vits_ssv2.py CHECKPOINT

Recipe: that of conventional_vits_ssv2.py, held at (7/8, 1/8), on the line α = 1 − β, throughout
(docs/evidence.md). The paper's schedule: dr2net_paper_vits_ssv2.py

Dr2NetBackbone converts where the model is built, which Dr2NetHook does in a run alone: inferencers
and tools/predict.py know no hooks.
"""

_base_ = "./conventional_vits_ssv2.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="Dr2NetBackbone",
        backbone={{_base_.model.backbone}},
        # alpha and beta are left out: β is 1/8 then, and α is 1 − β.
        # Attention weights are not materialised; False computes them as mmaction2 does.
        fused_attention=True,
    )
)

# Without arguments it holds the point, also where a checkpoint brings another, and logs it.
default_hooks = dict(coefficients=dict(type="CoefficientScheduleHook"))
