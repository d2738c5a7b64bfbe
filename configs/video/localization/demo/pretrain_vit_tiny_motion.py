"""Pretrain the localization demo's tiny ViT on clips; "make demo-localization" runs it.

    python tools/demos/motion_videos.py data/motion_videos
    python tools/train.py configs/video/localization/demo/pretrain_vit_tiny_motion.py

Recipe: that of configs/video/demo/pretrain_vit_tiny_motion.py, on clips of eight of its twelve
motions.
"""

_base_ = "../../demo/pretrain_vit_tiny_motion.py"

model = dict(cls_head=dict(num_classes=8))
clips = dict(data_root="data/motion_videos/pretrain", num_classes=8)
train_dataloader = dict(dataset=clips)
val_dataloader = dict(dataset=clips)
test_dataloader = dict(dataset=clips)
