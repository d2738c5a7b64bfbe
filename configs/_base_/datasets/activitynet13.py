"""ActivityNet-1.3 (docs/localization.md): 768 frames of a whole video, 160 × 160 pixels.

Values: configs/adatad/anet/e2e_anet_videomae_s_192x4_160_fullft.py of
https://github.com/sming256/OpenTAD. Its augmentation by imgaug, which is not maintained, and
ColorJitter are VideoMAE's RandAugment here. The model finds actions without their classes, which
are the two best of the video by another model (CUHK's), as usual on this set.
"""

data_root = "data/activitynet-1.3"
num_frames = 768

train_pipeline = [
    dict(type="DecordOpen"),
    dict(type="SampleWholeVideo", num_frames=num_frames),
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
    dict(type="SampleWholeVideo", num_frames=num_frames),
    dict(type="DecordDecode"),
    dict(type="Resize", scale=(-1, 160)),
    dict(type="CenterCrop", crop_size=160),
    dict(type="FormatShape", input_format="NCTHW"),
    dict(type="PackWindow"),
]

annotations = dict(
    type="LocalizationDataset",
    data_root=data_root,
    ann_file="annotations/activity_net.v1-3.min.json",
    class_file="annotations/category_idx.txt",
    block_list="annotations/blocked.json",
    data_prefix=dict(video="raw_data/Anet_videos_15fps_short256"),
    file_name="v_{}.mp4",
    class_agnostic=True,
    bad_input="skip",
)
train_dataloader = dict(
    batch_size=4,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type="SeededSampler", shuffle=True),
    collate_fn=dict(type="pseudo_collate"),
    dataset=dict(**annotations, subset="training", shortest=0.01, pipeline=train_pipeline),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="pseudo_collate"),
    dataset=dict(**annotations, subset="validation", pipeline=test_pipeline, test_mode=True),
)
val_dataloader = test_dataloader

test_evaluator = dict(
    type="LocalizationMetric",
    ann_file=data_root + "/annotations/activity_net.v1-3.min.json",
    block_list=data_root + "/annotations/blocked.json",
    subset="validation",
    thresholds=[0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95],
    nms=dict(sigma=0.7, min_score=0.001, max_per_video=100, by_class=False, voting=0.9),
    video_classes=dict(file=data_root + "/classifiers/cuhk_val_simp_7.json", top=2),
)
val_evaluator = test_evaluator
