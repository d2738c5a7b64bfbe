"""What the training and testing commands share: options, and the set-up of a run."""

import argparse
import gc
import importlib
import os
import subprocess
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.dist import is_distributed
from mmengine.logging import print_log

import dr2net.openmmlab.mended  # noqa: F401 - mends OpenMMLab before a config imports it
from dr2net.openmmlab import compatibility
from dr2net.openmmlab.checkpoint import trust_checkpoints
from tools.classes import spread_classes

# Another's config may call operators of mmcv and not import ours for them.
compatibility.look_for_operators(lambda: importlib.import_module("tasks.detection"))


def build_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that every command has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("config", help="config file")
    parser.add_argument("--work-dir", help="folder for logs and checkpoints")
    add_config_options(parser)
    parser.add_argument(
        "--launcher",
        choices=["none", "pytorch", "slurm", "mpi"],
        default="none",
        help="job launcher",
    )
    # Given by older launchers; torchrun sets the environment variable instead.
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0)
    return parser


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Add what ``read_config`` takes, beside the config's path."""
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="open checkpoint files that run code when opened; only where you trust their source",
    )
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        metavar="KEY=VALUE",
        help="replace settings of the config, like train_dataloader.batch_size=2 load_from=None; "
        'a list is written key="[a,b]", without spaces',
    )


def read_config(args: argparse.Namespace) -> Config:
    """Read the config with the options of ``add_config_options``; its ``classes`` are spread."""
    config = Config.fromfile(args.config)
    if args.cfg_options is not None:
        config.merge_from_dict(args.cfg_options)
    spread_classes(config)
    trust_checkpoints(args.trust_checkpoint or config.get("trust_checkpoint", False))
    return config


def load_config(args: argparse.Namespace) -> Config:
    """Read the config with the options that training and testing have."""
    config = read_config(args)
    config.launcher = args.launcher
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    if args.launcher == "slurm":
        # mmengine's is the same for all, and jobs may share a machine.
        port = 10000 + int(os.environ.get("SLURM_JOB_ID", 0)) % 20000
        os.environ.setdefault("MASTER_PORT", str(port))
    if args.work_dir is not None:
        config.work_dir = args.work_dir
    elif config.get("work_dir") is None:
        config.work_dir = str(Path("work_dirs") / Path(args.config).stem)
    return config


def adapt_to_cpu(config: Config) -> None:
    """Change, on a machine without GPU, what mmengine can only do with one; no-op elsewhere.

    Autocast training becomes float32 training (with a warning), and distributed runs use gloo.
    """
    if torch.cuda.is_available():
        return
    optim_wrapper = config.get("optim_wrapper")
    if optim_wrapper is not None and optim_wrapper.get("type") == "AmpOptimWrapper":
        print_log("no GPU: training in float32 instead of mixed precision")
        optim_wrapper.type = "OptimWrapper"
        for option in ("dtype", "loss_scale", "use_fsdp"):
            optim_wrapper.pop(option, None)
    if config.launcher == "none":
        return
    if config.launcher == "slurm":
        describe_slurm_task()
    elif config.launcher != "pytorch":
        raise ValueError(
            f"--launcher {config.launcher} needs GPUs; without them use --launcher pytorch, as "
            "tools/dist_train.sh does, or slurm"
        )
    # mmengine would choose a CUDA device first, and give that device's number to DDP.
    if not is_distributed():
        torch.distributed.init_process_group("gloo")
    wrapper = config.get("model_wrapper_cfg") or {
        "type": "MMDistributedDataParallel",
        "broadcast_buffers": False,
        "find_unused_parameters": config.get("find_unused_parameters", False),
    }
    config.model_wrapper_cfg = {**wrapper, "device_ids": None}


def describe_slurm_task() -> None:
    """Tell torch.distributed what Slurm says of this process, as mmengine does where GPUs are."""
    for name, slurm_name in (
        ("RANK", "SLURM_PROCID"),
        ("WORLD_SIZE", "SLURM_NTASKS"),
        ("LOCAL_RANK", "SLURM_LOCALID"),
    ):
        os.environ[name] = os.environ[slurm_name]
    if "MASTER_ADDR" not in os.environ:
        command = ["scontrol", "show", "hostnames", os.environ["SLURM_NODELIST"]]
        hosts = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        os.environ["MASTER_ADDR"] = hosts.split()[0]


def leave_process_group() -> None:
    """End what a distributed run has open, before the interpreter ends.

    gloo's threads end with the last reference to their process group, which a runner and its model
    hold: call it once they are dropped. A thread that lets go of a tensor while the interpreter
    ends aborts the process.
    """
    if is_distributed():
        torch.distributed.destroy_process_group()
        gc.collect()  # a runner is part of cycles
