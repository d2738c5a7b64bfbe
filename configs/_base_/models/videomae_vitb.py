"""VideoMAE's ViT-B/16 over 16 frames as mmaction2 builds it, with the recipe's regularisation.

Values: run_class_finetuning.py of https://github.com/MCG-NJU/VideoMAE.
"""

model = dict(
    type="Recognizer3D",
    backbone=dict(
        type="mmaction.VisionTransformer",
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
    cls_head=dict(
        type="TimeSformerHead",
        num_classes=400,
        in_channels=768,
        # trunc_normal(0.02) times init_scale 0.001
        init_std=2e-5,
        label_smooth_eps=0.1,
        average_clips="prob",
    ),
    data_preprocessor=dict(
        type="ActionDataPreprocessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        # One of the two for every batch, each half of the time.
        blending=dict(
            type="RandomBatchAugment",
            augments=[
                dict(type="MixupBlending", alpha=0.8, num_classes=400),
                dict(type="CutmixBlending", alpha=1.0, num_classes=400),
            ],
        ),
        format_shape="NCTHW",
    ),
)
