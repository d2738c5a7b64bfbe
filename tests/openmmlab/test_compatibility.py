import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mmengine")
import dr2net.openmmlab.mended  # noqa: F401 - makes mmaction2 importable
from dr2net.openmmlab import compatibility

ROOT = Path(__file__).parents[2]


@pytest.fixture
def loaded_modules(monkeypatch):
    """A copy of sys.modules that the test may change."""
    modules = dict(sys.modules)
    monkeypatch.setattr(sys, "modules", modules)
    return modules


def run_python(code):
    return subprocess.run(
        [sys.executable, "-W", "error::UserWarning:dr2net", "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("module", ["mmaction.models", "mmcv.ops"])
def test_openmmlab_modules_import_after_install(module):
    pytest.importorskip(module.split(".")[0])
    result = run_python(
        "from dr2net.openmmlab import compatibility; compatibility.install();"
        f"import {module}, mmcv; print(mmcv.__version__)"
    )
    assert result.returncode == 0, result.stderr
    import mmcv

    assert result.stdout.strip() == mmcv.__version__


def test_importing_the_types_alone_mends_nothing():
    result = run_python(
        "import sys, mmengine.runner.checkpoint as c;"
        "load, schemes = c.load_state_dict, dict(c.CheckpointLoader._schemes);"
        "import dr2net.openmmlab;"
        "assert c.load_state_dict is load and c.CheckpointLoader._schemes == schemes;"
        "assert not {'mmcv', 'mmcv._ext', 'mmaction', 'mmdet'} & set(sys.modules);"
        "import dr2net.openmmlab.mended;"
        "assert c.load_state_dict is not load and c.CheckpointLoader._schemes != schemes"
    )
    assert result.returncode == 0, result.stderr


def test_mmdet_says_nothing_of_what_is_not_installed():
    pytest.importorskip("mmdet")
    result = run_python("import dr2net.openmmlab.mended, mmdet.datasets")
    assert result.returncode == 0, result.stderr
    assert "OneDL" not in result.stdout


def test_operators_are_looked_for_at_the_first_that_is_missing(loaded_modules, monkeypatch):
    loaded_modules.pop("mmcv._ext", None)
    monkeypatch.setattr(compatibility, "_exists", lambda name: name == "mmcv")
    monkeypatch.setattr(compatibility, "_looking", [])
    compatibility._stand_in_for_compiled_ops()
    looked = []

    def provide():
        looked.append(1)
        compatibility.provide_operators({"nms": lambda boxes, offset: (boxes, offset)})

    compatibility.look_for_operators(provide)
    nms, missing = (getattr(loaded_modules["mmcv._ext"], name) for name in ("nms", "carafe"))
    assert not looked
    assert nms(1, offset=0) == (1, 0)
    with pytest.raises(RuntimeError, match="'carafe'"):
        missing()
    assert looked == [1]


def test_missing_operator_is_named_when_called(loaded_modules, monkeypatch):
    loaded_modules.pop("mmcv._ext", None)
    monkeypatch.setattr(compatibility, "_exists", lambda name: name == "mmcv")
    monkeypatch.setattr(compatibility, "_looking", [])
    compatibility._stand_in_for_compiled_ops()
    stand_in = loaded_modules["mmcv._ext"]
    assert stand_in.__spec__ is not None
    with pytest.raises(RuntimeError, match=r"'nms' was called.*without compiled operators"):
        stand_in.nms(1, 2)


def test_compiled_operators_are_left_alone(loaded_modules):
    compiled = object()
    loaded_modules["mmcv._ext"] = compiled
    compatibility.install()
    assert loaded_modules["mmcv._ext"] is compiled


def test_second_install_changes_nothing():
    compatibility.install()
    before = dict(sys.modules)
    compatibility.install()
    assert sys.modules == before


def test_nothing_is_added_where_openmmlab_is_not_installed(loaded_modules, monkeypatch):
    for name in list(loaded_modules):
        if name.split(".")[0] in ("mmcv", "mmaction"):
            del loaded_modules[name]
    monkeypatch.setattr(sys, "path", [])
    before = dict(loaded_modules)
    compatibility.install()
    assert loaded_modules == before


def test_another_mmaction_version_is_left_to_itself(loaded_modules, monkeypatch):
    for name in list(loaded_modules):
        if name.split(".")[0] == "mmaction":
            del loaded_modules[name]
    monkeypatch.setattr(compatibility, "_installed_version", lambda _: "1.3.0")
    compatibility.install()
    assert not any(name.split(".")[0] == "mmaction" for name in loaded_modules)
