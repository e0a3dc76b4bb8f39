"""How the bytes of one image become pixels: Pillow, as torchvision uses it.

Touch this to change how an image is decoded, resized or cut; reading many is `images`'. Knows Pillow only.
Shapes: H = W = `size` pixels.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

__all__ = ["Box", "Decoding", "Framing"]

_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
"""What Pillow may take an image for, and not all that it knows: an EPS file is a program, which it has run."""


class Box(NamedTuple):
    """A part of an image, in its own pixels."""

    left: int
    top: int
    width: int
    height: int


Framing = Callable[[int, int], Box]
"""From an image's width and height to the part of it that is wanted."""


@dataclass(frozen=True)
class Decoding:
    """How bytes become pixels: RGB, the shorter side resized, the centre cut out; as torchvision does it with Pillow.

    Grey, palette and CMYK become RGB, and of 16 bits the upper eight are taken; 32 bits a channel are refused. Alpha is
    dropped, and of an animation the first frame is taken. A rotation that EXIF asks for is not applied, as in the
    common readers.

    Attributes:
        size: side of the square that is cut out, in pixels.
        resize: length of the shorter side before that, bilinear and antialiased; at least `size`.
    """

    size: int
    resize: int

    def __call__(self, content: bytes, framing: Framing | None = None) -> np.ndarray[Any, Any]:
        """uint8 `[3, H, W]`; whatever Pillow raises for what is no image, or a damaged one.

        With a framing, the part of the whole image that it asks for is resized to the square instead.
        """
        with Image.open(io.BytesIO(content), formats=_FORMATS) as file:
            file.load()
            image = _rgb(file)
        image = self._centre(image) if framing is None else self._part(image, framing(*image.size))
        return np.asarray(image).transpose(2, 0, 1)

    def _part(self, image: Image.Image, box: Box) -> Image.Image:
        # Two steps, as torchvision's resized_crop: resize(box=...) would let pixels beyond the box in.
        cut = image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
        return cut.resize((self.size, self.size), Image.Resampling.BILINEAR)

    def _centre(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        short, long = sorted(image.size)
        if short != self.resize:
            other = int(self.resize * long / short)
            width, height = (self.resize, other) if width <= height else (other, self.resize)
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = round((width - self.size) / 2), round((height - self.size) / 2)
        if (width, height) != (self.size, self.size):
            image = image.crop((left, top, left + self.size, top + self.size))
        return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):  # a PGM, whose white is 65535
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):  # nothing says which number is white, and `convert` would clip
        raise ValueError("pixels of 32 bits have no scale; save it with 8 or 16 bits a channel")
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # else Pillow warns, and mixes up transparent colours
    return image.convert("RGB")
