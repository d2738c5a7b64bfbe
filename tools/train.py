"""Train a model: python tools/train.py CONFIG [options]."""

import errno
import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from filelock import FileLock, Timeout
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmengine.runner import Runner

from dr2net.openmmlab import OtherBatchSizeHook, ValidateResumedHook
from dr2net.openmmlab.checkpoint import find_resumable_checkpoint
from tools.classes import ClassesFitHook
from tools.command_line import adapt_to_cpu, build_parser, leave_process_group, load_config
from tools.deterministic import FirstIterationHook, choose_workspace, explain_refusals

PATIENCE = 20  # seconds
# What network file systems answer that have no locks.
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)


def main(arguments: list[str] | None = None) -> Runner:
    """Train as the command line says; return the runner."""
    parser = build_parser("Train a model.")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="CHECKPOINT",
        help="continue from this checkpoint; without a value, from the newest of the work folder, "
        "or from the start where it has none",
    )
    parser.add_argument("--amp", action="store_true", help="train with mixed precision")
    parser.add_argument("--no-validate", action="store_true", help="train without validating")
    parser.add_argument(
        "--auto-scale-lr",
        action="store_true",
        help="scale the learning rate with the batch size, from auto_scale_lr.base_batch_size",
    )
    parser.add_argument("--seed", type=int, help="random seed")
    parser.add_argument(
        "--deterministic",
        action="store_true",
        help="use deterministic algorithms, or end where an operation has none",
    )
    args = parser.parse_args(arguments)

    config = load_config(args)
    if args.no_validate:
        config.val_cfg = config.val_dataloader = config.val_evaluator = None
    if args.amp:
        config.optim_wrapper.type = "AmpOptimWrapper"
        config.optim_wrapper.setdefault("loss_scale", "dynamic")
    if args.auto_scale_lr:
        if "auto_scale_lr" not in config:
            parser.error("--auto-scale-lr: the config has no auto_scale_lr.base_batch_size")
        config.auto_scale_lr.enable = True
    randomness = {"seed": None, **(config.get("randomness") or {})}  # mmengine asks for a seed
    if args.seed is not None:
        randomness["seed"] = args.seed
    if args.deterministic:
        randomness["deterministic"] = True
    config.randomness = randomness
    if randomness.get("deterministic"):
        choose_workspace()
    leave_out_late_schedules(config)
    adapt_to_cpu(config)
    choose_checkpoint(config, args.resume)

    runner = Runner.from_cfg(config)
    runner.register_hook(OtherBatchSizeHook())
    runner.register_hook(ClassesFitHook())
    if config.get("resume"):
        runner.register_hook(ValidateResumedHook())
    with ExitStack() as around:
        around.enter_context(the_only_run_in(Path(runner.work_dir)))
        if runner.deterministic:
            runner.register_hook(FirstIterationHook())
            around.enter_context(explain_refusals())
        runner.train()
    return runner


def leave_out_late_schedules(config: Config) -> None:
    """Leave out what would move learning rates after the run's end, which mmengine cannot build.

    As in a run that is shortened to fewer epochs than the warm-up has.
    """
    loop, schedules = config.get("train_cfg") or {}, config.get("param_scheduler") or []
    if isinstance(schedules, dict):
        if "type" not in schedules:  # of several optimizers
            return
        schedules = [schedules]
    kept = []
    for schedule in schedules:
        unit = "epochs" if schedule.get("by_epoch", True) else "iters"
        last = loop.get(f"max_{unit}")
        if last is None or schedule.get("begin", 0) < last:
            kept.append(schedule)
        else:
            print_log(
                f"{schedule.type} is left out: it begins at {schedule.begin}, and the run has "
                f"{last} {unit}",
                level=logging.WARNING,
            )
    config.param_scheduler = kept


@contextmanager
def the_only_run_in(work_dir: Path) -> Iterator[None]:
    """Keep other trainings out of a work folder: they would write over each other's checkpoints.

    Raises:
        BlockingIOError: Another one is at work there.
    """
    lock = FileLock(work_dir / "lock")
    if is_main_process():
        try:
            # The processes that load data outlive a killed run for some seconds.
            lock.acquire(timeout=PATIENCE)
        except Timeout:
            raise BlockingIOError(
                f"another training is at work in {work_dir}: wait for it to end, or give another "
                "folder with --work-dir"
            ) from None
        except (NotImplementedError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in NO_LOCKS:
                raise
            print_log(f"no locks in the file system of {work_dir}: others are not kept out of it")
    try:
        yield
    finally:
        lock.release()


def choose_checkpoint(config: Config, resume: str | None) -> None:
    """Set ``load_from`` and ``resume`` as mmengine reads them.

    mmengine's own automatic resume forgets ``load_from`` where there is nothing to resume, and
    would train from random weights.

    Raises:
        FileNotFoundError: The checkpoint to start from does not exist.
    """
    if resume == "auto":
        newest = find_resumable_checkpoint(config.work_dir)
        if newest is None:
            print_log(f"nothing to resume in {config.work_dir}: starting anew")
        else:
            config.load_from, config.resume = str(newest), True
    elif resume is not None:
        config.load_from, config.resume = resume, True

    path = config.get("load_from")
    if path and "://" not in path and not Path(path).expanduser().is_file():
        raise FileNotFoundError(
            f"the checkpoint to start from, {path}, does not exist. docs/ says for each task where "
            "pretrained files come from; give another with --cfg-options load_from=PATH, or train "
            "from scratch with --cfg-options load_from=None"
        )


if __name__ == "__main__":
    main()
    leave_process_group()
