"""``tools/publish.py`` on checkpoints of timm's and transformers' own training loops."""

from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import dr2net
from tools.publish import main, read

timm = pytest.importorskip("timm")

SETTINGS = {"img_size": 32, "depth": 2, "num_classes": 5}
ARGS = ["--model-args", *(f"{key}={value}" for key, value in SETTINGS.items())]


def network(pair=None):
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", **SETTINGS)
    return model if pair is None else dr2net.convert(model, *pair)


@pytest.mark.filterwarnings("ignore:This .* left")
def test_a_checkpoint_of_timms_training_becomes_a_plain_network(tmp_path, capsys):
    model = network((0.75, 0.25))
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"state_dict": state, "args": Namespace(lr=0.1)}, tmp_path / "last.pth.tar")
    folder = tmp_path / "mine"
    main(["timm:vit_tiny_patch16_224", str(tmp_path / "last.pth.tar"), str(folder), *ARGS])
    assert capsys.readouterr().out.splitlines()[-1] == f"wrote {folder}"
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True)
    plain = dr2net.revert(model)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded.eval()(images), plain.eval()(images))


def test_a_dr2net_stays_one_by_the_flag(tmp_path):
    save_file(network((0.0, 1.0)).state_dict(), tmp_path / "weights.safetensors")
    arguments = ["timm:vit_tiny_patch16_224", str(tmp_path / "weights.safetensors")]
    main([*arguments, str(tmp_path / "mine"), "--reversible", *ARGS])
    loaded = dr2net.from_pretrained(tmp_path / "mine")
    assert dr2net.get_coefficients(loaded) == (0.0, 1.0)


@pytest.mark.filterwarnings("ignore:This .* left")
def test_a_folder_of_transformers_becomes_a_plain_one(tmp_path):
    transformers = pytest.importorskip("transformers")
    settings = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.ViTConfig(**settings, image_size=32, patch_size=8, num_labels=5)
    model = dr2net.convert(transformers.ViTForImageClassification(config).eval(), 0.75, 0.25)
    model.save_pretrained(tmp_path / "trained")
    main(["transformers", str(tmp_path / "trained"), str(tmp_path / "mine")])
    loaded = transformers.ViTForImageClassification.from_pretrained(tmp_path / "mine").eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(images).logits, dr2net.revert(model)(images).logits)
    assert "(α, β) = (0.75, 0.25)" in (tmp_path / "mine/README.md").read_text()


def test_a_file_of_another_network_is_refused(tmp_path):
    torch.save(network().state_dict(), tmp_path / "weights.pth")
    arguments = ["timm:vit_tiny_patch16_224", str(tmp_path / "weights.pth"), str(tmp_path / "out")]
    with pytest.raises(ValueError, match="give the options that it was built with"):
        main([*arguments, "--model-args", "img_size=32"])
    assert not (tmp_path / "out").exists()


def test_averaged_weights_go_first_as_in_timm(tmp_path, capsys):
    saved = {"state_dict": {"w": torch.zeros(1)}, "state_dict_ema": {"module.w": torch.ones(1)}}
    torch.save(saved, tmp_path / "last.pth.tar")
    assert read(tmp_path / "last.pth.tar") == {"w": torch.ones(1)}
    assert "taking state_dict_ema of" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"junk" * 100, b"no weights"])
def test_a_damaged_file_is_named(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        read(tmp_path / name)


def test_a_file_of_no_weights_is_named(tmp_path):
    torch.save([1, 2], tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"weights\.pth holds a list, not a dict"):
        read(tmp_path / "weights.pth")
    with pytest.raises(FileNotFoundError, match=r"none\.pth does not exist"):
        read(tmp_path / "none.pth")


def test_a_file_that_runs_code_is_refused(tmp_path):
    torch.save({"state_dict": {}, "extra": Path()}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="holds more than weights, which is refused"):
        read(tmp_path / "weights.pth")


def test_a_result_goes_to_the_file_that_the_hub_reads(tmp_path, capsys):
    torch.save(network().state_dict(), tmp_path / "weights.pth")
    arguments = ["timm:vit_tiny_patch16_224", str(tmp_path / "weights.pth"), str(tmp_path / "out")]
    main([*arguments, *ARGS, "--result", "own/noise", "top-1", "61.5"])
    written = (tmp_path / "out/.eval_results/own--noise.yaml").read_text()
    assert written == '- dataset:\n    id: "own/noise"\n    task_id: "top-1"\n  value: 61.5\n'
    with pytest.raises(SystemExit):
        main([*arguments, *ARGS, "--result", "own/noise", "top-1", "much"])
    assert "--result DATASET TASK VALUE: could not convert" in capsys.readouterr().err


def test_a_model_that_is_none_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["vit", "weights.pth", str(tmp_path / "out")])
    assert "MODEL vit: neither CONFIG.py, timm:NAME nor transformers" in capsys.readouterr().err
