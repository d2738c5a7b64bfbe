"""AI-TOD-v2 as tools/prepare_detection.py leaves it: images of 800 × 800 pixels as they are.

Validated on val and tested on test. Published results are trained on train and val together:
convert aitodv2_trainval.json as well and give train_dataloader.dataset.ann_file=trainval_coco.json
and train_dataloader.dataset.data_prefix.img=trainval/.
"""

data_root = "data/ai-tod"

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="Resize", scale=(800, 800), keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(800, 800), keep_ratio=True),
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
    dataset=dict(
        type="SmallObjectDataset",
        metainfo="ai-tod",
        data_root=data_root,
        ann_file="train_coco.json",
        data_prefix=dict(img="train/"),
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
        metainfo="ai-tod",
        data_root=data_root,
        ann_file="val_coco.json",
        data_prefix=dict(img="val/"),
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
test_dataloader = dict(
    val_dataloader,
    dataset=dict(
        val_dataloader["dataset"], ann_file="test_coco.json", data_prefix=dict(img="test/")
    ),
)

val_evaluator = dict(
    type="SmallObjectMetric", ann_file=f"{data_root}/val_coco.json", protocol="ai-tod"
)
test_evaluator = dict(val_evaluator, ann_file=f"{data_root}/test_coco.json")
