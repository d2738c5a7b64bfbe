"""AdaTAD's schedule of the whole backbone on ActivityNet-1.3: 15 epochs.

Values: configs/adatad/anet/e2e_anet_videomae_s_192x4_160_fullft.py of
https://github.com/sming256/OpenTAD.
"""

_base_ = "./adatad_thumos14.py"

train_cfg = dict(max_epochs=15, val_begin=8, val_interval=1)
optim_wrapper = dict(
    optimizer=dict(lr=1e-3),
    # lr 1e-5 for the backbone.
    paramwise_cfg=dict(custom_keys={"backbone": dict(lr_mult=0.01)}),
)
auto_scale_lr = dict(base_batch_size=16)

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
        end=15,
        convert_to_iter_based=True,
    ),
]
