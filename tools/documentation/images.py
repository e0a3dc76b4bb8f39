"""Takes the images of the documentation: parts of the report of the demo in a browser, 1400 pixels wide.

The demo runs like `make demo`, in a temporary directory. Its output is copied to README.md.
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

WIDTH, SCREEN_HEIGHT = 1400, 960
FIGURES = {"classes.png": "LoMa and regularised std"}
"""Image file -> beginning of the caption of its figure."""

FIGURE_BOXES = """JSON.stringify([...document.querySelectorAll('figure')].map(figure => {
  const box = figure.getBoundingClientRect();
  return [figure.querySelector('figcaption').textContent, box.left, box.top, box.right, box.bottom]; }))"""


def take_images() -> None:
    """Run the demo. Copy its output to README.md, and the first screen and figures of its report to docs/images."""
    browser = next((found for name in ("chromium", "chromium-browser") if (found := shutil.which(name))), None)
    if browser is None:
        raise SystemExit("Chromium is required to take images, and no chromium or chromium-browser is on the PATH")
    with tempfile.TemporaryDirectory(prefix="lt-images-") as name:
        place = Path(name)
        demo = f"env --unset=OMP_NUM_THREADS lt-sweep run {ROOT}/sweeps/specs/demo.yaml 2>/dev/null"  # like make
        ended = run(f"{demo}\nlt-sweep report runs/demo >/dev/null", place)
        if ended.code:
            raise SystemExit(f"the demo ended with exit code {ended.code}:\n{ended.printed}")
        _replace_demo_output(ended.printed.replace("  lt-sweep ", "  .venv/bin/lt-sweep "))
        seen = look(
            browser,
            place / "runs" / "demo" / "report" / "index.html",
            place / "profile",
            width=WIDTH,
            scripts=(FIGURE_BOXES,),
        )
    page = Image.open(io.BytesIO(seen.image)).convert("RGB")
    _save(page.crop((0, 0, page.width, SCREEN_HEIGHT)), "report.png")
    boxes = {caption: box for caption, *box in json.loads(seen.answers[0])}
    for file, beginning in FIGURES.items():
        (left, top, right, bottom) = next(box for caption, box in boxes.items() if caption.startswith(beginning))
        _save(page.crop((int(left) - 20, int(top) - 16, int(right) + 20, int(bottom) + 10)), file)


def _save(image: Image.Image, name: str) -> None:
    """Write with 128 colours; the report has fewer. This reduces the size to a third."""
    image.quantize(128, dither=Image.Dither.NONE).save(ROOT / "docs" / "images" / name, optimize=True)


def _replace_demo_output(printed: str) -> None:
    page = ROOT / "README.md"
    text = page.read_text()
    (demo,) = [block for block in blocks(text) if block.text.startswith("demo: ")]
    page.write_text(text[: demo.start] + printed + text[demo.start + len(demo.text) :])
