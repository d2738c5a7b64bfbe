"""Publish a checkpoint: python tools/publish.py MODEL CHECKPOINT FOLDER [options].

MODEL says what the checkpoint is of:

    CONFIG.py    a config of OpenMMLab, with which it was trained; the copy in the work folder has
                 what --cfg-options said
    timm:NAME    a network of timm.create_model, with --model-args
    transformers CHECKPOINT is a folder that save_pretrained has written

What is written loads into that library without dr2net, by strict=True. With --reversible the Dr²Net
is written instead, for dr2net.from_pretrained.
"""

import argparse
import ast
import pickle
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import nn

import dr2net
from dr2net.conversion.saved_folders import saved_coefficients
from dr2net.publishing.card import ENTRIES, check_results


def main(arguments: list[str] | None = None) -> Path:
    """Publish as the command line says; return what was written."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL", help="what the checkpoint is of: see above")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="the weights")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="to be made")
    parser.add_argument("--reversible", action="store_true", help="write the Dr²Net, not the plain")
    parser.add_argument(
        "--model-args",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="for timm.create_model, like num_classes=10 img_size=32",
    )
    parser.add_argument("--blocks", nargs="+", help="as dr2net.convert had them, if it had")
    for entry, title in ENTRIES.items():
        parser.add_argument(f"--{entry}", metavar="TEXT", help=f"for the model card: {title}")
    parser.add_argument(
        "--result",
        nargs=3,
        action="append",
        default=[],
        metavar=("DATASET", "TASK", "VALUE"),
        help="for .eval_results/, which leaderboards of Hugging Face's Hub read: a dataset's name "
        "there, a task of it, the figure; again for others",
    )
    args = parser.parse_args(arguments)
    try:
        results = [(dataset, task, float(value)) for dataset, task, value in args.result]
        check_results(results)
    except ValueError as error:
        parser.error(f"--result DATASET TASK VALUE: {error}")
    card = {entry: text for entry in ENTRIES if (text := getattr(args, entry)) is not None}

    if args.model.endswith(".py"):
        if args.reversible:
            parser.error(
                "--reversible: a Dr²Net of OpenMMLab is its config and checkpoint, as they are"
            )
        written = publish_openmmlab(args, card, results)
    else:
        if args.model == "transformers":
            model = load_folder(args.checkpoint, args.blocks)
        elif args.model.startswith("timm:"):
            model = load(build(args.model, args.model_args), args.checkpoint, args.blocks)
        else:
            parser.error(f"MODEL {args.model}: neither CONFIG.py, timm:NAME nor transformers")
        written = dr2net.publish(model, args.folder, args.reversible, card, results)
    print(f"wrote {written}")
    return written


def publish_openmmlab(
    args: argparse.Namespace, card: dict[str, str], results: list[tuple[str, str, float]]
) -> Path:
    """Publish a checkpoint of OpenMMLab, of the plain model without this project's wrappers."""
    from mmengine.config import Config

    import dr2net.openmmlab  # noqa: F401 - mends OpenMMLab before a config imports it
    from dr2net.openmmlab.loaders import innermost
    from dr2net.openmmlab.publishing import WRAPPERS, publish_checkpoint
    from tools.classes import spread_classes

    wrappers = {**WRAPPERS, "TiledDetector": "detector", "FullResolutionSegmentor": "segmentor"}
    config = Config.fromfile(args.model)
    spread_classes(config)
    if str(config.model.type).endswith("TiledDetector"):
        from tasks.detection.tiles import SCALE_FACTOR

        # It resizes tiles by itself; the detector alone takes whole images, at the scale of tiles.
        scale = config.model.get("scale_factor", SCALE_FACTOR)
        resize = {"type": "Resize", "scale_factor": scale, "keep_ratio": True}
        for dataset in innermost(config.get("test_dataloader")):
            dataset.pipeline.insert(1, resize)
    name = Path(args.model).stem
    return publish_checkpoint(config, args.checkpoint, args.folder, name, card, wrappers, results)


def build(name: str, settings: list[str]) -> nn.Module:
    """Return the plain network that ``timm:NAME`` is, with random weights."""
    import timm

    pairs = (setting.partition("=") for setting in settings)
    return timm.create_model(name.removeprefix("timm:"), **{k: value_of(v) for k, _, v in pairs})


def load_folder(folder: Path, blocks: list[str] | None) -> nn.Module:
    """Return the network of a folder of transformers, converted where a Dr²Net was saved."""
    from dr2net.publishing import transformers_folder

    model = transformers_folder.load(folder)
    pair = saved_coefficients(folder)
    return model if pair is None else dr2net.convert(model, *pair, blocks=blocks)


def value_of(text: str) -> object:
    """Return the Python value that ``text`` writes, or the text."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def load(model: nn.Module, path: Path, blocks: list[str] | None) -> nn.Module:
    """Load a file into the network, which is converted first where the file is a Dr²Net's."""
    state = read(path)
    if any(name.rpartition(".")[2] == "coefficients" for name in state):
        dr2net.convert(model, blocks=blocks)
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ValueError(
            f"{path} is not of this {type(model).__name__}: give the options that it was built "
            f"with (--model-args, --blocks). {error}"
        ) from error
    return model


def read(path: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a ``.safetensors`` file, or of one of ``torch.save``.

    Under ``state_dict_ema``, ``model_ema``, ``state_dict`` or ``model``, as timm's and others'
    training scripts save them, in the order in which timm takes them; or the file itself; without
    the ``module.`` of wrappers.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: opening the file would run code from it; it is damaged, or holds no weights.
    """
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # timm saves its command line
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is damaged, or holds more than weights, which is refused: save its state_dict "
            f"alone. {error}"
        ) from error
    except Exception as error:  # whatever the bytes of another kind of file lead pickle to
        raise ValueError(f"{path} is damaged or truncated: {error!r}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}, not a dict of weights")
    for key in ("state_dict_ema", "model_ema", "state_dict", "model"):
        if isinstance(found.get(key), dict):
            print(f"taking {key} of {path}")
            found = found[key]
            break
    return {name.removeprefix("module."): tensor for name, tensor in found.items()}


if __name__ == "__main__":
    main()
