"""Pix4Point's schedule for S3DIS: AdamW, 10 epochs of warm-up, then cosine, 100 epochs.

Values: cfgs/s3dis_sphere_pix4point/default.yaml (learning rates, decay, warm-up, clipping) and
cfgs/s3dis/default.yaml (epochs, of 30 times all rooms) of https://github.com/guochengqian/PointNeXt.
"""

train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=100, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-4, weight_decay=1e-4),
    clip_grad=dict(max_norm=10, norm_type=2),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        custom_keys=dict(cls_token=dict(decay_mult=0.0), cls_pos=dict(decay_mult=0.0)),
    ),
)
# lr is for 16 crops an iteration and follows the number of processes and the batch size.
auto_scale_lr = dict(enable=True, base_batch_size=16)

param_scheduler = [
    dict(
        type="LinearLR",
        start_factor=1e-2,
        by_epoch=True,
        begin=0,
        end=10,
        convert_to_iter_based=True,
    ),
    # To the last epoch; min_lr 1e-6 of lr 1e-4.
    dict(
        type="CosineAnnealingLR",
        eta_min_ratio=1e-2,
        by_epoch=True,
        begin=10,
        convert_to_iter_based=True,
    ),
]
