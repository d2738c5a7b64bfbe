"""Finetune a tiny pretrained ViT on videos three ways, and compare: "make demo".

    python tools/demo_video.py                      # table, curves and result in work_dirs/demo
    python tools/demo_video.py --results results    # as committed; then tools/readme_tables.py

Writes the motion clips (tools/motion_clips.py), pretrains conventionally on one part of them and
finetunes on the other: conventionally, as earlier reversible networks do ((0, 1) from the first
step) and as a Dr²Net, each with several seeds, by tools/train.py and configs/video/demo. A run that
was cut short is resumed and a finished one is kept, until code, settings or versions change.
"""

import argparse
import hashlib
import os
import platform
import shutil
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch

from dr2net.openmmlab.checkpoint import open_checkpoint
from tools import demo_measurements, demo_picture
from tools.benchmark import hardware
from tools.motion_clips import class_names, write_data_set
from tools.result_files import markdown_table, write_json
from tools.training_runs import Run, TrainingError, finish, last_checkpoint, locked

CONFIGS = ROOT / "configs/video/demo"
PRETRAINING = CONFIGS / "pretrain_vit_tiny_motion.py"
WAYS = {
    "conventional": CONFIGS / "conventional_vit_tiny_motion.py",
    "previous reversible": CONFIGS / "previous_reversible_vit_tiny_motion.py",
    "Dr²Net": CONFIGS / "dr2net_vit_tiny_motion.py",
}
NOTES = (
    "Top-1 is the mean over seeds (lowest to highest) on clips not trained on, after the last "
    "epoch. Memory is what autograd keeps from forward to backward of one training step of 16 "
    "clips: by the whole model, and by its blocks alone per element of their stream. The gradient "
    "error is the relative L2 difference from the gradients of the same equations with activations "
    "stored. Seconds are medians of steps in which the networks took turns. Where α and β move, "
    "figures are given at both ends."
)


