"""RetinaNet over a Swin of three stages and 32 to 128 channels: the detector of the demo.

Without stochastic depth, with feature levels of a 4th, 8th and 16th of the image's sides and
square anchors of 9 to 51 pixels.
"""

_base_ = "./retinanet_swint.py"

model = dict(
    backbone=dict(
        embed_dims=32,
        depths=[2, 2, 8],
        num_heads=[1, 2, 4],
        strides=(4, 2, 2),
        drop_path_rate=0.0,
        out_indices=(0, 1, 2),
        init_cfg=None,
    ),
    neck=dict(in_channels=[32, 64, 128], out_channels=32, add_extra_convs=False, num_outs=3),
    bbox_head=dict(
        num_classes=8,
        in_channels=32,
        feat_channels=32,
        stacked_convs=1,
        anchor_generator=dict(
            octave_base_scale=2.25, scales_per_octave=2, ratios=[1.0], strides=[4, 8, 16]
        ),
    ),
    test_cfg=dict(max_per_img=500),
)
