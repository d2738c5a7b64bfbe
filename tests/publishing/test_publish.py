"""Published folders load into the library that the network came from, and give the same bits."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import dr2net
from dr2net.publishing.folders import new_folder

timm = pytest.importorskip("timm")

CARD = {"data": "5 kinds of noise", "metric": "top-1 61.5 %", "licence": "apache-2.0"}
LOAD = {
    "timm": "import timm; model = timm.create_model('local-dir:folder', pretrained=True)",
    "transformers": (
        "import transformers\n"
        "model = transformers.ViTForImageClassification.from_pretrained('folder')"
    ),
}


def network(library):
    torch.manual_seed(0)
    if library == "timm":
        return timm.create_model(
            "vit_tiny_patch16_224", img_size=32, depth=2, num_classes=5, drop_path_rate=0.1
        ).eval()
    transformers = pytest.importorskip("transformers", minversion="5.23")
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        num_labels=5,
    )
    return transformers.ViTForImageClassification(config).eval()


def logits(model, images):
    with torch.no_grad():
        output = model(images)
    return output if isinstance(output, torch.Tensor) else output.logits


def finetuned(model):
    """A step at the default point of the line."""
    dr2net.convert(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    output = model(images())
    (output if isinstance(output, torch.Tensor) else output.logits).square().mean().backward()
    optimizer.step()
    return model


def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


BOTH = pytest.mark.parametrize("library", ["timm", "transformers"])


@BOTH
@pytest.mark.filterwarnings("ignore:This .* left")
def test_a_process_without_dr2net_loads_what_revert_gives(library, tmp_path):
    model = finetuned(network(library))
    published = dr2net.publish(model, tmp_path / "folder", card=CARD)
    assert published == tmp_path / "folder"
    assert dr2net.get_coefficients(model) == (0.875, 0.125)  # it is left as it was
    expected = logits(dr2net.revert(model), images())
    torch.save(images(), tmp_path / "images.pt")
    script = f"""
import sys, torch
sys.modules["dr2net"] = None  # its import is an error
{LOAD[library]}
model.eval()
images = torch.load("images.pt")
with torch.no_grad():
    output = model(images)
