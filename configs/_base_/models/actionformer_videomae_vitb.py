"""ActionFormer over VideoMAE's ViT-B, end to end: windows of 768 frames in 48 chunks of 16.

Values: configs/adatad/thumos/e2e_thumos_videomae_s_768x1_160_fullft.py of
https://github.com/sming256/OpenTAD, which finetunes the whole backbone.
"""

model = dict(
    type="ActionLocalizer",
    positions=768,
    # None runs all chunks of a batch at once; a number takes less memory, for the same result.
    chunks_at_once=None,
    backbone=dict(
        type="ChunkViT",
        img_size=224,
        patch_size=16,
        embed_dims=768,
        depth=12,
        num_heads=12,
        mlp_ratio=4,
        qkv_bias=True,
        num_frames=16,
        drop_path_rate=0.1,
        norm_cfg=dict(type="LN", eps=1e-6),
    ),
    pyramid=dict(
        type="ActionFormerPyramid",
        in_channels=768,
        channels=512,
        levels=6,
        heads=4,
        # Attention over the whole window, as AdaTAD; ActionFormer's own is 19 positions wide.
        window=None,
        drop_path=0.1,
    ),
    head=dict(
        type="ActionFormerHead",
        num_classes=20,
        channels=512,
        ranges=[(0, 4), (4, 8), (8, 16), (16, 32), (32, 64), (64, 10000)],
        radius=1.5,
        normalizer=100,
        momentum=0.9,
        prior=0.01,
    ),
    data_preprocessor=dict(
        type="ActionDataPreprocessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        format_shape="NCTHW",
    ),
)
