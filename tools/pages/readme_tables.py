"""Draw the tables of README.md and docs/ from the result files that they name.

    python tools/pages/readme_tables.py           # write them
    python tools/pages/readme_tables.py --check   # exit with 1 where documents and files disagree

A table stands between two comments, ``<!-- table: results/NAME.json -->`` and ``<!-- end -->``.
"""

import argparse
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tools.result_files import markdown_table

MARKED = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def documents() -> list[Path]:
    """Return the paths of README.md and of all of docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def draw_tables(text: str, root: Path) -> str:
    """Return ``text`` with every marked table drawn anew from its result file under ``root``.

    Raises:
        FileNotFoundError: A result file that ``text`` names does not exist.
    """
    return MARKED.sub(lambda found: found[1] + _describe(root / found[2]) + found[3], text)


def _describe(path: Path) -> str:
    result = json.loads(path.read_text(encoding="utf-8"))
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return (
        f"{result['title']}\n\n{markdown_table(result['columns'], result['rows'])}\n\n"
        f"{result['notes']}\n\n"
        f"`{result['command']}`, {result['date']}, on {result['hardware']}; {versions}.\n"
    )


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
