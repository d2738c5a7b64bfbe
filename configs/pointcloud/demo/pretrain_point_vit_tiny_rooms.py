"""Pretrain a tiny PointViT conventionally on furnished homes; "make demo-pointcloud" runs it.

    python tools/demos/furnished_rooms.py data/rooms/pretrain --look home --rooms 8
    python tools/prepare_pointcloud.py \
        data/rooms/pretrain/Stanford3dDataset_v1.2_Aligned_Version data/rooms/pretrain/rooms
    python tools/train.py configs/pointcloud/demo/pretrain_point_vit_tiny_rooms.py

The S3DIS recipe on rooms of 12,000 points, in coarser voxels and smaller crops, without the
regularisation that 70 million parameters and 270 rooms need (label smoothing, stochastic depth).
"""

_base_ = [
    "../../_base_/models/pix4point_s.py",
    "../../_base_/datasets/s3dis.py",
    "../../_base_/schedules/pix4point_100e.py",
    "../../_base_/pointcloud_runtime.py",
]

voxel_size = 0.1  # metres
crop = 1024  # points

model = dict(
    segmentor=dict(
        backbone=dict(
            embed_dims=64,
            depth=24,
            num_heads=4,
            drop_path_rate=0.0,
            group_size=8,
            checkpoint_embedding=False,
        ),
        decode_head=dict(
            in_channels=(7, 32, 64),
            channels=48,
            hidden_channels=48,
            dropout=0.1,
            checkpoint_propagation=False,
        ),
        label_smoothing=0.0,
    ),
    voxel_size=voxel_size,
    max_points=crop,
    batch_size=16,
)

data_root = "data/rooms/pretrain/rooms"
train_pipeline = [
    dict(type="AddHeight"),
    dict(type="VoxelSubsample", voxel_size=voxel_size),
    dict(type="SphereCrop", num_points=crop),
    dict(type="ScalePoints", factors=(0.9, 1.1)),
    dict(type="CenterOnFloor"),
    dict(type="RotatePoints", max_angle=180),
    dict(type="PackPoints"),
]
# Reading a room costs less than handing it over from another process.
in_process = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(
    in_process, batch_size=8, dataset=dict(data_root=data_root, loop=8, pipeline=train_pipeline)
)
# Rooms are small: every validation is a test at full resolution.
val_dataloader = dict(
    in_process, dataset=dict(data_root=data_root, pipeline={{_base_.test_pipeline}})
)
test_dataloader = dict(in_process, dataset=dict(data_root=data_root))

train_cfg = dict(max_epochs=20, val_begin=1, val_interval=10)
optim_wrapper = dict(optimizer=dict(lr=2e-3, weight_decay=0.05), clip_grad=dict(max_norm=1))
auto_scale_lr = dict(enable=False)
one_epoch = dict(by_epoch=True, begin=0, end=1, convert_to_iter_based=True)
the_rest = dict(by_epoch=True, begin=1, convert_to_iter_based=True)
param_scheduler = [
    dict(one_epoch, type="LinearLR", start_factor=0.01),
    dict(the_rest, type="CosineAnnealingLR", eta_min_ratio=0.01),
]

# The last checkpoint counts, not the best on the rooms that it is tested on.
default_hooks = dict(logger=dict(interval=5), checkpoint=dict(save_best=None))
