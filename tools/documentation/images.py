"""The images of the documentation: parts of the report of the demo as a browser shows it, 1400 pixels wide.

The demo is run as `make demo` does, in a directory that is thrown away; what it printed goes to the front page. Knows
the captions of a report's figures.
"""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from pathlib import Path

from documentation.pages import ROOT, blocks
from documentation.running import run
from PIL import Image
from support.devtools import look

__all__ = ["take_images"]

WIDTH, SCREEN = 1400, 960
FIGURES = {"classes.png": "LoMa and regularised std"}
"""By file: how the caption of a figure begins."""

PLACES = """JSON.stringify([...document.querySelectorAll('figure')].map(figure => {
  const box = figure.getBoundingClientRect();
  return [figure.querySelector('figcaption').textContent, box.left, box.top, box.right, box.bottom]; }))"""


def take_images() -> None:
    """Run the demo, put what it prints into README.md, and its report's first screen and figures into docs/images."""
    browser = next((found for name in ("chromium", "chromium-browser") if (found := shutil.which(name))), None)
    if browser is None:
        raise SystemExit("images are taken by Chromium, and there is none on the PATH")
    with tempfile.TemporaryDirectory(prefix="lt-images-") as name:
        place = Path(name)
        demo = f"env --unset=OMP_NUM_THREADS lt-sweep run {ROOT}/sweeps/specs/demo.yaml 2>/dev/null"  # as make does
        ended = run(f"{demo}\nlt-sweep report runs/demo >/dev/null", place)
        if ended.code:
            raise SystemExit(f"the demo ended with {ended.code}:\n{ended.printed}")
        _paste(ended.printed.replace("  lt-sweep ", "  .venv/bin/lt-sweep "))
        seen = look(
            browser,
            place / "runs" / "demo" / "report" / "index.html",
            place / "profile",
            width=WIDTH,
            scripts=(PLACES,),
        )
    page = Image.open(io.BytesIO(seen.image)).convert("RGB")
    _save(page.crop((0, 0, page.width, SCREEN)), "report.png")
    boxes = {caption: box for caption, *box in json.loads(seen.answers[0])}
    for file, begins in FIGURES.items():
        (left, top, right, bottom) = next(box for caption, box in boxes.items() if caption.startswith(begins))
        _save(page.crop((int(left) - 20, int(top) - 16, int(right) + 20, int(bottom) + 10)), file)


def _save(image: Image.Image, name: str) -> None:
    """In 128 colours, of which a report has fewer: a third of the bytes."""
    image.quantize(128, dither=Image.Dither.NONE).save(ROOT / "docs" / "images" / name, optimize=True)


def _paste(printed: str) -> None:
    page = ROOT / "README.md"
    text = page.read_text()
    (demo,) = [block for block in blocks(text) if block.text.startswith("demo: ")]
    page.write_text(text[: demo.start] + printed + text[demo.start + len(demo.text) :])
