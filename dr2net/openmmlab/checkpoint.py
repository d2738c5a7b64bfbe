"""Checkpoint files: opened without running code from them, saved so that a kill cannot spoil them.

``install()`` replaces the loaders of mmengine's ``CheckpointLoader``. The maintained mmengine tries
``torch.load(weights_only=True)`` and on refusal falls back to plain unpickling, which runs any
code the file holds; here a file that needs more than tensors, plain containers and mmengine's own
log history is refused, unless ``trust_checkpoints(True)`` was called (``--trust-checkpoint`` of the
tools, ``trust_checkpoint = True`` in a config). ``.safetensors`` files are opened by safetensors.

Files in another project's layout are brought into mmengine's by converters, which a task registers
with ``register_checkpoint_converter``.
"""

import argparse
import errno
import logging
import os
import pickle
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import mmengine.runner.checkpoint as mmengine_checkpoint
import numpy as np
import torch
from mmengine.dist import get_dist_info
from mmengine.fileio import LocalBackend, register_backend
from mmengine.logging import HistoryBuffer, print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import CheckpointLoader

from ..chain import ReversibleChain
from ..coefficients import from_state

Converter = Callable[[dict], dict | None]
MapLocation = torch.device | str | None

# What network file systems and those of FUSE answer that do not do it, or not for folders.
NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EACCES, errno.ENOSYS)

_converters: list[Converter] = []
_trusted = False
_whole = False
_mmengine_load_state_dict = mmengine_checkpoint.load_state_dict


class UntrustedCheckpointError(RuntimeError):
    """A checkpoint needs more than tensors and plain containers to be opened."""


class UnmatchedCheckpointError(ValueError):
    """Nothing of a checkpoint fits the model, which would go on with random weights."""


def install() -> None:
    """Make mmengine load and check checkpoints through this module; a second call is harmless."""
    register = CheckpointLoader.register_scheme
    register("", load_from_local, force=True)
    register(["http://", "https://"], load_from_http, force=True)
    register(["torchvision://", "modelzoo://"], load_from_torchvision, force=True)
    register(["openmmlab://", "open-mmlab://"], load_from_openmmlab, force=True)
    # These loaders of mmengine end in unpickling and have no seam to stop it.
    register(
        ["mmcls://", "pavi://", r"(\S+\:)?s3://", r"(\S+\:)?petrel://"],
        load_from_unsupported,
        force=True,
    )
    mmengine_checkpoint.load_state_dict = load_state_dict


def trust_checkpoints(trusted: bool) -> None:
    """Choose whether files that run code when opened are opened; by default they are refused."""
    global _trusted
    _trusted = trusted


@contextmanager
def expect_whole_models() -> Iterator[None]:
    """Each checkpoint must fill its model, as for a test; outside of the context it need not."""
    global _whole
    _whole = True
    try:
        yield
    finally:
        _whole = False


def register_checkpoint_converter(converter: Converter) -> Converter:
    """Register a function that brings a foreign checkpoint into mmengine's layout.

    Args:
        converter: Given the opened checkpoint, a dict. Returns a new checkpoint,
            ``{"state_dict": ...}``, or None where the file is not in its format, to be recognised
            by its keys.
    """
    _converters.append(converter)
    return converter


def open_checkpoint(path: str | os.PathLike, map_location: MapLocation = None) -> dict:
    """``read_checkpoint``, then what the registered converters make of a foreign checkpoint."""
    checkpoint = read_checkpoint(path, map_location)
    for converter in _converters:
        converted = converter(checkpoint)
        if converted is not None:
            return converted
    return checkpoint


