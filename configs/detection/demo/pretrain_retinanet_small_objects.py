"""Pretrain a tiny Swin detector conventionally on warm ground; "make demo-detection" runs it.

    python tools/demos/small_object_images.py data/small_objects
    python tools/train.py configs/detection/demo/pretrain_retinanet_small_objects.py

Images of 1024 × 1024 pixels are cut into tiles of 256 for training, and for testing into four whose
detections are merged.
"""

_base_ = [
    "../../_base_/models/retinanet_swin_small_objects.py",
    "../../_base_/detection_runtime.py",
]

model = dict(
    _delete_=True,
    type="TiledDetector",
    detector={{_base_.model}},
    tile_size=544,
    overlap=64,
    scale_factor=1.0,
    max_detections=1000,
)

data_root = "data/small_objects/pretrain"
shapes = ("disc", "square", "triangle", "bar", "ring", "cross", "corner", "crescent")
metainfo = dict(classes=shapes)
# Reading an image costs less than handing it over from another process.
in_process = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(
    in_process,
    batch_size=4,
    sampler=dict(type="SeededSampler", shuffle=True),
    dataset=dict(
        type="TiledDataset",
        dataset=dict(
            type="SmallObjectDataset",
            metainfo=metainfo,
            data_root=data_root,
            ann_file="train.json",
            data_prefix=dict(img="train/"),
        ),
        tile_size=256,
        overlap=32,
        pipeline=[
            dict(type="LoadTile"),
            dict(type="LoadAnnotations", with_bbox=True),
            dict(type="RandomFlip", prob=0.75, direction=["horizontal", "vertical", "diagonal"]),
            dict(type="PackDetInputs"),
        ],
    ),
)
val_dataloader = dict(
    in_process,
    batch_size=1,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="SmallObjectDataset",
        metainfo=metainfo,
        data_root=data_root,
        ann_file="val.json",
        data_prefix=dict(img="val/"),
        test_mode=True,
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="LoadAnnotations", with_bbox=True),
            dict(type="PackDetInputs"),
        ],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type="SmallObjectMetric",
    ann_file=f"{data_root}/val.json",
    protocol="coco",
    limits=(1000,),
    report=("AP", "AP_50", "AP_75", "AP_S", "AP_M"),
)
test_evaluator = val_evaluator

train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=6, val_interval=6)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=2e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=1.0),
)
warm_up = dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=30)
decay = dict(
    type="CosineAnnealingLR",
    eta_min_ratio=0.01,
    by_epoch=True,
    begin=0,
    convert_to_iter_based=True,
)
param_scheduler = [warm_up, decay]

# The last checkpoint counts, not the best on the images that it is tested on.
default_hooks = dict(logger=dict(interval=5), checkpoint=dict(save_best=None))
