"""Augmentations, and the conversion of stored images to network input: random crop, random mirror, normalisation.

Random numbers are drawn first, for all images of an epoch or view (`draw`), and applied as images are read (`View`).
A result therefore depends neither on the batch size nor on the process that reads a batch.
Shapes: N or B images, C channels, H x W pixels, T tries.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, field_validator
from pydantic_core.core_schema import ValidationInfo

from lt_train.core.fields import Shorthand
from lt_train.core.imports import torch
from lt_train.core.registry import Spec
from lt_train.datasets._images.decode import Box, Framing
from lt_train.datasets._images.files import ImageFiles, Images

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "AnyAugmentation",
    "Augmentation",
    "PadCrop",
    "ResizedCrop",
    "View",
    "apply_views",
    "draw_views",
    "normalise",
    "part_of_image",
]

_TRIES = 10
"""Areas and aspect ratios drawn per image, of which the first that fits is used; torchvision's number."""

Flip = Annotated[bool, Field(description="mirror images at random; false: for data where mirroring changes the class")]


class Augmentation(Spec):
    """Base of the augmentations: what is drawn for an image, and how it is applied.

    Attributes:
        flip: whether images are mirrored with probability 0.5. Test-time flipping follows it by default.
        needs_files: whether crops are taken from the whole image, so that each view decodes the files again.
    """

    needs_files: ClassVar[bool] = False

    flip: Flip

    @abstractmethod
    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Random numbers for the crops of `count` images, one row per image."""

    @abstractmethod
    def apply(self, images: Tensor, drawn: Tensor) -> Tensor:
        """Augmented images `[B, C, H, W]`, of the same dtype; `drawn` has a row of `draw_views` per image."""

    def framings(self, drawn: Tensor) -> list[Framing]:
        """With `needs_files`: the part of each whole image that is decoded before `apply`."""
        raise NotImplementedError


class PadCrop(Augmentation):
    """Zero padding by `pad` pixels, a random crop and a random mirror (paper, Appendix D): for small images.

    A mapping without `kind` means this kind.
    """

    kind: Literal["pad_crop"] = "pad_crop"
    pad: Annotated[int, Field(ge=0, description="pixels of zero padding before the random crop; 0: no crop")]

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """int64 `[N, 2]`: row and column offset of the crop in `0 .. 2*pad`."""
        return torch.randint(0, 2 * self.pad + 1, (count, 2), generator=generator)

    def apply(self, images: Tensor, drawn: Tensor) -> Tensor:
        """See `apply_views`."""
        return apply_views(images, drawn, self.pad)


class ResizedCrop(Augmentation):
    """A random part of the full-size image, resized to the square, and a random mirror: for images in files.

    Area and aspect ratio are drawn as in Szegedy et al. (2015) and torchvision's RandomResizedCrop.
    """

    needs_files: ClassVar[bool] = True

    kind: Literal["resized_crop"] = "resized_crop"
    scale: Annotated[
        tuple[float, float],
        Field(description="smallest and largest share of the area, 0 < smallest <= largest <= 1"),
    ] = (0.08, 1.0)
    ratio: Annotated[
        tuple[float, float], Field(description="smallest and largest ratio of width to height, 0 < smallest <= largest")
    ] = (3 / 4, 4 / 3)
    flip: Flip = True

    @field_validator("scale", "ratio")
    @classmethod
    def _check_range(cls, ends: tuple[float, float], field: ValidationInfo) -> tuple[float, float]:
        if not 0 < ends[0] <= ends[1]:
            raise ValueError(f"must be two numbers above 0 in ascending order, got {list(ends)}")
        if field.field_name == "scale" and ends[1] > 1:
            raise ValueError(f"must be shares of the image, at most 1, got {list(ends)}")
        return ends

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """float32 `[N, 2*T + 2]`: T pairs of area and aspect ratio, then the position; see `part_of_image`."""
        uniform_NT2 = torch.rand(count, _TRIES, 2, generator=generator)
        low, high = self.scale
        areas = low + (high - low) * uniform_NT2[..., 0]
        low, high = map(math.log, self.ratio)
        ratios = torch.exp(low + (high - low) * uniform_NT2[..., 1])
        tries = torch.stack([areas, ratios], dim=2).flatten(1)
        return torch.cat([tries, torch.rand(count, 2, generator=generator)], dim=1)

    def apply(self, images: Tensor, drawn: Tensor) -> Tensor:
        """Mirrors where drawn; the crop is part of decoding."""
        return torch.where(drawn[:, -1].view(-1, 1, 1, 1) == 1, images.flip(-1), images)

    def framings(self, drawn: Tensor) -> list[Framing]:
        """See `part_of_image`."""
        return [partial(part_of_image, row, self.ratio) for row in drawn.tolist()]


AnyAugmentation = Annotated[
    PadCrop | ResizedCrop, Field(discriminator="kind"), Shorthand(("resized_crop",), default_kind="pad_crop")
]
"""A field that takes any augmentation, for datasets whose images are files."""


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """float32 `[B, C, H, W]`: `(images / 255 - mean) / std` per channel, for uint8 `[B, C, H, W]`."""
    shape = (1, -1, 1, 1)
    mean_C = torch.tensor(mean, device=images.device).view(shape) * 255
    std_C = torch.tensor(std, device=images.device).view(shape) * 255
    return (images.float() - mean_C) / std_C


def draw_views(count: int, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """All random numbers of one view of `count` images, one row per image.

    Returns:
        The columns of `augmentation.draw`, and a last one that is 1 where the image is mirrored, else 0.
    """
    drawn = augmentation.draw(count, generator)
    mirrored = torch.randint(0, 2, (count, 1), generator=generator) * int(augmentation.flip)
    return torch.cat([drawn, mirrored.to(drawn.dtype)], dim=1)


@dataclass(frozen=True)
class View:
    """One augmented view of images: indexing reads a batch and augments it with the rows drawn for it.

    Attributes:
        images: in memory or in files; an augmentation with `needs_files` needs `ImageFiles`.
        augmentation: what to apply.
        drawn: from `draw_views`, one row per image.
    """

    images: Images
    augmentation: Augmentation
    drawn: Tensor

    def __len__(self) -> int:
        return len(self.images)

    @property
    def in_memory(self) -> bool:
        """Whether indexing decodes nothing."""
        return not self.augmentation.needs_files and (isinstance(self.images, torch.Tensor) or self.images.in_memory)

    def __getitem__(self, batch: slice | Tensor) -> Tensor:
        """uint8 `[B, C, H, W]`.

        Raises:
            DataError: an image cannot be read or decoded; the message names it.
        """
        drawn, augmentation = self.drawn[batch], self.augmentation
        if augmentation.needs_files:
            images = self._files().framed(batch, augmentation.framings(drawn))
        else:
            images = self.images[batch]
        return augmentation.apply(images, drawn)

    def try_read(self, batch: slice | Tensor) -> tuple[Tensor, dict[int, str]]:
        """See `ImageFiles.try_read`; for augmentations with `needs_files` only."""
        drawn = self.drawn[batch]
        images, unreadable = self._files().try_read(batch, self.augmentation.framings(drawn))
        return self.augmentation.apply(images, drawn), unreadable

    def _files(self) -> ImageFiles:
        assert isinstance(self.images, ImageFiles), "only datasets of image files offer such an augmentation"
        return self.images


def apply_views(images: Tensor, views: Tensor, pad: int) -> Tensor:
    """Crop every image from its zero-padded self at its own offsets, then mirror where drawn.

    Args:
        images: `[B, C, H, W]`, any dtype.
        views: int64 `[B, 3]` from `draw_views`; an offset of `pad` means no shift.
        pad: pixels of zero padding on each side.

    Returns:
        The same shape and dtype.
    """
    count, channels, height, width = images.shape
    padded = torch.nn.functional.pad(images, (pad, pad, pad, pad))
    columns = torch.arange(width, device=images.device).expand(count, width)
    columns = torch.where(views[:, 2:] == 1, columns.flip(1), columns) + views[:, 1:2]
    rows = torch.arange(height, device=images.device) + views[:, 0:1]
    return padded[
        torch.arange(count, device=images.device)[:, None, None, None],
        torch.arange(channels, device=images.device)[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]


def part_of_image(view: Sequence[float], ratio: tuple[float, float], width: int, height: int) -> Box:
    """The part of an image of `width` x `height` pixels that a row of `draw_views` for `ResizedCrop` selects.

    The row holds T pairs of area and aspect ratio, the position from the top (0) to the bottom (1) and from left to
    right, and whether to mirror. The first pair that fits is used. If none fits, as in very long images, the part is
    the largest one around the centre whose aspect ratio lies within `ratio`. Source: torchvision, `RandomResizedCrop`.
    """
    *tries, top, left, _ = view
    for share, shape in zip(tries[::2], tries[1::2], strict=True):
        area = share * width * height
        part_width, part_height = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < part_width <= width and 0 < part_height <= height:
            spare_width, spare_height = width - part_width, height - part_height
            return Box(int(left * (spare_width + 1)), int(top * (spare_height + 1)), part_width, part_height)
    part_width, part_height = width, height
    if width / height < ratio[0]:
        part_height = max(round(width / ratio[0]), 1)
    elif width / height > ratio[1]:
        part_width = max(round(height * ratio[1]), 1)
    return Box((width - part_width) // 2, (height - part_height) // 2, part_width, part_height)
