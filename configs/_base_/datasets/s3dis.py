"""S3DIS as tools/prepare_pointcloud.py writes it (docs/pointcloud.md): test on Area 5.

Values: cfgs/s3dis/default.yaml of https://github.com/guochengqian/PointNeXt.
"""

data_root = "data/s3dis"
voxel_size = 0.04  # metres

train_pipeline = [
    dict(type="AddHeight"),
    dict(type="VoxelSubsample", voxel_size=voxel_size),
    dict(type="SphereCrop", num_points=24000),
    dict(type="ContrastColors", prob=0.2),
    dict(type="ScalePoints", factors=(0.9, 1.1)),
    dict(type="CenterOnFloor"),
    dict(type="RotatePoints", max_angle=180),
    dict(type="JitterPoints", sigma=0.005, clip=0.02),
    dict(type="DropColors", prob=0.2),
    dict(type="PackPoints"),
]
val_pipeline = [
    dict(type="AddHeight"),
    dict(type="VoxelSubsample", voxel_size=voxel_size),
    dict(type="CenterOnFloor"),
    dict(type="PackPoints"),
]
# Whole rooms; the model is a FullResolutionSegmentor, which subsamples them itself.
test_pipeline = [dict(type="AddHeight"), dict(type="PackRoom")]

train_dataloader = dict(
    # Crops per process.
    batch_size=8,
    num_workers=6,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type="SeededSampler", shuffle=True),
    dataset=dict(
        type="RoomDataset",
        data_root=data_root,
        areas=[1, 2, 3, 4, 6],
        # Times that an epoch goes through all rooms.
        loop=30,
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    # Rooms differ in their number of points.
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    # Seeded: every validation sees the same points.
    sampler=dict(type="SeededSampler", shuffle=False),
    dataset=dict(
        type="RoomDataset",
        data_root=data_root,
        areas=[5],
        pipeline=val_pipeline,
        test_mode=True,
    ),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="RoomDataset",
        data_root=data_root,
        areas=[5],
        pipeline=test_pipeline,
        test_mode=True,
    ),
)

# Named val_subsampled/mIoU and so on in validation, full_resolution/mIoU in tests.
val_evaluator = dict(type="PointSegmentationMetric")
test_evaluator = dict(type="PointSegmentationMetric")
