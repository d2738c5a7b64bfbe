"""Finetune the demo's tiny ViT as a Dr²Net, the paper's way.

    make demo  # once, for the clips and the pretrained weights
    python tools/train.py configs/video/demo/dr2net_paper_vit_tiny_motion.py

Recipe: that of conventional_vit_tiny_motion.py.
"""

_base_ = "./conventional_vit_tiny_motion.py"

model = dict(backbone=dict(alpha=1.0, beta=0.1, arithmetic="exact"))

# The hook of the K400 config, by iteration: over the first half of the training.
default_hooks = dict(
    coefficients=dict(
        type="CoefficientScheduleHook",
        alpha=(1.0, 0.0),
        beta=(0.1, 1.0),
        begin=0,
        end=17,
        by_epoch=False,
        order="alternate",
    )
)
