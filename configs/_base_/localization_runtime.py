"""What every run of a localizer shares: default_runtime.py with its datasets and its measure."""

_base_ = "./default_runtime.py"

custom_imports = dict(
    imports=["dr2net.openmmlab", "tasks.video.localization"], allow_failed_imports=False
)

default_hooks = dict(checkpoint=dict(save_best="localization/mAP"))
# What is evaluated is a running mean of the weights, of about the last 1,000 iterations.
custom_hooks = [dict(type="EMAHook", ema_type="ExponentialMovingAverage", momentum=0.001)]
