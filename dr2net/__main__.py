"""The command ``dr2net``: what is in ``tools/``, from wherever dr2net is installed.

dr2net                  lists the commands
dr2net train CONFIG     is python tools/train.py CONFIG
dr2net where            prints the folder that holds configs/, tasks/ and tools/
"""

from __future__ import annotations

import ast
import os
import sys
from pathlib import Path

__all__ = ["main", "repository"]


def repository() -> Path:
    """The folder that holds ``configs/``, ``tasks/`` and ``tools/``: the wheel's, or a checkout."""
    shipped = Path(__file__).parent / ".mim"
    return shipped if shipped.is_dir() else Path(__file__).resolve().parents[1]


def commands() -> dict[str, Path]:
    """The scripts of ``tools/`` that users start, by their names."""
    found = sorted((repository() / "tools").glob("*.py"))
    return {
        path.stem: path for path in found if '__name__ == "__main__"' in path.read_text("utf-8")
    }


def _describe() -> str:
    lines = ["usage: dr2net COMMAND [arguments]", ""]
    for name, path in commands().items():
        text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
        lines.append(f"  {name:20} {text.splitlines()[0]}")
    lines.append(f"  {'where':20} Print the folder that holds configs/, tasks/ and tools/.")
    return "\n".join([*lines, "", "dr2net COMMAND --help says more."])


def main(arguments: list[str] | None = None) -> None:
    """Starts the command in this process's place; ``arguments`` are ``sys.argv[1:]``."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(_describe())
    elif name == "where":
        print(repository())
    elif name in commands():
        script = str(commands()[name])
        os.execv(sys.executable, [sys.executable, script, *map(_shipped, rest)])
    else:
        sys.exit(f"dr2net: there is no command {name!r}; there are {', '.join(commands())}, where.")


def _shipped(argument: str) -> str:
    """The path of a config that is named as in the repository, if it is not in this folder."""
    path = repository() / argument
    is_shipped = argument.startswith("configs/") and path.is_file()
    return str(path) if is_shipped and not Path(argument).exists() else argument


if __name__ == "__main__":
    main()
