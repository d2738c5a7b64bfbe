"""Every page of docs/ runs: its snippets, its links, what it prints; and the site builds."""

import re
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import dr2net

ROOT = Path(__file__).parents[1]
PAGES = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")}
# Pages whose snippets need what a test of their own gives them, such as processes or data.
RUN_BY = {
    "detection.md": "tests/tasks/detection/test_documentation.py",
    "distributed.md": "tests/distributed/test_fsdp.py",
    "logging.md": "tests/tools/test_logging_page.py",
    "own_images.md": "tests/tools/test_own_data.py",
    "own_rooms.md": "tests/tools/test_own_data.py",
    "own_videos.md": "tests/tools/test_own_data.py",
    "pointcloud.md": "tests/tasks/pointcloud/test_documentation.py",
    "selection.md": "tests/selection/test_documentation.py",
    "training.md": "tests/ways_of_training/test_documentation.py",
}
# What snippets import that a machine may lack.
NEEDED = ("timm", "torchvision", "transformers", "mmengine")


def snippets(page, language):
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", PAGES[page], re.DOTALL | re.MULTILINE)
    return [re.sub(f"^{indent}", "", code, flags=re.MULTILINE) for indent, code in found]


@pytest.mark.parametrize("page", sorted(page for page in PAGES if snippets(page, "python")))
def test_snippets_run(page, capsys, tmp_path, monkeypatch):
    if page in RUN_BY:
        test = (ROOT / RUN_BY[page]).read_text(encoding="utf-8")
        stem = page.removesuffix(".md").split("_")[0]  # one test reads f"own_{kind}.md"
        assert stem in test, f"{RUN_BY[page]} does not run docs/{page}"
        return
    code = snippets(page, "python")
    for name in NEEDED:
        if name in "".join(code):
            pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # revert's, which tests of its own read
        for block in code:
            exec(compile(block, f"docs/{page}", "exec"), names)
    printed = capsys.readouterr().out
    for text in snippets(page, "text"):
        for line in text.splitlines():
            measured, _, _ = line.partition("; a step takes")  # times differ from run to run
            assert measured in printed, f"docs/{page} shows what its snippets do not print"


def test_the_pages_hooks_are_those_that_exist():
    pytest.importorskip("mmengine")
    pytest.importorskip("mmcv")
    from mmengine.config import Config
    from mmengine.registry import HOOKS

    import_line, entries = snippets("start_openmmlab.md", "python")
    assert Config.fromstring(import_line, ".py").custom_hooks[0].type == "Dr2NetHook"
    points = [(3 / 4, 1 / 4), (7 / 8, 1 / 8), (0, 1)]
    for entry, point in zip(entries.splitlines(), points, strict=True):
        hook = HOOKS.build(Config.fromstring(entry, ".py").custom_hooks[0])
        assert hook.schedule.at(1000) == point


@pytest.mark.parametrize("page", sorted(PAGES))
def test_links_lead_to_files(page):
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", PAGES[page])
    missing = [link for link in links if not (ROOT / "docs" / link).exists()]
    assert missing == []


@pytest.mark.parametrize("page", sorted(PAGES))
def test_commands_name_what_exists(page):
    for command in "".join(snippets(page, "bash")).replace("\\\n", "").splitlines():
        words = command.split("#")[0].split()
        if words[:1] == ["make"]:
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        files = [w for w in words if re.fullmatch(r"(tools|configs)/\S+\.(py|sh)", w)]
        assert [name for name in files if not (ROOT / name).is_file()] == []


def test_site_builds_without_warnings(tmp_path):
    for module, package in (("mkdocs", "mkdocs"), ("material", "mkdocs-material")):
        if find_spec(module) is None:
            pytest.skip(f"{package} is not installed: pip install -r requirements/docs.txt")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    api = (tmp_path / "api.html").read_text(encoding="utf-8")
    for name in set(dr2net.__all__) - {"diagnostics"}:
        assert f'id="dr2net.{name}"' in api, f"docs/api.md does not show dr2net.{name}"
    broken = [
        f"{page.name}: {link}"
        for page in tmp_path.glob("*.html")
        for link in re.findall(
            r'(?:href|src)="(?!https?:|#|mailto:|data:)([^"#?]+)', page.read_text()
        )
        if page.name != "404.html" and not (page.parent / link).exists()
    ]
    assert broken == []
