"""COCO 2017 in its published layout, sides of at most 800 and 1,333 pixels.

Values: _base_/datasets/coco_detection.py of https://github.com/open-mmlab/mmdetection.
"""

data_root = "data/coco"

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
        data_root=data_root,
        ann_file="annotations/instances_train2017.json",
        data_prefix=dict(img="train2017/"),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        # The published file has two boxes without height, which are left out and logged.
        bad_input="skip",
        # Nothing wrong with the published images; opening 118 thousand takes minutes.
        check_images=False,
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
        data_root=data_root,
        ann_file="annotations/instances_val2017.json",
        data_prefix=dict(img="val2017/"),
        check_images=False,
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(
    type="SmallObjectMetric",
    ann_file=f"{data_root}/annotations/instances_val2017.json",
    protocol="coco",
)
test_evaluator = val_evaluator
