"""docs/detection.md does what it says. tests/tools/test_detection_sets.py runs its conversions."""

import re
import shlex
import textwrap
from pathlib import Path

import pytest

pytest.importorskip("mmdet")
import tasks.detection  # noqa: F401  # isort: skip

from mmengine.registry import DATASETS, METRICS, MODELS

from tasks.detection.tiled_detector import TiledTesting
from tests.tools.test_detection_sets import SETS, documented_conversions, write_sodad
from tools.prepare_detection import main as prepare

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs/detection.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^ +(python .*)", TEXT.replace("\\\n", ""), re.MULTILINE)


def snippet(name):
    """The dict that docs/detection.md assigns to ``name``."""
    (source,) = re.findall(rf"^(    {name} = .*?)\n\n", TEXT, re.MULTILINE | re.DOTALL)
    found = {}
    exec(textwrap.dedent(source), found)
    return found[name]


@pytest.mark.parametrize("command", COMMANDS)
def test_command_names_what_exists(command):
    files = [word for word in shlex.split(command) if word.startswith(("tools/", "configs/"))]
    assert files
    for name in files:
        assert (ROOT / name).is_file()


@pytest.mark.parametrize("config", SETS)
def test_every_set_with_a_config_is_in_the_table(config):
    layout = SETS[config][1]
    (row,) = [line for line in TEXT.splitlines() if f"`…_{config}.py`" in line]
    assert f"`{layout}`" in row or layout == "coco"


def test_dataset_and_metric_build(tmp_path, monkeypatch):
    write_sodad(tmp_path / "data/soda-d")
    monkeypatch.chdir(tmp_path)
    for arguments in documented_conversions("soda-d"):
        prepare(arguments)
    assert len(DATASETS.build(snippet("dataset"))) == 2
    METRICS.build(snippet("val_evaluator"))


def test_tiles_are_settings_of_the_detector():
    model = snippet("model")
    assert model.pop("type") == "TiledDetector"
    assert model.pop("detector") is ...
    TiledTesting(**model)


def test_a_plain_vit_and_its_pyramid_build_and_fit():
    backbone = MODELS.build({**snippet("backbone"), "depth": 1})
    MODELS.build(snippet("neck"))
    assert backbone.vit.num_features == snippet("neck")["in_channels"]
