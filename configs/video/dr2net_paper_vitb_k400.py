"""VideoMAE's ViT-B finetuned on Kinetics-400 as a Dr²Net, the paper's way.

    python tools/train.py configs/video/dr2net_paper_vitb_k400.py
    tools/dist_train.sh configs/video/dr2net_paper_vitb_k400.py 8
    python tools/test.py configs/video/dr2net_paper_vitb_k400.py CHECKPOINT

Recipe: that of conventional_vitb_k400.py (VideoMAE's), with the coefficients of Dr²Net (arXiv
2401.04105) moving from the pretrained network to a reversible one over the first 20 epochs.
"""

_base_ = "./conventional_vitb_k400.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="Dr2NetBackbone",
        backbone={{_base_.model.backbone}},
        # Where the schedule below starts; (1, 0) is the pretrained network itself.
        alpha=1.0,
        beta=0.1,
        # "exact": activations are rebuilt bit for bit, a few bits an element are kept.
        # "float": nothing is kept, but gradients are trustworthy at the end of the schedule only.
        arithmetic="exact",
        # Attention weights are not materialised; False computes them as mmaction2 does.
        fused_attention=True,
    )
)

default_hooks = dict(
    coefficients=dict(
        type="CoefficientScheduleHook",
        alpha=(1.0, 0.0),
        beta=(0.1, 1.0),
        begin=0,
        end=20,
        by_epoch=True,
        order="alternate",
    )
)
