"""Something-Something V2 in OpenMMLab's layout (docs/video.md), 16 frames spread over the video.

As VideoMAE: uniform sampling, and no flip, because classes tell left from right.
"""

data_root = "data/sthv2"

train_pipeline = [
    dict(type="DecordOpen"),
    dict(type="UniformSample", clip_len=16, num_clips=1),
    dict(type="DecordDecode"),
    dict(type="ClipRandAugment", config="rand-m7-n4-mstd0.5-inc1", crop_size=224),
    dict(type="RandomResizedCrop", area_range=(0.08, 1.0), aspect_ratio_range=(3 / 4, 4 / 3)),
    dict(type="Resize", scale=(224, 224), keep_ratio=False),
    # Noise of the normalised pixels' mean and deviation, timm's mode "pixel".
    dict(
        type="RandomErasing",
        erase_prob=0.25,
        mode="rand",
        fill_color=(123.675, 116.28, 103.53),
        fill_std=(58.395, 57.12, 57.375),
    ),
    dict(type="FormatShape", input_format="NCTHW"),
    dict(type="PackActionInputs"),
]
val_pipeline = [
    dict(type="DecordOpen"),
    dict(type="UniformSample", clip_len=16, num_clips=1, test_mode=True),
    dict(type="DecordDecode"),
    dict(type="Resize", scale=(-1, 224)),
    dict(type="CenterCrop", crop_size=224),
    dict(type="FormatShape", input_format="NCTHW"),
    dict(type="PackActionInputs"),
]
# 2 clips × 3 crops
test_pipeline = [
    dict(type="DecordOpen"),
    dict(type="UniformSample", clip_len=16, num_clips=2, test_mode=True),
    dict(type="DecordDecode"),
    dict(type="Resize", scale=(-1, 224)),
    dict(type="ThreeCrop", crop_size=224),
    dict(type="FormatShape", input_format="NCTHW"),
    dict(type="PackActionInputs"),
]

train_dataloader = dict(
    # Videos per process; num_repeats makes twice as many samples of them.
    batch_size=6,
    num_workers=8,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type="SeededSampler", shuffle=True),
    collate_fn=dict(type="repeat_pseudo_collate"),
    dataset=dict(
        type="VideoListDataset",
        data_root=data_root,
        ann_file="sthv2_train_list_videos.txt",
        data_prefix=dict(video="videos"),
        num_classes=174,
        num_repeats=2,
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=6,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="VideoListDataset",
        data_root=data_root,
        ann_file="sthv2_val_list_videos.txt",
        data_prefix=dict(video="videos"),
        num_classes=174,
        pipeline=val_pipeline,
        test_mode=True,
    ),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="VideoListDataset",
        data_root=data_root,
        ann_file="sthv2_val_list_videos.txt",
        data_prefix=dict(video="videos"),
        num_classes=174,
        pipeline=test_pipeline,
        test_mode=True,
    ),
)

val_evaluator = dict(type="AccMetric")
test_evaluator = dict(type="AccMetric")
