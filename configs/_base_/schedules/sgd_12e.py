"""mmdetection's schedule "1x" for detectors with anchors: SGD, 12 epochs, 500 steps of warm-up.

Values: _base_/schedules/schedule_1x.py of https://github.com/open-mmlab/mmdetection.
"""

train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=12, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="SGD", lr=0.02, momentum=0.9, weight_decay=1e-4),
)
# lr is for 16 images an iteration and follows the number of processes and the batch size.
auto_scale_lr = dict(enable=True, base_batch_size=16)

param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type="MultiStepLR", begin=0, end=12, by_epoch=True, milestones=[8, 11], gamma=0.1),
]
