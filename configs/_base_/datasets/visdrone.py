"""VisDrone-DET as tools/prepare_detection.py leaves it: whole images of at most 800 × 1,333 pixels.

Trained on train and, as results are published, validated and tested on val. Values: the VisDrone
configs of https://github.com/Chasel-Tsui/mmdet-rfla/issues/19.
"""

data_root = "data/visdrone"

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="Resize", scale=(1333, 800), keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(1333, 800), keep_ratio=True),
    # After the resizing: the boxes that predictions are compared with stay in the image's pixels.
    dict(type="LoadAnnotations", with_bbox=True),
    dict(
        type="PackDetInputs",
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
    ),
]

train_dataloader = dict(
    # Images per process.
    batch_size=2,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="SeededSampler", shuffle=True),
    # Wide images with wide ones, tall with tall: less padding.
    batch_sampler=dict(type="AspectRatioBatchSampler"),
    dataset=dict(
        type="SmallObjectDataset",
        metainfo="visdrone",
        data_root=data_root,
        ann_file="train_coco.json",
        data_prefix=dict(img="VisDrone2019-DET-train/images/"),
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="SmallObjectDataset",
        metainfo="visdrone",
        data_root=data_root,
        ann_file="val_coco.json",
        data_prefix=dict(img="VisDrone2019-DET-val/images/"),
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(
    type="SmallObjectMetric", ann_file=f"{data_root}/val_coco.json", protocol="visdrone"
)
test_evaluator = val_evaluator
