"""Finetune the demo's tiny ViT conventionally on clips of brighter ground.

    make demo  # once, for the clips and the pretrained weights
    python tools/train.py configs/video/demo/conventional_vit_tiny_motion.py

Recipe: that of pretrain_vit_tiny_motion.py, with VideoMAE's layer-wise decay.
"""

_base_ = "./pretrain_vit_tiny_motion.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="Dr2NetBackbone",
        backbone={{_base_.model.backbone}},
        # The network itself, with the attention that its reversible siblings use.
        alpha=1.0,
        beta=0.0,
        fused_attention=True,
    )
)

train_dataloader = dict(dataset=dict(data_root="data/motion/finetune"))
val_dataloader = dict(dataset=dict(data_root="data/motion/finetune"))
test_dataloader = dict(dataset=dict(data_root="data/motion/finetune"))

train_cfg = dict(max_epochs=5, val_interval=2)
optim_wrapper = dict(optimizer=dict(lr=2e-3), paramwise_cfg=dict(decay_rate=0.75))

# What "make demo" keeps of the pretrained network: all of it.
load_from = "work_dirs/demo_video/runs/pretrained.pth"
