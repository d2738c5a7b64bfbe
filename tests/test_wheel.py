"""The wheel and the source distribution: built, installed beside torch and timm alone, tried."""

import re
import subprocess
import sys
import tarfile
import zipfile
from itertools import chain
from pathlib import Path

import pytest

from dr2net.__main__ import main
from tests.test_clean_environment import (
    OTHERS,
    STEP_BOTH_WAYS,
    TORCH_AND_TIMM,
    clean_environment,
    present,
)

ROOT = Path(__file__).parents[1]
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "dr2net/__init__.py").read_text())[1]


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(source distribution, wheel made of what it unpacks to)."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder, cwd=ROOT)
    (source,) = folder.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        archive.extractall(folder)
    unpacked = folder / source.name.removesuffix(".tar.gz")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=unpacked)
    (wheel,) = folder.glob("*.whl")
    return source, wheel


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """The python of an environment with torch, timm, what they require, and the wheel."""
    if not (present("torch") and present("timm")):
        pytest.skip("needs torch and timm, installed by pip")
    python = clean_environment(
        tmp_path_factory.mktemp("installed") / "venv", "torch", "timm", with_dr2net=False
    )
    # --no-deps: their versions were chosen for the tests, and are looked at in the metadata.
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", built[1])
    return python


def test_the_wheel_has_one_top_level_package(built):
    names = zipfile.ZipFile(built[1]).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"dr2net", f"dr2net-{VERSION}.dist-info"}
    assert not [name for name in names if "__pycache__" in name]


def test_the_wheel_ships_configs_tasks_and_tools_where_mim_looks(built):
    shipped = set(zipfile.ZipFile(built[1]).namelist())
    tracked = run("git", "ls-files", "configs", "tasks", "tools", "model-index.yml", cwd=ROOT)
    assert [name for name in tracked.splitlines() if f"dr2net/.mim/{name}" not in shipped] == []
    assert "dr2net/py.typed" in shipped


def test_what_it_requires_is_torch_alone(built):
    metadata = zipfile.ZipFile(built[1]).read(f"dr2net-{VERSION}.dist-info/METADATA").decode()
    required = re.findall(r"^Requires-Dist: (.+)$", metadata, re.MULTILINE)
    assert [one for one in required if "extra ==" not in one] == ["torch>=2.6"]
    assert not [one for one in required if "==" in one.split(";")[0]], "ranges, not pins"
    urls = re.findall(r"^Project-URL: (.+)$", metadata, re.MULTILINE)
    assert urls == ["Paper, https://arxiv.org/abs/2401.04105"]


def test_versions_have_one_source():
    assert f"\nversion: {VERSION}\n" in (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)[1] == VERSION
    assert VERSION not in (ROOT / "pyproject.toml").read_text()


def test_pins_are_within_the_ranges():
    requirements = pytest.importorskip("packaging.requirements")
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    lines = (ROOT / "requirements/constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    ranges = map(requirements.Requirement, chain(project["dependencies"], *extras))
    pinned = [one for one in ranges if one.name in pins]
    assert [str(one) for one in pinned if pins[one.name] not in one.specifier] == []
    assert {one.name for one in pinned} >= pins.keys() - {"numpy", "opencv-python-headless"}


def test_building_leaves_nothing_in_the_checkout(built):
    assert not (ROOT / "build").exists()
    assert not (ROOT / "dist").exists()


def test_it_works_beside_torch_and_timm_alone(installed, tmp_path):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    ten_lines = re.search(r"^```python\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)[1]
    others = [*OTHERS, "tasks", "tools", "configs"]
    script = f"others = {others}\n{ten_lines}\n{TORCH_AND_TIMM}{STEP_BOTH_WAYS}"
    assert "timm.create_model" in ten_lines
    assert "dr2net.convert" in ten_lines
    run(installed, "-I", "-c", script, cwd=tmp_path)


def test_the_example_of_timm_runs_there(installed, tmp_path):
    script = f"""
import sys
from pathlib import Path
from PIL import Image
for name in ("first", "second"):
    folder = Path("images", name)
    folder.mkdir(parents=True)
    for number in range(2):
        Image.new("RGB", (64, 64), (90 * number, 30, 60)).save(folder / f"{{number}}.png")
sys.path.insert(0, {str(ROOT / "examples")!r})
import timm_training
model = timm_training.main("images", "test_vit", pretrained=False, epochs=2, batch=2, workers=0)
print(type(model).__module__)
"""
    printed = run(installed, "-I", "-c", script, cwd=tmp_path).splitlines()
    assert printed[0].startswith("epoch 1: loss ")
    assert printed[-1] == "timm.models.vision_transformer"


def test_its_command_says_where_configs_and_tools_are(installed, tmp_path):
    printed = run(installed.parent / "dr2net", "where", cwd=tmp_path, env={"PATH": ""})
    where = Path(printed.strip())
    assert (where / "configs/video/dr2net_vitb_k400.py").is_file()
    assert where.parts[-2:] == ("dr2net", ".mim")


def test_the_command_lists_the_tools(capsys):
    main([])
    assert re.search(r"^  train +Train a model", capsys.readouterr().out, re.MULTILINE)
    with pytest.raises(SystemExit, match="no command 'trian'; there are benchmark,"):
        main(["trian"])


def test_the_command_starts_a_tool_with_the_config_that_is_shipped(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    started = []
    monkeypatch.setattr("os.execv", lambda program, command: started.append(command))
    main(["train", "configs/video/dr2net_vitb_k400.py", "--amp"])
    config = str(ROOT / "configs/video/dr2net_vitb_k400.py")
    assert started == [[sys.executable, str(ROOT / "tools/train.py"), config, "--amp"]]
    own = tmp_path / "configs/video/dr2net_vitb_k400.py"
    own.parent.mkdir(parents=True)
    own.touch()
    main(["train", "configs/video/dr2net_vitb_k400.py"])
    assert started[1][2] == "configs/video/dr2net_vitb_k400.py"


def test_its_configs_import_the_tasks_that_it_ships(built, tmp_path):
    if not present("mmaction2"):
        pytest.skip("needs mmaction2")
    zipfile.ZipFile(built[1]).extractall(tmp_path)
    script = """
import sys, dr2net
from dr2net.__main__ import repository
sys.path.insert(0, str(repository()))  # as each tool does with its own folder's parent
from mmengine.config import Config
config = Config.fromfile(repository() / "configs/video/dr2net_vitb_k400.py")
import tasks.video
print(tasks.video.__file__, config.model.backbone.type)
"""
    environment = {"PYTHONPATH": str(tmp_path), "PATH": ""}
    found = run(sys.executable, "-c", script, cwd=tmp_path, env=environment).split()
    assert found[-2:] == [str(tmp_path / "dr2net/.mim/tasks/video/__init__.py"), "Dr2NetBackbone"]