def read_checkpoint(path: str | os.PathLike, map_location: MapLocation = None) -> dict:
    """Read a checkpoint file without running code from it, as it is.

    Args:
        path: A local file: ``.safetensors``, or anything that ``torch.save`` wrote.
        map_location: The device to put the tensors on.

    Raises:
        FileNotFoundError: There is no such file.
        UntrustedCheckpointError: The file needs more than is safe; the error names it.
        ValueError: The file is empty, truncated, damaged, or holds something else than a dict.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    if path.stat().st_size == 0:
        raise ValueError(f"checkpoint {path} is empty: the copy or download of it failed")
    open_file = _open_safetensors if path.suffix == ".safetensors" else _open_pickle
    checkpoint = open_file(path, map_location)
    if not isinstance(checkpoint, dict):
        raise ValueError(
            f"checkpoint {path} holds a {type(checkpoint).__name__}, not a dict of weights"
        )
    return checkpoint


def _open_safetensors(path: Path, map_location: MapLocation) -> dict:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    device = "cpu" if map_location is None else str(map_location)
    try:
        return load_file(path, device=device)
    except SafetensorError as error:
        raise ValueError(f"checkpoint {path} is damaged: {error}") from error


def _open_pickle(path: Path, map_location: MapLocation) -> object:
    try:
        with torch.serialization.safe_globals(_safe_globals()):
            return torch.load(path, map_location=map_location, weights_only=not _trusted)
    except pickle.UnpicklingError as error:
        refused = re.search(
            r"(?:GLOBAL|[Uu]nsupported class|function|got <class) '?([^\s'>]+)", str(error)
        )
        if refused is None:
            raise ValueError(
                f"checkpoint {path} is damaged, or was not written by torch.save: {error}"
            ) from error
        raise UntrustedCheckpointError(
            f"checkpoint {path} was refused: opening it would run {refused[1]}, "
            "which is not among the tensors and plain containers that are opened safely. If you "
            "trust where the file came from, say so with --trust-checkpoint (or trust_checkpoint = "
            "True in the config), or save its weights alone with torch.save or as .safetensors."
        ) from error
    except Exception as error:  # whatever the bytes of another kind of file lead pickle to
        raise ValueError(f"checkpoint {path} is damaged or truncated: {error!r}") from error


def _safe_globals() -> list[Any]:
    """List what mmengine's own checkpoints hold besides tensors and plain containers."""
    # numpy pickles arrays and scalars by these two functions, under its private module's name.
    array: Any = np.empty(0).__reduce__()[0]
    scalar: Any = np.float64(0).__reduce__()[0]
    return [
        HistoryBuffer,
        # HistoryBuffer pickles its methods by getattr, which would reach any attribute.
        (_history_buffer_method, "builtins.getattr"),
        np.ndarray,
        np.dtype,
        *(
            (function, f"{module}.multiarray.{function.__name__}")
            for function in (array, scalar)
            for module in ("numpy.core", "numpy._core")
        ),
        *{type(np.dtype(code)) for code in "?SU" + np.typecodes["AllInteger"] + "efd"},
        # The VideoMAE and MAE repositories save their command line; it holds plain values.
        argparse.Namespace,
    ]


def _history_buffer_method(owner: type, name: str) -> Callable:
    if owner is not HistoryBuffer or name not in ("min", "max", "current", "mean"):
        raise pickle.UnpicklingError(f"GLOBAL builtins.getattr({owner!r},{name!r}) is not allowed")
    return getattr(HistoryBuffer, name)


# mmengine logs a loader by its name after "load_from_", hence these names.


def load_from_local(filename: str, map_location: MapLocation = None) -> dict:
    """Open a local checkpoint; see ``open_checkpoint``."""
    return open_checkpoint(filename, map_location)


def load_from_http(filename: str, map_location: MapLocation = None) -> dict:
    """Download a checkpoint into torch's hub cache, once per node, and open it."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / filename.split("?")[0].rsplit("/", 1)[-1]
    rank, world_size = get_dist_info()
    if int(os.environ.get("LOCAL_RANK", rank)) == 0 and not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(filename, str(path), progress=rank == 0)
    if world_size > 1:
        torch.distributed.barrier()
    return open_checkpoint(path, map_location)


def load_from_torchvision(filename: str, map_location: MapLocation = None) -> dict:
    """Open one of torchvision's models by its name, as ``torchvision://resnet50``."""
    return _load_from_zoo(filename, mmengine_checkpoint.get_torchvision_models(), map_location)


def load_from_openmmlab(filename: str, map_location: MapLocation = None) -> dict:
    """Open one of the models that mmengine lists by its name, as ``openmmlab://NAME``."""
    return _load_from_zoo(filename, mmengine_checkpoint.get_external_models(), map_location)


def _load_from_zoo(filename: str, urls: dict[str, str], map_location: MapLocation) -> dict:
    name = filename.split("://", 1)[1]
    if name not in urls:
        raise KeyError(f"{filename}: mmengine knows no model {name!r} in this zoo")
    return load_from_http(urls[name], map_location)


def load_from_unsupported(filename: str, map_location: MapLocation = None) -> dict:
    """Refuse a scheme whose loader in mmengine unpickles whatever it is given."""
    raise ValueError(
        f"{filename}: checkpoints are loaded from local files, http(s)://, torchvision:// and "
        "openmmlab://; download this one and give the path of the file"
    )


