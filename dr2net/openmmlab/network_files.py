"""The files that networks of this project are made of, for a folder that does without dr2net."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from .. import __version__

__all__ = ["OURS", "copy_network", "files_of"]

OURS = ("dr2net", "tasks")
PACKAGE = '''"""Files of dr2net {version}, as they are (Apache License 2.0): imported, they register
{types}.
"""

import sys

if "{package}" not in sys.modules:  # which registers the same, where dr2net is in use
    from . import {modules}  # noqa: F401
'''


def files_of(modules: Collection[str]) -> dict[str, Path] | None:
    """The files of modules of one package, and of those beside them that they import, by name.

    Returns:
        None where there is no such file: the modules are of several packages, or one imports
        dr2net, or from another folder of this project, when it is imported itself. What a function
        imports when it is called is not looked at.
    """
    packages = {module.rpartition(".")[0] for module in modules}
    if len(packages) != 1:
        return None
    package = packages.pop()
    found: dict[str, Path] = {}
    waiting = {module.rpartition(".")[2] for module in modules}
    while waiting:
        name = waiting.pop()
        specification = importlib.util.find_spec(f"{package}.{name}")
        if specification is None or specification.origin is None:
            return None
        if specification.submodule_search_locations is not None:  # a folder of its own
            return None
        found[name] = Path(specification.origin)
        beside, elsewhere = _imports(found[name])
        if elsewhere & set(OURS) or any("." in other for other in beside):
            return None
        waiting |= beside - found.keys()
    return found


def _imports(file: Path) -> tuple[set[str], set[str]]:
    """What a file imports from its own folder, and the packages that it imports from."""
    beside: set[str] = set()
    elsewhere: set[str] = set()
    for statement in _run_by_import(ast.parse(file.read_text(encoding="utf-8"))):
        names = {alias.name for alias in getattr(statement, "names", ())}
        if isinstance(statement, ast.ImportFrom):
            if statement.level == 1:
                beside |= {statement.module} if statement.module else names
            elif statement.level == 0:
                elsewhere.add(str(statement.module).partition(".")[0])
            else:  # of another folder of this project
                elsewhere.add(OURS[0])
        elif isinstance(statement, ast.Import):
            elsewhere |= {name.partition(".")[0] for name in names}
    return beside, elsewhere


def _run_by_import(tree: ast.AST) -> Iterator[ast.AST]:
    """All of a file but the bodies of its functions."""
    for part in ast.iter_child_nodes(tree):
        if not isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield part
            yield from _run_by_import(part)


def copy_network(kinds: Mapping[str, str], files: Mapping[str, Path], folder: Path) -> str:
    """Copies a network's files into a package in ``folder``, whose import registers it.

    Args:
        kinds: the types of the network, with the module of each.
        files: of these, as ``files_of`` finds them.

    Returns:
        The package's name, for ``custom_imports``.
    """
    package = next(iter(kinds.values())).rpartition(".")[0]
    # One process may load several, of other networks or of another version of these files.
    content = b"".join(files[stem].read_bytes() for stem in sorted(files))
    digest = hashlib.sha256(content + repr(sorted(kinds)).encode()).hexdigest()
    name = f"{package.rpartition('.')[2]}_network_{digest[:8]}"
    (folder / name).mkdir()
    for stem, file in files.items():
        shutil.copyfile(file, folder / name / f"{stem}.py")
    text = PACKAGE.format(
        version=__version__,
        types=", ".join(sorted(kinds)),
        package=package,
        modules=", ".join(sorted({module.rpartition(".")[2] for module in kinds.values()})),
    )
    (folder / name / "__init__.py").write_text(text, encoding="utf-8")
    return name
