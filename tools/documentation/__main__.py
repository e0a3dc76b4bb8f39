"""Regenerate parts of the documentation: `python tools/documentation [PART ...]`, or `make docs` for all parts.

`reference` writes docs/reference from the schema, the kinds and the commands. `outputs` runs the commands of
docs/tutorial.md, README.md and docs/paper.md and updates the outputs shown below them. `images` runs the demo and
creates docs/images from its report, with Chromium. `notebook` runs docs/notebook.ipynb and stores its outputs.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "tests")]  # tests/support is shared

from documentation.elsewhere import typed_in
from documentation.fakes import write_fakes
from documentation.images import take_images
from documentation.notebook import write_notebook
from documentation.pages import blocks
from documentation.reference import reference
from documentation.running import walk, without_notes


def write_reference() -> None:
    """Write all pages of the reference."""
    for name, text in reference().items():
        (ROOT / "docs" / "reference" / name).write_text(text)


def write_outputs() -> None:
    """Update the `text` blocks directly after commands, in the pages whose commands run within minutes."""
    for name in ("docs/tutorial.md", "README.md", "docs/paper.md"):
        page = ROOT / name
        text = page.read_text()
        found = blocks(text)
        with tempfile.TemporaryDirectory(prefix="lt-docs-") as directory:
            place = Path(directory).resolve()
            os.environ["HOME"] = directory
            if name != "docs/tutorial.md":  # it creates all files that it needs
                write_fakes(place)
            printed = {block.start: output for block, output in walk(found, place, typed=typed_in(name))}
        for block, after in reversed(list(itertools.pairwise(found))):
            if after.language == "text" and block.start in printed:
                output = printed[block.start] if "note: " in after.text else without_notes(printed[block.start])
                text = text[: after.start] + output + text[after.start + len(after.text) :]
        page.write_text(text)


def run_notebook() -> None:
    """Run docs/notebook.ipynb and store its outputs."""
    with tempfile.TemporaryDirectory(prefix="lt-docs-") as directory:
        write_notebook(Path(directory))


PARTS = {"reference": write_reference, "outputs": write_outputs, "images": take_images, "notebook": run_notebook}


def main() -> int:
    """Regenerate the given parts, or all."""
    parser = argparse.ArgumentParser(
        prog="tools/documentation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all)")
    given = parser.parse_args()
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"PART must be one of {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    for name in given.parts or PARTS:
        PARTS[name]()
    return 0


if __name__ == "__main__":
    sys.exit(main())
