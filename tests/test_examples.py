"""The scripts of examples/, on small networks and generated images; each has at most 40 lines."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dr2net

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name):
    """What a script defines; it is no package, and users run it as it is."""
    names = {"__name__": name}
    exec(compile((EXAMPLES / f"{name}.py").read_text(), name, "exec"), names)
    return names


@pytest.fixture
def images(tmp_path):
    """Two classes of four images each, dark and bright."""
    random = np.random.default_rng(0)
    for label, low in (("dark", 0), ("bright", 155)):
        (tmp_path / "images" / label).mkdir(parents=True)
        for number in range(4):
            pixels = random.integers(low, low + 100, (64, 64, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / label / f"{number}.png")
    return tmp_path / "images"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_has_at_most_40_lines_of_code(path):
    code = path.read_text().split('"""', 2)[2]
    assert len([line for line in code.splitlines() if line.strip()]) <= 40


@pytest.mark.filterwarnings("ignore:Reverting")
def test_timm(images):
    timm = pytest.importorskip("timm")
    main = load("timm_training")["main"]
    model = main(str(images), "test_vit", pretrained=False, epochs=2, batch=4, workers=0)
    assert not dr2net.chains(model)
    plain = timm.create_model("test_vit", num_classes=2)
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    plain.load_state_dict(model.state_dict())
    assert any(not torch.equal(value, before[name]) for name, value in plain.state_dict().items())


@pytest.mark.filterwarnings("ignore:Reverting")
def test_transformers(images, tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    pytest.importorskip("torchvision")
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        image_size=32, patch_size=8,
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "pretrained")
    settings = {"num_train_epochs": 1, "per_device_train_batch_size": 4, "use_cpu": True}
    out = str(tmp_path / "out")
    trainer = load("transformers_trainer")["main"](
        str(images), str(tmp_path / "pretrained"), out, **settings
    )
    assert trainer.state.global_step == 2
    model, found = transformers.ViTForImageClassification.from_pretrained(
        out, output_loading_info=True
    )
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    assert torch.equal(model.classifier.weight, trainer.model.classifier.weight.cpu())


def test_lightning():
    pytest.importorskip("timm")
    example = load("lightning_module")
    module = example["Finetuning"]("test_vit", steps=4, num_classes=3)
    before = [value.clone() for value in module.parameters()]
    batches = [(torch.randn(2, 3, 160, 160), torch.tensor([0, 1])) for _ in range(4)]
    example["fit"](module, batches)
    assert dr2net.get_coefficients(module.network) == (0, 1)
    assert any(not torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
