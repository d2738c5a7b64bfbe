"""What every run on point clouds shares: default_runtime.py with its measure."""

_base_ = "./default_runtime.py"

default_scope = "mmengine"
custom_imports = dict(imports=["dr2net.openmmlab", "tasks.pointcloud"], allow_failed_imports=False)

default_hooks = dict(
    # Without the hook that watches mmaction2's videos.
    _delete_=True,
    runtime_info=dict(type="RuntimeInfoHook"),
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=20, ignore_last=False),
    param_scheduler=dict(type="ParamSchedulerHook"),
    # atomic_local: a kill at any moment leaves the old file or the new one.
    # More than one is kept, because mmengine removes the oldest before it writes the newest.
    checkpoint=dict(
        type="CheckpointHook",
        interval=1,
        max_keep_ckpts=3,
        save_best="val_subsampled/mIoU",
        rule="greater",
        backend_args=dict(backend="atomic_local"),
    ),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    # A resumed run continues with the losses of the unbroken one.
    randomness=dict(type="ResumableRandomnessHook"),
)
visualizer = dict(type="Visualizer")
