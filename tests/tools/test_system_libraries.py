import subprocess
from types import SimpleNamespace

import pytest

from tools import system_libraries

ABSENT = {"libabsent_of_dr2net.so.1": "libabsent1"}


def test_library_that_does_not_load_is_missing():
    assert system_libraries.missing_libraries({"libc.so.6": "libc6", **ABSENT}) == ABSENT


def test_user_without_root_is_told_what_to_install(monkeypatch):
    monkeypatch.setattr(system_libraries, "LIBRARIES", ABSENT)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(SystemExit, match=r"(?s)libabsent_of.*apt-get install .*libabsent1"):
        system_libraries.main()


def test_root_has_them_installed_and_is_told_if_that_failed(monkeypatch):
    commands = []
    monkeypatch.setattr(system_libraries, "LIBRARIES", ABSENT)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/apt-get")
    monkeypatch.setattr(
        subprocess, "run", lambda command, **_: commands.append(command) or SimpleNamespace()
    )
    with pytest.raises(SystemExit, match="are missing: libabsent_of"):
        system_libraries.main()
    assert len(commands) == 1
    assert commands[0].endswith("libabsent1")
