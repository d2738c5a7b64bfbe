"""Train the demo's tiny localizer end to end, conventionally: what the others are compared with.

    make demo-localization  # once, for the videos and the pretrained weights
    python tools/train.py configs/video/localization/demo/conventional_vit_tiny_motion.py

The THUMOS14 recipe on windows of 256 frames of 32 × 32 pixels, 4 a second, without RandAugment,
stochastic depth of the backbone and the mean of weights, which a longer training needs, and without
the flip, which would change the class. The backbone learns at half the rate of what is new.
"""

_base_ = [
    "../../../_base_/models/actionformer_videomae_vitb.py",
    "../../../_base_/datasets/thumos14.py",
    "../../../_base_/schedules/adatad_thumos14.py",
    "../../../_base_/localization_runtime.py",
]

model = dict(
    positions=128,
    backbone=dict(
        _delete_=True,
        type="Dr2NetBackbone",
        backbone=dict(
            type="ChunkViT",
            img_size=32,
            patch_size=8,
            embed_dims=96,
            depth=12,
            num_heads=4,
            mlp_ratio=4,
            qkv_bias=True,
            num_frames=8,
            norm_cfg=dict(type="LN", eps=1e-6),
        ),
        # The network itself; its reversible siblings have another point.
        alpha=1.0,
        beta=0.0,
    ),
    pyramid=dict(in_channels=96, channels=64, levels=4, heads=4, window=9),
    head=dict(num_classes=8, channels=64, ranges=[(0, 4), (4, 8), (8, 16), (16, 10000)]),
)

data_root = "data/motion_videos/finetune"
annotations = dict(
    type="LocalizationDataset",
    data_root=data_root,
    ann_file="annotations.json",
    class_file="classes.txt",
    data_prefix=dict(video="videos"),
)
window = dict(num_frames=256, frame_rate=4)
sampler = dict(type="SampleWindow", chunk_frames=8, **window)
# Decoding costs less than handing the windows over from another process.
in_process = dict(
    num_workers=0, persistent_workers=False, collate_fn=dict(type="pseudo_collate"), batch_size=1
)
train_dataloader = dict(
    _delete_=True,
    **in_process,
    sampler=dict(type="SeededSampler", shuffle=True),
    dataset=dict(
        **annotations,
        subset="training",
        pipeline=[
            dict(type="DecordOpen"),
            sampler,
            dict(type="DecordDecode"),
            dict(type="RandomResizedCrop", area_range=(0.6, 1.0), aspect_ratio_range=(0.8, 1.25)),
            dict(type="Resize", scale=(32, 32), keep_ratio=False),
            dict(type="FormatShape", input_format="NCTHW"),
            dict(type="PackWindow"),
        ],
    ),
)
test_dataloader = dict(
    _delete_=True,
    **in_process,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        **annotations,
        subset="validation",
        window=dict(overlap=0.5, **window),
        pipeline=[
            dict(type="DecordOpen"),
            sampler,
            dict(type="DecordDecode"),
            dict(type="Resize", scale=(-1, 36)),
            dict(type="CenterCrop", crop_size=32),
            dict(type="FormatShape", input_format="NCTHW"),
            dict(type="PackWindow"),
        ],
        test_mode=True,
    ),
)
val_dataloader = test_dataloader
test_evaluator = dict(ann_file=f"{data_root}/annotations.json")
val_evaluator = test_evaluator

train_cfg = dict(max_epochs=7, val_begin=4, val_interval=3)
optim_wrapper = dict(
    optimizer=dict(lr=1e-3), paramwise_cfg=dict(custom_keys={"backbone": dict(lr_mult=0.5)})
)
auto_scale_lr = dict(enable=False)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, begin=0, end=1, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min_ratio=0.01, begin=1, convert_to_iter_based=True),
]

# The last checkpoint counts, not the best on the videos that it is tested on.
default_hooks = dict(logger=dict(interval=5), checkpoint=dict(save_best=None))
custom_hooks = []

# What "make demo-localization" keeps of the pretrained network: everything but the head.
load_from = "work_dirs/demo_localization/runs/pretrained.pth"
