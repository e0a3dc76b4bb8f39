"""What pages hold that programs make: `python tools/documentation`, or `make docs`; with names, some of it.

`reference` writes docs/reference from the schema, the kinds and the parsers. `outputs` runs docs/tutorial.md and
README.md and puts what their commands print under them. `images` runs the demo and takes docs/images from its
report, with Chromium.
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
from documentation.images import take_images
from documentation.pages import blocks
from documentation.reference import reference
from documentation.running import walk, without_notes
from documentation.stand_ins import write_stand_ins


def write_reference() -> None:
    """All pages of the reference."""
    for name, text in reference().items():
        (ROOT / "docs" / "reference" / name).write_text(text)


def write_outputs() -> None:
    """The blocks of text that stand directly after commands, where these are run in a minute or two."""
    for name in ("docs/tutorial.md", "README.md"):
        page = ROOT / name
        text = page.read_text()
        found = blocks(text)
        with tempfile.TemporaryDirectory(prefix="lt-docs-") as directory:
            place = Path(directory).resolve()
            os.environ["HOME"] = directory
            if name != "docs/tutorial.md":  # that makes all it needs
                write_stand_ins(place)
            printed = {block.start: said for block, said in walk(found, place, typed=typed_in(name))}
        for block, after in reversed(list(itertools.pairwise(found))):
            if after.language == "text" and block.start in printed:
                said = printed[block.start] if "note: " in after.text else without_notes(printed[block.start])
                text = text[: after.start] + said + text[after.start + len(after.text) :]
        page.write_text(text)


MADE = {"reference": write_reference, "outputs": write_outputs, "images": take_images}


def main() -> int:
    """Make what is asked for, or all."""
    parser = argparse.ArgumentParser(
        prog="tests/documentation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="*", metavar="WHAT", help=f"{', '.join(MADE)} (default: all)")
    given = parser.parse_args()
    if unknown := set(given.what) - set(MADE):
        parser.error(f"WHAT is one of {', '.join(MADE)}, got {', '.join(sorted(unknown))}")
    for name in given.what or MADE:
        MADE[name]()
    return 0


if __name__ == "__main__":
    sys.exit(main())
