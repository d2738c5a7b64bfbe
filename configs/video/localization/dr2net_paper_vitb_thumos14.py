"""ActionFormer over VideoMAE's ViT-B trained end to end on THUMOS14 as a Dr²Net, the paper's way.

    python tools/train.py configs/video/localization/dr2net_paper_vitb_thumos14.py
    tools/dist_train.sh configs/video/localization/dr2net_paper_vitb_thumos14.py 2
    python tools/test.py configs/video/localization/dr2net_paper_vitb_thumos14.py CHECKPOINT

Recipe: that of conventional_vitb_thumos14.py, with the coefficients of Dr²Net (arXiv 2401.04105)
moving from the pretrained network to a reversible one over the first 20 epochs, a third of the run.
"""

_base_ = "./conventional_vitb_thumos14.py"

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
