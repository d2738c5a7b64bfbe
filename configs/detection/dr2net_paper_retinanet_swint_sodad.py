"""RetinaNet over Swin-T finetuned on SODA-D as a Dr²Net, the paper's way.

    python tools/train.py configs/detection/dr2net_paper_retinanet_swint_sodad.py
    tools/dist_train.sh configs/detection/dr2net_paper_retinanet_swint_sodad.py 8
    python tools/test.py configs/detection/dr2net_paper_retinanet_swint_sodad.py CHECKPOINT

Recipe: that of conventional_retinanet_swint_sodad.py, with the coefficients of Dr²Net
(arXiv 2401.04105) moving from the pretrained network to a reversible one over a third of the run.
"""

_base_ = "./conventional_retinanet_swint_sodad.py"

model = dict(
    detector=dict(
        backbone=dict(
            _delete_=True,
            type="Dr2NetBackbone",
            backbone={{_base_.model.detector.backbone}},
            # Where the schedule below starts; (1, 0) is the pretrained network itself.
            alpha=1.0,
            beta=0.1,
            # "exact": activations are rebuilt bit for bit, a few bits an element are kept.
            # "float": nothing is kept, but gradients are trustworthy at the schedule's end only.
            arithmetic="exact",
        )
    )
)

# By iteration, because twelve epochs are too few steps.
default_hooks = dict(
    coefficients=dict(
        type="CoefficientScheduleHook",
        alpha=(1.0, 0.0),
        beta=(0.1, 1.0),
        share=1 / 3,
        by_epoch=False,
        order="alternate",
    )
)
