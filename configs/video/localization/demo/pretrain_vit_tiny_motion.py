"""Pretrain the localization demo's tiny ViT on clips; "make demo-localization" runs it.

    python tools/demos/motion_videos.py data/motion_videos
    python tools/train.py configs/video/localization/demo/pretrain_vit_tiny_motion.py

Recipe: that of configs/video/demo/pretrain_vit_tiny_motion.py, on clips of eight of its twelve
motions, at a lower rate: at 1.5e-3 the loss stayed on a plateau in one of four trials.
"""

_base_ = "../../demo/pretrain_vit_tiny_motion.py"

model = dict(cls_head=dict(num_classes=8))
clips = dict(data_root="data/motion_videos/pretrain", num_classes=8)
train_dataloader = dict(dataset=clips)
val_dataloader = dict(dataset=clips)
test_dataloader = dict(dataset=clips)

train_cfg = dict(max_epochs=8, val_begin=2, val_interval=3)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
