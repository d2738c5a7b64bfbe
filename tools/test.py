"""Test a model: python tools/test.py CONFIG CHECKPOINT [options].

python tools/test.py CONFIG CHECKPOINT --show-dir pictures
python tools/test.py CONFIG CHECKPOINT --tta
python tools/test.py CONFIG CHECKPOINT --format-only submission
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmengine.config import Config
from mmengine.runner import Runner

from dr2net.openmmlab.checkpoint import expect_whole_models
from tools.augmented_tests import augment_tests
from tools.classes import ClassesFitHook
from tools.command_line import adapt_to_cpu, build_parser, leave_process_group, load_config
from tools.deterministic import choose_workspace
from tools.tested_pictures import DrawTestedHook


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Test as the command line says; return the metrics."""
    parser = build_parser("Test a model.")
    parser.add_argument("checkpoint", help="checkpoint file")
    parser.add_argument(
        "--dump", "--out", metavar="FILE.pkl", help="save all predictions to this file"
    )
    parser.add_argument(
        "--show-dir", type=Path, metavar="DIR", help="draw every prediction into this folder"
    )
    parser.add_argument(
        "--tta",
        action="store_true",
        help="average over augmented inputs: tta_model and tta_pipeline of the config, or of "
        "detectors the image and its mirror image",
    )
    parser.add_argument(
        "--format-only",
        type=Path,
        metavar="DIR",
        help="write the files that leaderboards take into this folder, and compute no figures of "
        "videos and images; annotation files may lack labels",
    )
    args = parser.parse_args(arguments)
    if args.dump is not None and not args.dump.endswith((".pkl", ".pickle")):
        parser.error(f"--dump writes a pickle file: expected FILE.pkl, got {args.dump}")

    config = load_config(args)
    config.load_from = args.checkpoint
    config.resume = False
    try:
        if args.tta:
            augment_tests(config)
        if args.format_only is not None:
            write_submission(config, args.format_only)
    except ValueError as error:
        parser.error(str(error))
    if args.dump is not None:
        config.test_evaluator = [
            *_evaluators(config),
            {"type": "DumpResults", "out_file_path": args.dump},
        ]
    if (config.get("randomness") or {}).get("deterministic"):  # as a training's own config says
        choose_workspace()
    adapt_to_cpu(config)
    runner = Runner.from_cfg(config)
    runner.register_hook(ClassesFitHook())
    if args.show_dir is not None:
        runner.register_hook(DrawTestedHook(args.show_dir, config))
    with expect_whole_models():
        return runner.test()


def write_submission(config: Config, folder: Path) -> None:
    """Make a config's evaluators write files for leaderboards.

    Raises:
        ValueError: One of them has no such file, or there is none.
    """
    evaluators = []
    for evaluator in _evaluators(config):
        kind = evaluator["type"].rsplit(".", 1)[-1]
        if kind in ("AccMetric", "TopClassesFile"):
            import tasks.video.submission  # noqa: F401 - which configs of others do not import

            evaluators.append({"type": "TopClassesFile", "folder": str(folder)})
        elif kind in ("SmallObjectMetric", "CocoMetric"):
            written = {"format_only": True, "outfile_prefix": str(folder / "detections")}
            evaluators.append({**evaluator, **written})
        elif kind == "PointSegmentationMetric":
            evaluators.append({**evaluator, "label_folder": str(folder)})
        elif kind == "LocalizationMetric":
            written = {"format_only": True, "outfile": str(folder / "actions.json")}
            evaluators.append({**evaluator, **written})
        else:
            raise ValueError(
                f"--format-only: nothing is known of files for leaderboards from a {kind}. Known "
                "are AccMetric, SmallObjectMetric, CocoMetric, PointSegmentationMetric and "
                "LocalizationMetric"
            )
    if not evaluators:
        raise ValueError("--format-only: the config has no test_evaluator, which writes the files")
    folder.mkdir(parents=True, exist_ok=True)
    config.test_evaluator = evaluators


def _evaluators(config: Config) -> list[dict]:
    evaluators = config.get("test_evaluator") or []
    return list(evaluators) if isinstance(evaluators, list | tuple) else [evaluators]


if __name__ == "__main__":
    main()
    leave_process_group()
