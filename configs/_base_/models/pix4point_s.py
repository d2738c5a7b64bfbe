"""Pix4Point-S for S3DIS: a ViT-S over point patches, and feature propagation back to the points.

Values: cfgs/s3dis_pix4point/pix4point.yaml of https://github.com/guochengqian/PointNeXt.
"""

model = dict(
    # Tests predict every original point; training and validation are PointCloudSegmentor's.
    type="FullResolutionSegmentor",
    segmentor=dict(
        type="PointCloudSegmentor",
        backbone=dict(
            type="PointViT",
            # Colour and height, beside the coordinates.
            in_channels=4,
            embed_dims=384,
            depth=12,
            num_heads=6,
            mlp_ratio=4.0,
            drop_path_rate=0.1,
            group_size=32,
            # Of a crop of 24,000 points 11 MB instead of 2.5 GB; the blocks keep 0.44 GB,
            # reversible ones 0.01 GB (docs/pointcloud.md).
            checkpoint_embedding=True,
        ),
        decode_head=dict(
            type="FeaturePropagationHead",
            in_channels=(7, 192, 384),
            num_classes=13,
            channels=384,
            hidden_channels=256,
            dropout=0.5,
            # 0.15 GB instead of 0.42 GB.
            checkpoint_propagation=True,
        ),
        label_smoothing=0.2,
    ),
    # As the validation pipeline after its subsampling.
    transforms=[dict(type="CenterOnFloor"), dict(type="PackPoints")],
    voxel_size=0.04,
    # As in training.
    max_points=24000,
    batch_size=4,
)
