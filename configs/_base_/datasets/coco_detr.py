"""COCO 2017 with DETR's augmentation: sides of 480 to 800 pixels, of the image or of a crop.

Values: configs/dino/dino-4scale_r50_8xb2-12e_coco.py of
https://github.com/open-mmlab/mmdetection.
"""

_base_ = "./coco.py"

final_sizes = dict(
    type="RandomChoiceResize",
    scales=[(side, 1333) for side in range(480, 801, 32)],
    keep_ratio=True,
)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="RandomFlip", prob=0.5),
    dict(
        type="RandomChoice",
        transforms=[
            [final_sizes],
            [
                dict(
                    type="RandomChoiceResize",
                    # No image of COCO's training set is longer than seven times its shorter side.
                    scales=[(400, 4200), (500, 4200), (600, 4200)],
                    keep_ratio=True,
                ),
                dict(
                    type="RandomCrop",
                    crop_type="absolute_range",
                    crop_size=(384, 600),
                    allow_negative_crop=True,
                ),
                final_sizes,
            ],
        ],
    ),
    dict(type="PackDetInputs"),
]
train_dataloader = dict(
    dataset=dict(filter_cfg=dict(filter_empty_gt=False), allow_empty=True, pipeline=train_pipeline)
)
