"""What mkdocs.yml's site takes from the repository beside docs/; mkdocs calls these functions.

A link from a page to a picture in ``results/`` works in the repository and in the site. Links to
other places outside ``docs/``, such as a config, lead somewhere in the repository alone; in the
site their text is left.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
PICTURE = re.compile(r"\]\(\.\./(results/[^)]+\.png)\)")
OUTSIDE = re.compile(r"(?<!!)\[([^\]]*)\]\(\.\./[^)]+\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pictures of ``results/``."""
    for picture in sorted((ROOT / "results").glob("*.png")):
        name = f"results/{picture.name}"
        files.append(File.generated(config, name, abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return a page's text with its links as they are in the site."""
    return OUTSIDE.sub(r"\1", PICTURE.sub(r"](\1)", markdown))
