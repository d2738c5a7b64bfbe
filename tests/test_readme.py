import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_python_runs(capsys):
    pytest.importorskip("timm")
    names = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    lines = iter(capsys.readouterr().out.splitlines())
    assert any(line.startswith("The whole network keeps") for line in lines)
    assert any(line.endswith("GB of 0.050 GB: fits.") for line in lines)


def test_it_is_short():
    assert len(README.splitlines()) < 250


def test_config_entries_register_the_hook():
    pytest.importorskip("mmengine")
    pytest.importorskip("mmcv")
    from mmengine.config import Config
    from mmengine.registry import HOOKS

    (block,) = [block for block in blocks("python") if "custom_imports" in block]
    config = Config.fromstring(block, ".py")
    hook = HOOKS.build(config.custom_hooks[0])
    assert hook.schedule.at(20) == (0.875, 0.125)
    assert hook.modules == ["backbone"]


@pytest.mark.parametrize("command", "".join(blocks("bash")).splitlines())
def test_command_names_what_exists(command):
    words = command.split()
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    # The environment and checkpoints come into being by the commands themselves.
    files = [word for word in words if re.match(r"(tools|configs|results|docs)/", word)]
    for name in files:
        assert (ROOT / name).is_file(), f"{command}: {name} does not exist"


def test_links_lead_to_files():
    links = re.findall(r"\]\((?!https?://)([^)#]+)", README)
    missing = [link for link in links if not (ROOT / link).exists()]
    assert missing == []
