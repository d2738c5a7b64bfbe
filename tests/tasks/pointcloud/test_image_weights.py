import pytest

pytest.importorskip("mmengine")
pytest.importorskip("timm")
import tasks.pointcloud  # noqa: F401  # isort: skip

import timm
import torch
from mmengine.registry import MODELS
from mmengine.runner.checkpoint import load_checkpoint

from dr2net.openmmlab.checkpoint import UnmatchedCheckpointError, UntrustedCheckpointError
from tasks.pointcloud import convert_image_checkpoint, image_weights

WIDTH = 32
BACKBONE = {"type": "PointViT", "embed_dims": WIDTH, "depth": 2, "num_heads": 2, "group_size": 8}


def segmentor(backbone=BACKBONE, wrapped=False, **options):
    backbone = backbone | options
    if wrapped:
        backbone = {"type": "Dr2NetBackbone", "backbone": backbone}
    head = {"type": "FeaturePropagationHead", "in_channels": (7, WIDTH // 2, WIDTH)}
    return MODELS.build({"type": "PointCloudSegmentor", "backbone": backbone, "decode_head": head})


def image_vit(**options):
    return timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=WIDTH, num_heads=2, depth=2, num_classes=7, **options
    )


def deit():
    return {"model": image_vit().state_dict()}


def distilled_deit():
    weights = image_vit().state_dict()
    extra = {"dist_token": torch.zeros(1, 1, WIDTH), "head_dist.weight": torch.zeros(7, WIDTH)}
    return {"model": weights | extra}


def mae():
    """As pretrained: no head, a decoder."""
    weights = {k: v for k, v in image_vit().state_dict().items() if not k.startswith("head")}
    return {
        "model": weights
        | {"mask_token": torch.zeros(1, 1, 8), "decoder_embed.bias": torch.zeros(8)}
    }


def bare_timm():
    return image_vit().state_dict()


FILES = [deit, distilled_deit, mae, bare_timm]


def save(checkpoint, tmp_path):
    torch.save(checkpoint, tmp_path / "weights.pth")
    return str(tmp_path / "weights.pth")


@pytest.mark.parametrize("wrapped", [False, True], ids=["conventional", "Dr²Net"])
@pytest.mark.parametrize("make", FILES)
def test_class_token_blocks_and_norm_are_loaded(make, wrapped, tmp_path):
    checkpoint = make()
    model = segmentor(wrapped=wrapped)
    load_checkpoint(model, save(checkpoint, tmp_path), logger="silent")
    loaded = model.backbone.state_dict()
    weights = checkpoint.get("model", checkpoint)
    names = [name for name in loaded if name.startswith(("blocks.", "norm.", "cls_token"))]
    names = [name for name in names if "coefficients" not in name]
    assert len(names) == 2 * 12 + 3
    assert all(torch.equal(loaded[name], weights[name]) for name in names)


def test_init_cfg_takes_the_same_file(tmp_path):
    checkpoint = deit()
    path = save(checkpoint, tmp_path)
    model = segmentor(init_cfg={"type": "Pretrained", "checkpoint": path, "prefix": "backbone."})
    model.init_weights()
    expected = checkpoint["model"]["blocks.1.mlp.fc2.weight"]
    assert torch.equal(model.backbone.blocks[1].mlp.fc2.weight, expected)


@pytest.mark.parametrize("names", ["timm", "BEiT"])
def test_layer_scale_is_multiplied_into_the_layer_before_it(names):
    vit = image_vit(init_values=0.5).eval()
    for block in vit.blocks:
        torch.nn.init.uniform_(block.ls1.gamma)
        torch.nn.init.uniform_(block.ls2.gamma)
    weights = vit.state_dict()
    if names == "BEiT":
        weights = {
            name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): value
            for name, value in weights.items()
        }
    model = segmentor().eval()
    model.load_state_dict(convert_image_checkpoint(weights)["state_dict"], strict=False)
    x = torch.randn(1, 9, WIDTH)
    with torch.no_grad():
        found = model.backbone.norm(model.backbone.blocks(x, torch.zeros_like(x)))
        # float32 rounding, by products in another order
        torch.testing.assert_close(found, vit.norm(vit.blocks(x)), rtol=1e-5, atol=1e-5)


def test_what_is_taken_and_left_is_logged(monkeypatch):
    logged = []
    monkeypatch.setattr(image_weights, "print_log", lambda message, logger: logged.append(message))
    convert_image_checkpoint(deit())
    assert logged == [
        "checkpoint of an image model: 27 weights of class token, blocks and norm taken, 0 "
        "LayerScales multiplied into them, 5 left: pos_embed, patch_embed.proj.weight, "
        "patch_embed.proj.bias, head.weight, head.bias"
    ]


def test_another_width_is_a_clear_error(tmp_path):
    model = segmentor(embed_dims=48)
    with pytest.raises(UnmatchedCheckpointError, match=r"\(1, 1, 48\).*checkpoint .*\(1, 1, 32\)"):
        load_checkpoint(model, save(deit(), tmp_path), logger="silent")


def test_blocks_of_another_kind_are_refused():
    vit = image_vit(qk_norm=True)
    with pytest.raises(ValueError, match=r"blocks\.0\.attn\.q_norm\.weight and 7 more weights"):
        convert_image_checkpoint(vit.state_dict())


def test_files_that_run_code_are_refused(tmp_path):
    checkpoint = deit() | {"args": RunsCode()}
    with pytest.raises(UntrustedCheckpointError):
        load_checkpoint(segmentor(), save(checkpoint, tmp_path), logger="silent")


class RunsCode:
    def __reduce__(self):
        return print, ("opened",)


@pytest.mark.parametrize(
    "checkpoint",
    [
        {"state_dict": {"backbone.blocks.0.attn.qkv.weight": torch.zeros(1)}},
        {"model": {"conv1.weight": torch.zeros(1)}},
        {
            "model": image_vit().state_dict()
            | {"patch_embed.proj.weight": torch.zeros(8, 3, 2, 8, 8)}
        },
        {"model": 3},
    ],
    ids=["ours", "another network", "a video ViT", "no weights"],
)
def test_other_files_are_left_as_they_are(checkpoint):
    assert convert_image_checkpoint(checkpoint) is None
