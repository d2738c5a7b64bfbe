"""Files in the original VideoMAE format, and an independent small copy of its network."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("mmengine")
pytest.importorskip("mmcv")
from tasks.video import convert_videomae_checkpoint, videomae_checkpoint  # isort: skip

from mmaction.registry import MODELS
from mmengine.registry import init_default_scope
from mmengine.runner.checkpoint import load_checkpoint

DIM, HEADS, DEPTH, CLASSES = 192, 3, 2, 5
FRAMES, SIZE = 4, 32


def make_encoder(dim=DIM, depth=DEPTH):
    """Weights by the names of VideoMAE's modeling_finetune.py, without its last norm and head."""
    shapes = {"patch_embed.proj.weight": (dim, 3, 2, 16, 16), "patch_embed.proj.bias": (dim,)}
    for block in range(depth):
        shapes |= {
            f"blocks.{block}.{name}": shape
            for name, shape in {
                "norm1.weight": (dim,),
                "norm1.bias": (dim,),
                "attn.q_bias": (dim,),
                "attn.v_bias": (dim,),
                "attn.qkv.weight": (3 * dim, dim),
                "attn.proj.weight": (dim, dim),
                "attn.proj.bias": (dim,),
                "norm2.weight": (dim,),
                "norm2.bias": (dim,),
                "mlp.fc1.weight": (4 * dim, dim),
                "mlp.fc1.bias": (4 * dim,),
                "mlp.fc2.weight": (dim, 4 * dim),
                "mlp.fc2.bias": (dim,),
            }.items()
        }
    return {name: 0.05 * torch.randn(shape) for name, shape in shapes.items()}


def pretraining_file():
    """As run_mae_pretraining.py saves it, with the start of a decoder."""
    weights = {f"encoder.{name}": value for name, value in make_encoder().items()}
    weights |= {f"encoder.norm.{kind}": torch.randn(DIM) for kind in ("weight", "bias")}
    weights |= {f"decoder.{name}": value for name, value in make_encoder(96, 1).items()}
    weights |= {
        "encoder_to_decoder.weight": torch.randn(96, DIM),
        "mask_token": torch.randn(1, 1, 96),
    }
    return {"model": weights, "epoch": 799}


def finetuned_file(key="model"):
    """As run_class_finetuning.py saves it."""
    weights = make_encoder()
    weights |= {f"fc_norm.{kind}": torch.randn(DIM) for kind in ("weight", "bias")}
    weights |= {"head.weight": torch.randn(CLASSES, DIM), "head.bias": torch.randn(CLASSES)}
    return {key: weights}


