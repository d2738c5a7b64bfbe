"""AdaTAD's schedule of the whole backbone on THUMOS14: 60 of the 100 epochs of a cosine.

Values: configs/adatad/thumos/e2e_thumos_videomae_s_768x1_160_fullft.py of
https://github.com/sming256/OpenTAD.
"""

train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=60, val_begin=40, val_interval=2)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

optim_wrapper = dict(
    # bf16 autocast where there is a GPU, float32 where there is none; bf16 needs no loss scale.
    type="AmpOptimWrapper",
    dtype="bfloat16",
    loss_scale=1.0,
    optimizer=dict(type="AdamW", lr=1e-4, weight_decay=0.05),
    clip_grad=dict(max_norm=1.0),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        # lr 1e-5 and decay for all of the backbone; none for factors of branches and levels.
        custom_keys={"backbone": dict(lr_mult=0.1), "scale": dict(decay_mult=0.0)},
    ),
)
# lr is for 2 windows an iteration and follows the number of processes and the batch size.
auto_scale_lr = dict(enable=True, base_batch_size=2)

param_scheduler = [
    dict(
        type="LinearLR",
        start_factor=1e-4,
        by_epoch=True,
        begin=0,
        end=5,
        convert_to_iter_based=True,
    ),
    dict(
        type="CosineAnnealingLR",
        eta_min=1e-8,
        by_epoch=True,
        begin=5,
        end=100,
        convert_to_iter_based=True,
    ),
]
