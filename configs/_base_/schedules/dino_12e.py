"""DINO's shortest schedule: AdamW, 12 epochs, the backbone at a tenth of the learning rate.

Values: configs/dino/dino-4scale_r50_8xb2-12e_coco.py of
https://github.com/open-mmlab/mmdetection.
"""

train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=12, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-4, weight_decay=1e-4),
    clip_grad=dict(max_norm=0.1, norm_type=2),
    paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1))),
)
# lr is for 16 images an iteration and follows the number of processes and the batch size.
auto_scale_lr = dict(enable=True, base_batch_size=16)

param_scheduler = [
    dict(type="MultiStepLR", begin=0, end=12, by_epoch=True, milestones=[11], gamma=0.1)
]