def videomae_forward(w, clips):
    """What modeling_finetune.py computes of clips (N, 3, T, H, W): logits (N, classes)."""
    x = F.conv3d(
        clips, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=(2, 16, 16)
    )
    x = x.flatten(2).transpose(1, 2)
    n, tokens, dim = x.shape
    position, channel = np.arange(tokens)[:, None], np.arange(dim)[None]
    angle = position / np.power(10000, 2 * (channel // 2) / dim)
    table = np.where(channel % 2 == 0, np.sin(angle), np.cos(angle))
    x = x + torch.tensor(table, dtype=torch.float)
    for block in range(DEPTH):
        p = {k.split(".", 2)[2]: v for k, v in w.items() if k.startswith(f"blocks.{block}.")}
        h = F.layer_norm(x, (dim,), p["norm1.weight"], p["norm1.bias"], 1e-6)
        bias = torch.cat([p["attn.q_bias"], torch.zeros(dim), p["attn.v_bias"]])
        qkv = F.linear(h, p["attn.qkv.weight"], bias)
        q, k, v = qkv.reshape(n, tokens, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        weights = (q * (dim // HEADS) ** -0.5 @ k.transpose(-2, -1)).softmax(-1)
        h = (weights @ v).transpose(1, 2).reshape(n, tokens, dim)
        x = x + F.linear(h, p["attn.proj.weight"], p["attn.proj.bias"])
        h = F.layer_norm(x, (dim,), p["norm2.weight"], p["norm2.bias"], 1e-6)
        h = F.gelu(F.linear(h, p["mlp.fc1.weight"], p["mlp.fc1.bias"]))
        x = x + F.linear(h, p["mlp.fc2.weight"], p["mlp.fc2.bias"])
    x = F.layer_norm(x.mean(1), (dim,), w["fc_norm.weight"], w["fc_norm.bias"], 1e-6)
    return F.linear(x, w["head.weight"], w["head.bias"])


BACKBONE = {
    "type": "VisionTransformer",
    "img_size": SIZE,
    "embed_dims": DIM,
    "depth": DEPTH,
    "num_heads": HEADS,
    "num_frames": FRAMES,
}


def build_recognizer(backbone):
    init_default_scope("mmaction")
    head = {"type": "TimeSformerHead", "num_classes": CLASSES, "in_channels": DIM}
    return MODELS.build({"type": "Recognizer3D", "backbone": backbone, "cls_head": head})


def save(checkpoint, tmp_path):
    # The name says nothing of the format: it is recognised by the keys.
    torch.save(checkpoint, tmp_path / "file.bin")
    return str(tmp_path / "file.bin")


@pytest.mark.parametrize("key", ["model", "module"])
def test_finetuned_file_computes_what_videomae_computes(tmp_path, key):
    checkpoint = finetuned_file(key)
    model = build_recognizer(BACKBONE).eval()
    load_checkpoint(model, save(checkpoint, tmp_path), strict=False, logger="silent")
    clips = torch.randn(2, 3, FRAMES, SIZE, SIZE)
    with torch.no_grad():
        logits = model.cls_head(model.backbone(clips))
    # float32 rounding over two blocks, in another order of operations
    torch.testing.assert_close(
        logits, videomae_forward(checkpoint[key], clips), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    "backbone",
    [BACKBONE, {"type": "Dr2NetBackbone", "backbone": BACKBONE}],
    ids=["conventional", "Dr²Net"],
)
def test_pretraining_file_fills_the_whole_backbone_but_the_norm(tmp_path, backbone):
    checkpoint = pretraining_file()
    model = build_recognizer(backbone)
    load_checkpoint(model, save(checkpoint, tmp_path), logger="silent")
    weights = model.state_dict()
    converted = convert_videomae_checkpoint(checkpoint)["state_dict"]
    for name, value in converted.items():
        assert torch.equal(weights[name], value)
    parameters = {name for name, _ in model.backbone.named_parameters(prefix="backbone")}
    assert parameters - set(converted) == {"backbone.fc_norm.weight", "backbone.fc_norm.bias"}


def test_init_cfg_takes_the_backbone_of_a_pretraining_file(tmp_path):
    checkpoint = pretraining_file()
    path = save(checkpoint, tmp_path)
    init_cfg = {"type": "Pretrained", "checkpoint": path, "prefix": "backbone."}
    model = build_recognizer(BACKBONE | {"init_cfg": init_cfg})
    model.init_weights()
    expected = checkpoint["model"]["encoder.blocks.1.mlp.fc2.weight"]
    assert torch.equal(model.backbone.blocks[1].mlp.layers[1].weight, expected)


def test_what_is_dropped_is_logged(monkeypatch):
    logged = []
    monkeypatch.setattr(
        videomae_checkpoint, "print_log", lambda message, logger: logged.append(message)
    )
    convert_videomae_checkpoint(pretraining_file())
    assert logged == [
        "checkpoint of the original VideoMAE repository: 28 weights renamed, 19 dropped: "
        "encoder.* (2), decoder.* (15), encoder_to_decoder, mask_token"
    ]


@pytest.mark.parametrize(
    "checkpoint",
    [
        {"state_dict": {"backbone.patch_embed.projection.weight": torch.zeros(1)}},
        {"model": {"conv1.weight": torch.zeros(1)}},
        {"model": make_encoder() | {"patch_embed.proj.weight": torch.zeros(DIM, 3, 16, 16)}},
        {"model": 3},
    ],
    ids=["mmaction2", "another network", "an image ViT", "no weights"],
)
def test_other_files_are_left_as_they_are(checkpoint):
    assert convert_videomae_checkpoint(checkpoint) is None