def main() -> None:
    """Run the demo as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work-dir", type=Path, default=Path("work_dirs/demo"))
    parser.add_argument("--data", type=Path, default=Path("data/motion"), help="folder for clips")
    parser.add_argument("--results", type=Path, help="folder for the result, or the work folder")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each way")
    parser.add_argument("--shrink", type=int, default=1, help="this many times fewer clips")
    arguments = parser.parse_args()
    try:
        # One at a time in a work folder, and one writer of the clips.
        with locked(arguments.work_dir) as lock, locked(arguments.data.parent):
            run_demo(arguments, lock)
    except (BlockingIOError, FileExistsError, TrainingError) as error:
        sys.exit(str(error))


def run_demo(arguments: argparse.Namespace, lock: int) -> None:
    """Run every part that is not finished yet; print the table and save result and picture."""
    started = time.perf_counter()
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    print(f"writing videos to {arguments.data}", flush=True)
    write_data_set(arguments.data, arguments.shrink)
    runs = arguments.work_dir / "runs"
    _discard_outdated(arguments.work_dir / "fingerprint", runs, arguments.shrink)
    pretrained = pretrain(runs / "pretrain", arguments.data / "pretrain", lock)
    curves = finetune(runs, arguments.data / "finetune", pretrained, arguments.seeds, lock)

    print("measuring memory, time and gradients", flush=True)
    measured = demo_measurements.measure(WAYS, arguments.data / "finetune", pretrained)
    rows = [_row(name, curves[name], measured) for name in WAYS]
    print(f"\n{markdown_table(list(rows[0]), rows)}\n")
    results = arguments.results or arguments.work_dir
    write_json(
        results / "demo_video.json",
        {
            "title": "A tiny ViT, pretrained on motions and finetuned on others, three ways.",
            "command": " ".join(["python", "tools/demo_video.py", *sys.argv[1:]]),
            "date": date.today().isoformat(),
            "hardware": f"{hardware('cpu')}, {torch.get_num_threads()} threads",
            "versions": _versions(),
            "columns": list(rows[0]),
            "rows": rows,
            "notes": NOTES,
            "seconds": round(time.perf_counter() - started),
            "measured": measured,
            "curves": curves,
        },
    )
    demo_picture.draw(curves, 1 / len(class_names("finetune")), results / "demo_video.png")
    print(f"curves: {results / 'demo_video.png'}   numbers: {results / 'demo_video.json'}")


def pretrain(folder: Path, data: Path, lock: int) -> Path:
    """Pretrain in ``folder``; return the file of the weights without the head."""
    run = Run("pretraining", PRETRAINING, 0, _data_settings(data))
    _report("pretraining", finish(run, folder, min(2, os.cpu_count() or 1), lock))
    weights = open_checkpoint(last_checkpoint(folder))["state_dict"]
    backbone = {name: value for name, value in weights.items() if name.startswith("backbone.")}
    pretrained = folder.parent / "pretrained.pth"
    partial = pretrained.with_name(pretrained.name + ".partial")
    torch.save({"state_dict": backbone}, partial)
    partial.replace(pretrained)
    return pretrained


def finetune(
    folder: Path, data: Path, pretrained: Path, seeds: int, lock: int
) -> dict[str, list[dict]]:
    """Finetune every way with every seed, one thread each; return the curves by way and seed."""
    settings = _data_settings(data) | {"load_from": pretrained}
    runs = [
        Run(f"{name}, seed {seed}", config, seed, settings)
        for seed in range(seeds)
        for name, config in WAYS.items()
    ]

    def train(run: Run) -> dict[str, list]:
        curves = finish(run, folder / f"{run.config.stem}_seed{run.seed}", 1, lock)
        _report(run.name, curves)
        return curves

    executor = ThreadPoolExecutor(os.cpu_count())
    try:
        found = list(executor.map(train, runs))
    finally:
        executor.shutdown(cancel_futures=True)
    return {name: found[number :: len(WAYS)] for number, name in enumerate(WAYS)}


def _data_settings(data: Path) -> dict[str, object]:
    return {f"{part}_dataloader.dataset.data_root": data for part in ("train", "val")}


def _report(name: str, curves: dict[str, list]) -> None:
    print(f"{name}: top-1 {100 * curves['top1'][-1]:.1f} %", flush=True)


def _discard_outdated(written: Path, runs: Path, shrink: int) -> None:
    """Remove runs of other code, settings or versions than the present ones."""
    digest = hashlib.sha256(f"{shrink} {_versions()}".encode())
    for folder in ("dr2net", "tasks", "tools", "configs"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    fingerprint = digest.hexdigest()
    if not written.is_file() or written.read_text() != fingerprint:
        shutil.rmtree(runs, ignore_errors=True)
        written.write_text(fingerprint)


def _versions() -> dict[str, str]:
    packages = ("torch", "onedl-mmengine", "mmaction2", "decord")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def _row(name: str, seeds: list[dict], measured: dict[str, dict]) -> dict[str, str]:
    top1 = [100 * curves["top1"][-1] for curves in seeds]
    ends = [found for label, found in measured.items() if label.startswith(name)]

    def both(show: object) -> str:
        return " → ".join(dict.fromkeys(map(show, ends)))

    return {
        "finetuning": name,
        "top-1 (%)": f"{statistics.mean(top1):.1f} ({min(top1):.1f} to {max(top1):.1f})",
        "kept, model (MB)": both(lambda found: f"{found['model_bytes'] / 1e6:.1f}"),
        "kept, blocks (bytes per element)": both(lambda found: f"{found['bytes_per_element']:.1f}"),
        "seconds per step": both(lambda found: f"{statistics.median(found['seconds']):.3f}"),
        "gradient error": both(lambda found: f"{found.get('gradient_error', 0):.2g}"),
    }


if __name__ == "__main__":
    main()
