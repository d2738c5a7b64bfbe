"""THUMOS14 (docs/localization.md): windows of 768 frames at 7.5 a second, 160 × 160 pixels.

Values: configs/adatad/thumos/e2e_thumos_videomae_s_768x1_160_fullft.py of
https://github.com/sming256/OpenTAD, which takes every 4th frame of videos of 30 a second. Its
augmentation by imgaug, which is not maintained, and ColorJitter are VideoMAE's RandAugment here.
"""

data_root = "data/thumos-14"
frame_rate = 7.5
num_frames = 768

train_pipeline = [
    dict(type="DecordOpen"),
    dict(
        type="SampleWindow",
        num_frames=num_frames,
        frame_rate=frame_rate,
        completeness=0.75,
        crop_ratio=(0.9, 1.0),
    ),
    dict(type="DecordDecode"),
    dict(type="Resize", scale=(-1, 182)),
    dict(type="RandomResizedCrop"),
    dict(type="Resize", scale=(160, 160), keep_ratio=False),
    dict(type="Flip", flip_ratio=0.5),
    dict(type="ClipRandAugment", config="rand-m7-n4-mstd0.5-inc1", crop_size=160),
    dict(type="FormatShape", input_format="NCTHW"),
    dict(type="PackWindow"),
]
test_pipeline = [
    dict(type="DecordOpen"),
    dict(type="SampleWindow", num_frames=num_frames, frame_rate=frame_rate),
    dict(type="DecordDecode"),
    dict(type="Resize", scale=(-1, 160)),
    dict(type="CenterCrop", crop_size=160),
    dict(type="FormatShape", input_format="NCTHW"),
    dict(type="PackWindow"),
]

annotations = dict(
    type="LocalizationDataset",
    data_root=data_root,
    ann_file="annotations/thumos_14_anno.json",
    class_file="annotations/category_idx.txt",
    data_prefix=dict(video="raw_data/video"),
    ignored_labels=["Ambiguous"],
)
train_dataloader = dict(
    batch_size=2,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="SeededSampler", shuffle=True),
    collate_fn=dict(type="pseudo_collate"),
    dataset=dict(**annotations, subset="training", bad_input="skip", pipeline=train_pipeline),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="pseudo_collate"),
    dataset=dict(
        **annotations,
        subset="validation",
        bad_input="skip",
        window=dict(num_frames=num_frames, frame_rate=frame_rate, overlap=0.5),
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
val_dataloader = test_dataloader

test_evaluator = dict(
    type="LocalizationMetric",
    ann_file=data_root + "/annotations/thumos_14_anno.json",
    subset="validation",
    thresholds=[0.3, 0.4, 0.5, 0.6, 0.7],
    nms=dict(sigma=0.7, min_score=0.001, max_per_video=2000, by_class=True),
)
val_evaluator = test_evaluator
