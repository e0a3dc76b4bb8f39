"""Miniature trees of small JPEGs whose brightness depends on their class; some are broken in known ways."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["encoded", "write_images", "write_tree"]


def encoded(label: int, seed: int, mode: str = "RGB", size: tuple[int, int] = (12, 10)) -> bytes:
    """A noisy JPEG whose brightness depends on the class; `mode` is RGB, L or CMYK."""
    rng = np.random.default_rng((label, seed))
    bands = len(Image.new(mode, (1, 1)).getbands())
    noise = rng.integers(0, 40, (size[1], size[0], bands), dtype=np.uint8) + np.uint8(50 * (label % 4))
    file = io.BytesIO()
    Image.fromarray(noise[..., 0] if bands == 1 else noise, mode).save(file, "JPEG", quality=90)
    return file.getvalue()


def write_images(root: Path, images: Mapping[str, int], broken: Mapping[str, str] | None = None) -> None:
    """Write a JPEG of the given class to every path below `root`.

    `broken` maps paths to empty, truncated, page (an HTML page) or missing.
    """
    broken = broken or {}
    for seed, (name, label) in enumerate(images.items()):
        content = encoded(label, seed, ("RGB", "L", "CMYK")[seed % 3])
        how = broken.get(name)
        if how == "missing":
            continue
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(
            {"empty": b"", "truncated": content[: len(content) // 2], "page": b"<html>"}.get(how or "", content)
        )


def write_tree(root: Path, parts: Mapping[str, Mapping[str, int]], broken: Mapping[str, str] | None = None) -> Path:
    """Write `root/<part>/<class>/NN.jpg`; `parts` gives the number of images per class; the part "" is root itself."""
    for part, classes in parts.items():
        names = {
            "/".join(filter(None, (part, name, f"{number:02}.jpg"))): label
            for label, name in enumerate(sorted(classes))
            for number in range(classes[name])
        }
        write_images(root, names, broken)
    return root