def within_wrappers(model: torch.nn.Module) -> torch.nn.Module:
    """Return the model that wrappers of DDP and FSDP, and of tests on augmented inputs, hold."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = cast(torch.nn.Module, model.module)
    return model


def load_state_dict(
    module: torch.nn.Module,
    state_dict: dict,
    strict: bool = False,
    logger: logging.Logger | str | None = None,
) -> None:
    """Load weights as mmengine does, and raise where none of them fits the model.

    mmengine loads with ``strict=False``, so that a file of another model leaves the network as it
    was initialised, with no more than a warning. Logs how many parameters matched.

    Raises:
        UnmatchedCheckpointError: No parameter of the model, or none of its ``backbone``, has a
            namesake of the same shape in ``state_dict``; or the file is a Dr²Net's and the model
            has no second residual there; or, in a test, parameters or (α, β) are missing.
    """
    module = within_wrappers(module)
    shapes = {name: parameter.shape for name, parameter in module.named_parameters()}
    found = [name for name in shapes if name in state_dict]
    matched = [name for name in found if state_dict[name].shape == shapes[name]]
    own = module.state_dict().keys()
    unexpected = [name for name in state_dict if name not in own]
    print_log(
        f"checkpoint: {len(matched)} of the model's {len(shapes)} parameters matched, "
        f"{len(shapes) - len(found)} missing from the file, "
        f"{len(found) - len(matched)} of another shape, {len(unexpected)} unexpected in the file",
        logger="current" if logger is None else logger,
    )
    for part in ("", "backbone."):
        wanted = [name for name in shapes if name.startswith(part)]
        if wanted and not any(name.startswith(part) for name in matched):
            raise UnmatchedCheckpointError(
                f"no weight of the checkpoint fits the model{'’s backbone' if part else ''}: the "
                f"model has {wanted[0]} {tuple(shapes[wanted[0]])} and {len(wanted) - 1} more, the "
                f"checkpoint {_describe(state_dict)}. Give the checkpoint of this architecture; "
                "where its weights are a part of a larger file, name the part by init_cfg's prefix."
            )
    _refuse_another_function(module, state_dict)
    missing = [name for name in shapes if name not in matched]
    if _whole and missing:
        raise UnmatchedCheckpointError(
            f"{len(missing)} parameters of the model are not in the checkpoint or of another shape "
            f"there, {missing[0]} {tuple(shapes[missing[0]])} among them: there would be random "
            "numbers in their place. Give the checkpoint that this config's training has written, "
            "with as many classes."
        )
    _mmengine_load_state_dict(module, state_dict, strict, logger)


def _refuse_another_function(module: torch.nn.Module, state_dict: dict) -> None:
    """Raises UnmatchedCheckpointError where the same weights are used by another equation."""
    own = {
        f"{name}.coefficients".lstrip("."): part
        for name, part in module.named_modules()
        if isinstance(part, ReversibleChain)
    }
    held = {name: pair for name, pair in coefficients_in(state_dict).items() if pair[1] > 0}
    lost = sorted(held.keys() - own.keys())
    if lost:
        raise UnmatchedCheckpointError(
            f"the checkpoint is of a Dr²Net at (α, β) = {held[lost[0]]}, and the model has no "
            f"chain that takes {lost[0]}: convert it in the config (Dr2NetHook, which runners call "
            "and inferencers do not, or Dr2NetBackbone), or make the checkpoint a plain one by "
            "tools/publish.py."
        )
    plain = [name for name, chain in own.items() if name not in state_dict and chain.rebuilds()]
    if _whole and plain:
        pair = own[plain[0]].get_coefficients()
        raise UnmatchedCheckpointError(
            f"the config makes the model a Dr²Net at (α, β) = {pair}, and the checkpoint, which "
            f"has no {plain[0]}, is a plain network's: test it with a plain config, or at alpha=1, "
            "beta=0."
        )


def coefficients_in(state_dict: dict) -> dict[str, tuple[float, float]]:
    """Return (α, β) of each chain that a state_dict is of, by the name of its entry."""
    found = {
        name: value
        for name, value in state_dict.items()
        if name.rpartition(".")[2] == "coefficients"
        and isinstance(value, torch.Tensor)
        and value.dtype == torch.int64
        and value.shape == (3,)
    }
    return {name: from_state(value.tolist())[:2] for name, value in found.items()}


def _describe(state_dict: dict) -> str:
    if not state_dict:
        return "nothing"
    name, value = next(iter(state_dict.items()))
    shape = f" {tuple(value.shape)}" if isinstance(value, torch.Tensor) else ""
    return f"{name}{shape} and {len(state_dict) - 1} more"


@register_backend("atomic_local", force=True)
class AtomicLocalBackend(LocalBackend):
    """mmengine's local files, written so that a kill leaves the old file or the new one.

    For ``CheckpointHook(backend_args=dict(backend="atomic_local"))``: the bytes go to a
    neighbouring ``*.partial`` file, to the disk, and then take the place of the old file.
    """

    def put(self, obj: bytes | memoryview, filepath: str | Path) -> None:
        """Write ``obj`` to ``filepath``, whole or not at all."""
        path = Path(filepath)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        try:
            with partial.open("wb") as file:
                file.write(obj)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            with suppress(FileNotFoundError):
                partial.unlink()
            raise
        _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    """Bring a rename in a folder to the disk, where the file system does that for folders."""
    try:
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:
            raise


def find_resumable_checkpoint(work_dir: str | os.PathLike) -> Path | None:
    """Return the newest checkpoint of a run, or None where there is none.

    That is what ``last_checkpoint`` names. A kill may leave that file empty or naming a file that
    is gone, and a work folder may have been moved; then it is the ``epoch_N.pth`` or ``iter_N.pth``
    of the largest N.
    """
    work_dir = Path(work_dir)
    pointer = work_dir / "last_checkpoint"
    if pointer.is_file():
        named = pointer.read_text().strip()
        if named:
            for path in (Path(named), work_dir / Path(named).name):
                if path.is_file():
                    return path
    numbered = {
        int(match[1]): path
        for path in work_dir.glob("*.pth")
        if (match := re.fullmatch(r"(?:epoch|iter)_(\d+)\.pth", path.name))
    }
    return numbered[max(numbered)] if numbered else None
