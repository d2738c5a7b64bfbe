"""What every run shares: hooks, logging, random state, distributed set-up."""

default_scope = "mmaction"
custom_imports = dict(imports=["dr2net.openmmlab", "tasks.video"], allow_failed_imports=False)

default_hooks = dict(
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
        save_best="acc/top1",
        rule="greater",
        backend_args=dict(backend="atomic_local"),
    ),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    # Without mmaction2's SyncBuffersHook: it averages buffers over processes, for BatchNorm, which
    # these networks lack.
    # A resumed run continues with the losses of the unbroken one.
    randomness=dict(type="ResumableRandomnessHook"),
    unreadable_videos=dict(type="UnreadableVideosHook"),
)
randomness = dict(seed=0, deterministic=False)

# The tools choose gloo instead of nccl where there is no GPU.
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    dist_cfg=dict(backend="nccl"),
)

log_processor = dict(type="LogProcessor", window_size=20, by_epoch=True)
log_level = "INFO"
visualizer = dict(
    # What mmaction2's inferencers draw with.
    type="ActionVisualizer",
    vis_backends=[
        dict(type="mmengine.LocalVisBackend"),
        dict(type="mmengine.TensorboardVisBackend"),
    ],
)

load_from = None
resume = False
# True opens checkpoint files that run code when opened; only for files whose source you trust.
trust_checkpoint = False
