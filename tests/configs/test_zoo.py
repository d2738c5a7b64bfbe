"""``model-index.yml`` and the metafiles beside the configs say what there is, and no more."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
yaml = pytest.importorskip("yaml")

INDEX = yaml.safe_load((ROOT / "model-index.yml").read_text(encoding="utf-8"))["Import"]
FAMILIES = [yaml.safe_load((ROOT / path).read_text(encoding="utf-8")) for path in INDEX]
MODELS = [model for family in FAMILIES for model in family["Models"]]


def test_the_index_names_each_metafile():
    assert sorted(INDEX) == sorted(
        str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("metafile.yml")
    )


def test_each_config_that_a_user_trains_has_one_entry():
    configs = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "configs").rglob("*.py")
        if not {"_base_", "demo"} & set(path.relative_to(ROOT).parts)
    }
    entries = [model["Config"] for model in MODELS]
    assert sorted(entries) == sorted(configs), "metafile.yml of the folder lacks or repeats some"


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model["Name"])
def test_an_entry_is_that_of_its_config(model):
    assert model["Name"] == Path(model["Config"]).stem
    (family,) = [family for family in FAMILIES if model in family["Models"]]
    assert model["In Collection"] in [each["Name"] for each in family["Collections"]]


def test_epochs_are_those_of_the_configs():
    config = pytest.importorskip("mmengine.config")
    for model in MODELS[:: len(MODELS) // 8]:
        loaded = config.Config.fromfile(ROOT / model["Config"], import_custom_modules=False)
        assert model["Metadata"]["Epochs"] == loaded.train_cfg.max_epochs, model["Name"]


def test_no_result_is_claimed_without_its_weights():
    claimed = [model["Name"] for model in MODELS for r in model["Results"] if "Metrics" in r]
    with_weights = [model["Name"] for model in MODELS if "Weights" in model]
    assert claimed == with_weights
