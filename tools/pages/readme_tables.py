"""Draw the tables of README.md and docs/ from the result files that they name.

    python tools/pages/readme_tables.py           # write them
    python tools/pages/readme_tables.py --check   # exit with 1 where documents and files disagree

A table stands between two comments, ``<!-- table: results/NAME.json -->`` and ``<!-- end -->``. The
first may choose: ``<!-- table: results/NAME.json rows="one; another" columns="method; s/step" -->``
draws those rows, by their first column, and those columns, in that order and without the notes of
the whole table.
"""

import argparse
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tools.result_files import markdown_table

CHOICE = r'(?: rows="([^"]*)")?(?: columns="([^"]*)")?'
MARKED = re.compile(rf"(<!-- table: (\S+){CHOICE} -->\n).*?(<!-- end -->)", re.DOTALL)


def documents() -> list[Path]:
    """Return the paths of README.md and of all of docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def draw_tables(text: str, root: Path) -> str:
    """Return ``text`` with every marked table drawn anew from its result file under ``root``.

    Raises:
        FileNotFoundError: A result file that ``text`` names does not exist.
        ValueError: A mark is not of the form above, or chooses what its result file does not have.
    """
    marks = text.count("<!-- table: ")
    if marks != len(MARKED.findall(text)):
        raise ValueError(
            f"{marks} marks of tables, {len(MARKED.findall(text))} understood: write <!-- table: "
            'results/NAME.json rows="one; another" columns="one; another" --> (rows, columns or '
            "both left out) and <!-- end --> after it."
        )
    return MARKED.sub(
        lambda found: found[1] + _describe(root / found[2], found[3], found[4]) + found[5], text
    )


def _describe(path: Path, chosen_rows: str | None, chosen_columns: str | None) -> str:
    result = json.loads(path.read_text(encoding="utf-8"))
    columns, rows, notes = result["columns"], result["rows"], f"{result['notes']}\n\n"
    if chosen_rows is not None:
        named = {row[columns[0]]: row for row in rows}
        rows = [named[name] for name in _choose(chosen_rows, list(named), f"row of {path.name}")]
    if chosen_columns is not None:
        columns = _choose(chosen_columns, columns, f"column of {path.name}")
    if rows is not result["rows"] or columns is not result["columns"]:
        notes = ""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return (
        f"{result['title']}\n\n{markdown_table(columns, rows)}\n\n{notes}"
        f"`{result['command']}`, {result['date']}, on {result['hardware']}; {versions}.\n"
    )


def _choose(names: str, there: list[str], what: str) -> list[str]:
    chosen = names.split("; ")
    for name in chosen:
        if name not in there:
            raise ValueError(f"{name!r} is no {what}, which has {'; '.join(there)}.")
    return chosen


def main() -> None:
    """Draw the tables, or check them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, only compare")
    arguments = parser.parse_args()
    for document in documents():
        text = document.read_text(encoding="utf-8")
        drawn = draw_tables(text, ROOT)
        if not arguments.check:
            document.write_text(drawn, encoding="utf-8")
        elif drawn != text:
            sys.exit(
                f"{document.relative_to(ROOT)} is not what the result files say: run python "
                "tools/pages/readme_tables.py"
            )


if __name__ == "__main__":
    main()
