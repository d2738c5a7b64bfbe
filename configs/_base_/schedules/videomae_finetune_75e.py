"""VideoMAE's finetuning schedule: AdamW, layer-wise decay, 5 epochs of warm-up, then cosine.

Values: run_class_finetuning.py and scripts/kinetics/videomae_vit_base_patch16_224_tubemasking_
ratio_0.9_epoch_1600/finetune.sh of https://github.com/MCG-NJU/VideoMAE.
"""

train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=75, val_begin=1, val_interval=5)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

optim_wrapper = dict(
    # bf16 autocast where there is a GPU, float32 where there is none; bf16 needs no loss scale.
    type="AmpOptimWrapper",
    dtype="bfloat16",
    loss_scale=1.0,
    optimizer=dict(type="AdamW", lr=5e-4, betas=(0.9, 0.999), weight_decay=0.05),
    constructor="LearningRateDecayOptimizerConstructor",
    paramwise_cfg=dict(decay_rate=0.75, decay_type="layer_wise", num_layers=12),
)
# lr is for 256 videos an iteration and follows the number of processes and the batch size.
auto_scale_lr = dict(enable=True, base_batch_size=256)

param_scheduler = [
    dict(
        type="LinearLR",
        start_factor=1e-6,
        by_epoch=True,
        begin=0,
        end=5,
        convert_to_iter_based=True,
    ),
    # To the last epoch; min_lr 1e-6 of lr 5e-4.
    dict(
        type="CosineAnnealingLR",
        eta_min_ratio=2e-3,
        by_epoch=True,
        begin=5,
        convert_to_iter_based=True,
    ),
]
