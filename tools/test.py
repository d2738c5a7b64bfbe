"""Test a model: python tools/test.py CONFIG CHECKPOINT [options]."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmengine.runner import Runner

from dr2net.openmmlab.checkpoint import expect_whole_models
from tools.command_line import adapt_to_cpu, build_parser, leave_process_group, load_config
from tools.deterministic import choose_workspace


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Test as the command line says; return the metrics."""
    parser = build_parser("Test a model.")
    parser.add_argument("checkpoint", help="checkpoint file")
    parser.add_argument("--dump", metavar="FILE.pkl", help="save all predictions to this file")
    args = parser.parse_args(arguments)
    if args.dump is not None and not args.dump.endswith((".pkl", ".pickle")):
        parser.error(f"--dump writes a pickle file: expected FILE.pkl, got {args.dump}")

    config = load_config(args)
    config.load_from = args.checkpoint
    config.resume = False
    if args.dump is not None:
        evaluators = config.test_evaluator
        if not isinstance(evaluators, list):
            evaluators = [evaluators]
        config.test_evaluator = [*evaluators, {"type": "DumpResults", "out_file_path": args.dump}]
    if (config.get("randomness") or {}).get("deterministic"):  # as a training's own config says
        choose_workspace()
    adapt_to_cpu(config)
    expect_whole_models(True)
    try:
        return Runner.from_cfg(config).test()
    finally:
        expect_whole_models(False)


if __name__ == "__main__":
    main()
    leave_process_group()