torch.save(getattr(output, "logits", output), "found.pt")
"""
    environment = {"PATH": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(tmp_path / "found.pt"), expected)
    if library == "timm":  # transformers renames when it saves and when it loads
        weights = load_file(published / "model.safetensors")
        network(library).load_state_dict(weights, strict=True)


@pytest.mark.filterwarnings("ignore:This .* left")
def test_the_card_says_what_it_is_told_and_how_to_load(tmp_path):
    dr2net.publish(finetuned(network("timm")), tmp_path / "folder", card=CARD)
    card = (tmp_path / "folder/README.md").read_text()
    assert card.startswith('---\nlibrary_name: timm\nlicense: "apache-2.0"\n')
    assert 'timm.create_model("local-dir:folder", pretrained=True)' in card
    assert "- Trained on: 5 kinds of noise\n" in card
    assert "- Memory of training: not stated\n" in card
    assert "(α, β) = (0.875, 0.125)" in card


def test_unknown_entries_of_the_card_are_refused_and_leave_nothing(tmp_path):
    with pytest.raises(ValueError, match="card has author: use data, recipe"):
        dr2net.publish(network("timm"), tmp_path / "folder", card={"author": "me"})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("reversible", [True, False])
@pytest.mark.filterwarnings("ignore:This .* left")
def test_the_hub_reads_the_results(reversible, tmp_path):
    yaml = pytest.importorskip("yaml")
    hub = pytest.importorskip("huggingface_hub", minversion="1.4")
    results = [("own/noise", "top-1: all", 61.5), ("a/b.c", "t", 1), ("own/noise", "top-5", 1e-7)]
    model = finetuned(network("timm"))
    dr2net.publish(model, tmp_path / "folder", reversible, results=results)
    files = sorted((tmp_path / "folder/.eval_results").iterdir())
    assert [file.name for file in files] == ["a--b.c.yaml", "own--noise.yaml"]
    entries = [
        entry
        for file in files
        for entry in hub.parse_eval_result_entries(yaml.safe_load(file.read_text()))
    ]
    found = [(entry.dataset_id, entry.task_id, entry.value) for entry in entries]
    assert found == [results[1], results[0], results[2]]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (("ImageNet", "top-1", 1.0), "give its name on the Hub"),
        (("../own/noise", "top-1", 1.0), "give its name on the Hub"),
        (("own/noise--2", "top-1", 1.0), "give its name on the Hub"),
        (("own/noise", "", 1.0), "give the task's name"),
        (("own/noise", "top-1", float("nan")), "and a finite number"),
    ],
)
def test_results_that_the_hub_cannot_read_are_refused(result, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        dr2net.publish(network("timm"), tmp_path / "folder", results=[result])
    good = ("own/noise", "top-1", 1.0)
    with pytest.raises(ValueError, match="twice"):
        dr2net.publish(network("timm"), tmp_path / "folder", results=[good, good])
    assert list(tmp_path.iterdir()) == []


@BOTH
@pytest.mark.parametrize("pair", [(0.0, 1.0), (1.0, 0.125)])
def test_off_the_line_and_far_along_it_there_is_no_plain_network(library, pair, tmp_path):
    model = dr2net.convert(network(library), *pair)
    with pytest.raises(ValueError, match=f"{pair[1]}.* is another function than this Dr²Net"):
        dr2net.publish(model, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


@BOTH
@pytest.mark.parametrize("pair", [(0.0, 1.0), (0.875, 0.125)])
def test_a_dr2net_comes_back_with_its_coefficients(library, pair, tmp_path):
    model = dr2net.convert(network(library), *pair)
    dr2net.publish(model, tmp_path / "folder", reversible=True)
    loaded = dr2net.from_pretrained(tmp_path / "folder")
    assert dr2net.get_coefficients(loaded) == pair
    assert torch.equal(logits(loaded, images()), logits(model, images()))


@pytest.mark.parametrize("options", [{"blocks": "blocks"}, {"couplings": "block"}])
def test_a_dr2net_comes_back_with_the_couplings_that_it_had(options, tmp_path):
    model = dr2net.convert(network("timm"), 0.5, 0.5, arithmetic="exact64", **options)
    dr2net.publish(model, tmp_path / "folder", reversible=True)
    loaded = dr2net.from_pretrained(tmp_path / "folder")
    (chain,), (original,) = dr2net.chains(loaded), dr2net.chains(model)
    assert type(chain) is type(original)
    assert chain.branches == original.branches
    assert chain.arithmetic == "exact64"
    assert torch.equal(loaded(images()), model(images()))


@BOTH
def test_plain_libraries_do_not_take_a_dr2net_for_theirs(library, tmp_path):
    dr2net.publish(dr2net.convert(network(library), 0.0, 1.0), tmp_path / "folder", reversible=True)
    load = (
        LOAD[library]
        .replace("'folder'", f"{str(tmp_path / 'folder')!r}")
        .replace("local-dir:folder", f"local-dir:{tmp_path / 'folder'}")
    )
    with pytest.raises((OSError, RuntimeError), match=r"folder|blocks\.coefficients"):
        exec(load, {})


def test_a_plain_folder_is_no_dr2net(tmp_path):
    dr2net.publish(network("timm"), tmp_path / "folder")
    with pytest.raises(FileNotFoundError, match=r"holds no dr2net\.json"):
        dr2net.from_pretrained(tmp_path / "folder")


def test_weights_of_another_network_are_refused(tmp_path):
    model = dr2net.convert(network("timm"))
    dr2net.publish(model, tmp_path / "folder", reversible=True)
    config = json.loads((tmp_path / "folder/config.json").read_text())
    config["model_args"]["depth"] = 3
    (tmp_path / "folder/config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"does not fit the network that config\.json describes"):
        dr2net.from_pretrained(tmp_path / "folder")


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/thesis.tex").touch()
    with pytest.raises(FileExistsError, match="give the name of a new folder"):
        dr2net.publish(network("timm"), tmp_path / "folder")
    assert [path.name for path in Path(tmp_path / "folder").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("name", ["folder.partial", ".folder"])
def test_folders_beside_it_are_left_alone(name, tmp_path):
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.tex").touch()
    dr2net.publish(network("timm"), tmp_path / "folder")
    assert (tmp_path / name / "thesis.tex").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"folder", name}


def test_of_two_that_publish_at_once_the_second_is_told(tmp_path):
    with pytest.raises(FileExistsError, match="by another process"), new_folder(tmp_path / "a"):
        dr2net.publish(network("timm"), tmp_path / "a")
    assert (tmp_path / "a/model.safetensors").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_the_folder_may_be_the_one_at_work_in(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    dr2net.publish(network("timm"), ".")
    assert "# mine\n" in (tmp_path / "mine/README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["dr2net.json", "config.json", "dr2net.safetensors"])
def test_a_damaged_file_is_named(name, tmp_path):
    dr2net.publish(dr2net.convert(network("timm")), tmp_path / "folder", reversible=True)
    file = tmp_path / "folder" / name
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(ValueError, match=f"{re.escape(str(file))} is damaged"):
        dr2net.from_pretrained(tmp_path / "folder")


def test_a_dr2net_keeps_its_precision(tmp_path):
    model = dr2net.convert(network("timm")).to(torch.bfloat16)
    dr2net.publish(model, tmp_path / "folder", reversible=True)
    loaded = dr2net.from_pretrained(tmp_path / "folder")
    assert torch.equal(loaded(images().bfloat16()), model(images().bfloat16()))


def test_a_dr2net_of_several_conversions_is_refused(tmp_path):
    model = timm.create_model("swin_tiny_patch4_window7_224", num_classes=5)
    dr2net.convert(model)
    dr2net.chains(model)[0].arithmetic = "float"
    with pytest.raises(ValueError, match="differ in arithmetic or couplings"):
        dr2net.publish(model, tmp_path / "folder", reversible=True)


def test_a_network_whose_library_would_build_another_is_refused(tmp_path):
    model = network("timm")
    model.head = torch.nn.Sequential(torch.nn.Linear(192, 5))
    with pytest.raises((ValueError, RuntimeError), match="head"):
        dr2net.publish(model, tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []


def test_a_network_of_no_library_is_refused(tmp_path):
    with pytest.raises(TypeError, match="no whole network of timm or transformers"):
        dr2net.publish(torch.nn.Linear(2, 2), tmp_path / "folder")
