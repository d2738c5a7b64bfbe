"""docs/pointcloud.md says what is there, and its commands and snippets run."""

import contextlib
import re
import shlex
from pathlib import Path

import pytest

pytest.importorskip("mmengine")
from mmengine.registry import DATASETS, TRANSFORMS

import tasks.pointcloud  # noqa: F401
from tasks.pointcloud import transforms
from tasks.pointcloud.class_names import CLASS_ORDERS
from tests.rooms import write_converted
from tools import prepare_pointcloud
from tools.demos import furnished_rooms

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs/pointcloud.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^ +((?:python|tools/\w+\.sh) .*)", TEXT.replace("\\\n", ""), re.MULTILINE)


def words_of(tool):
    """The arguments of the commands that run a tool."""
    found = [shlex.split(command) for command in COMMANDS]
    return [words[2:] for words in found if words[1] == f"tools/{tool}.py"]


@pytest.mark.parametrize("command", COMMANDS)
def test_command_names_what_exists(command):
    files = [word for word in shlex.split(command) if word.startswith(("tools/", "configs/"))]
    assert files
    for name in files:
        assert (ROOT / name).is_file(), name


def test_the_rooms_for_tries_are_written_and_converted(tmp_path):
    with contextlib.chdir(tmp_path):
        (arguments,) = words_of("demos/furnished_rooms")
        furnished_rooms.main([*arguments, "--rooms", "1", "--points", "500"])
        (arguments,) = [w for w in words_of("prepare_pointcloud") if "data/rooms" in w[0]]
        prepare_pointcloud.main([*arguments, "--workers", "1"])
        rooms = list(Path(arguments[1]).glob("Area_*/office_1"))
        files = sorted(path.name for path in rooms[0].iterdir())
    assert len(rooms) == 6
    assert files == sorted(re.findall(r"^        (\w+\.\w+) ", TEXT, re.MULTILINE))


def test_the_dataset_builds(tmp_path):
    (source,) = re.findall(r"```python\n(dataset = .*?)```", TEXT, re.DOTALL)
    names = {}
    exec(source, names)
    dataset = names["dataset"]
    dataset.pop("class_order")
    dataset["pipeline"][2]["num_points"] = 100
    found = DATASETS.build(dataset | {"data_root": str(write_converted(tmp_path, points=500))})
    assert len(found) == 5 * 30
    assert found[149]["inputs"]["coord"].shape == (100, 3)


def test_every_name_of_an_order_is_there():
    assert "# " + ", ".join(list(CLASS_ORDERS)[:-1]) + " or kpconv" in TEXT


def test_every_transform_of_points_and_colours_is_there():
    names = [name for name in TRANSFORMS.module_dict if hasattr(transforms, name)]
    assert len(names) == 14
    missing = [name for name in names if f"`{name}`" not in TEXT]
    # Those that a pipeline has in any case are in the snippet and the configs.
    assert sorted(missing) == ["AddHeight", "PackPoints", "PackRoom"]


@pytest.mark.parametrize(
    "message", re.findall(r"^\| `… (.*?)(?: of Area_5| …)?` \|", TEXT, re.MULTILINE)
)
def test_messages_are_those_of_the_code(message):
    folder = ROOT / "tasks/pointcloud"
    code = "".join((folder / f"{name}.py").read_text() for name in ("room_files", "transforms"))
    code = re.sub(r'"\s*f?"', "", code)
    pattern = re.sub(r"\d+", r"\\S+", re.escape(message))
    assert re.search(pattern, code)
