"""Pretrain a tiny ViT conventionally on clips of dark ground; "make demo" runs it.

    python tools/demos/motion_clips.py data/motion
    python tools/train.py configs/video/demo/pretrain_vit_tiny_motion.py

The K400 recipe on clips of 32 × 32 pixels, without the regularisation that 240 thousand videos need
(RandAugment, random erasing, mixup, label smoothing, stochastic depth), and without the flip, which
would change the class.
"""

_base_ = [
    "../../_base_/models/videomae_vitb.py",
    "../../_base_/datasets/kinetics400.py",
    "../../_base_/schedules/videomae_finetune_75e.py",
    "../../_base_/default_runtime.py",
]

model = dict(
    backbone=dict(
        img_size=32,
        patch_size=8,
        embed_dims=96,
        depth=12,
        num_heads=4,
        num_frames=8,
        drop_path_rate=0.0,
    ),
    cls_head=dict(num_classes=12, in_channels=96, init_std=0.02, label_smooth_eps=0.0),
    data_preprocessor=dict(blending=None),
)

# Every second of 16 frames.
frames = dict(type="SampleFrames", clip_len=8, frame_interval=2, num_clips=1)
train_dataset = dict(
    data_root="data/motion/pretrain",
    ann_file="train_list_videos.txt",
    num_classes=12,
    num_repeats=1,
    pipeline=[
        dict(type="DecordOpen"),
        frames,
        dict(type="DecordDecode"),
        dict(type="RandomResizedCrop", area_range=(0.6, 1.0), aspect_ratio_range=(4 / 5, 5 / 4)),
        dict(type="Resize", scale=(32, 32), keep_ratio=False),
        dict(type="FormatShape", input_format="NCTHW"),
        dict(type="PackActionInputs"),
    ],
)
val_dataset = dict(
    data_root="data/motion/pretrain",
    ann_file="val_list_videos.txt",
    num_classes=12,
    pipeline=[
        dict(type="DecordOpen"),
        dict(frames, test_mode=True),
        dict(type="DecordDecode"),
        dict(type="Resize", scale=(-1, 36)),
        dict(type="CenterCrop", crop_size=32),
        dict(type="FormatShape", input_format="NCTHW"),
        dict(type="PackActionInputs"),
    ],
)
# Decoding costs less than handing the clips over from another process.
in_process = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(
    in_process, batch_size=16, collate_fn=dict(type="pseudo_collate"), dataset=train_dataset
)
val_dataloader = dict(in_process, batch_size=64, dataset=val_dataset)
test_dataloader = dict(in_process, batch_size=64, dataset=val_dataset)

train_cfg = dict(max_epochs=8, val_begin=1, val_interval=3)
optim_wrapper = dict(
    # At 1.5e-3 one of four trials on the clips of the localization demo stayed on the plateau that
    # losses begin on.
    optimizer=dict(lr=1e-3),
    # From random weights every layer learns at the same rate.
    paramwise_cfg=dict(decay_rate=1.0, num_layers=12),
)
auto_scale_lr = dict(enable=False)
one_epoch = dict(by_epoch=True, begin=0, end=1, convert_to_iter_based=True)
the_rest = dict(by_epoch=True, begin=1, convert_to_iter_based=True)
param_scheduler = [
    dict(one_epoch, type="LinearLR", start_factor=0.01),
    dict(the_rest, type="CosineAnnealingLR", eta_min_ratio=0.01),
]

# The last checkpoint counts, not the best on the clips that it is tested on.
default_hooks = dict(logger=dict(interval=5), checkpoint=dict(save_best=None))
