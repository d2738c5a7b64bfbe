"""What a folder of transformers says of (α, β), from which a network has its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from ..coefficients import from_state

__all__ = ["refuse_other_coefficients", "saved_coefficients"]


def refuse_other_coefficients(model: nn.Module, alpha: float, beta: float) -> None:
    """Raises ValueError if the weights were saved by a Dr²Net at another (α, β).

    ``save_pretrained`` of a Dr²Net saves them, and ``from_pretrained`` leaves them out, of which it
    tells in its log alone.
    """
    folders = {str(getattr(module, "name_or_path", "")) for module in model.modules()}
    for folder in sorted(folders - {""}):
        saved = saved_coefficients(Path(folder))
        if saved is not None and saved != (alpha, beta):
            raise ValueError(
                f"The weights in {folder} are of a Dr²Net at (alpha, beta) = {saved}, and this "
                f"would use them at {(alpha, beta)}: dr2net.convert(model, alpha={saved[0]}, "
                f"beta={saved[1]}), then dr2net.set_coefficients to go on from there."
            )


def saved_coefficients(folder: Path) -> tuple[float, float] | None:
    """(α, β) in the safetensors files of a folder; None where there are none, or β is 0."""
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    if not files:
        return None
    from safetensors import safe_open

    for path in files:
        with safe_open(path, "pt") as file:
            names: Any = file.keys()
            for name in names:
                if name.rpartition(".")[2] == "coefficients":
                    alpha, beta, _ = from_state(file.get_tensor(name).tolist())
                    return (alpha, beta) if beta > 0 else None
    return None
