"""SODA-D as tools/prepare_detection.py leaves it: tiles of 800 pixels, resized to 1,200.

Trained tile by tile; validated and tested on whole images, which type="TiledDetector" cuts the same
way. Values: section 5 of https://arxiv.org/abs/2207.14096, tasks/detection/tiles.py.
"""

data_root = "data/soda-d"

train_pipeline = [
    dict(type="LoadTile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="Resize", scale_factor=1.5, keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
# The detector cuts and resizes.
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="PackDetInputs"),
]

train_dataloader = dict(
    # Tiles per process.
    batch_size=2,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="SeededSampler", shuffle=True),
    dataset=dict(
        type="TiledDataset",
        dataset=dict(
            type="SmallObjectDataset",
            metainfo="soda-d",
            data_root=data_root,
            ann_file="train_coco.json",
            data_prefix=dict(img="Images/"),
            # So that an image without objects ends no run; its tiles would be dropped as well.
            allow_empty=True,
        ),
        tile_size=800,
        overlap=150,
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    # An image has about 30 tiles, of which the detector takes several at once.
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="SmallObjectDataset",
        metainfo="soda-d",
        data_root=data_root,
        ann_file="val_coco.json",
        data_prefix=dict(img="Images/"),
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
test_dataloader = dict(
    val_dataloader, dataset=dict(val_dataloader["dataset"], ann_file="test_coco.json")
)

val_evaluator = dict(
    type="SmallObjectMetric", ann_file=f"{data_root}/val_coco.json", protocol="soda-d"
)
test_evaluator = dict(val_evaluator, ann_file=f"{data_root}/test_coco.json")
