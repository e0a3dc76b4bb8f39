"""From stored images to network input: random crop and mirror, then normalisation to float.

What is random is drawn first, for a whole epoch or view (`draw_views`), and applied as images are read (`View`), so
that a result depends neither on the batch size nor on who reads which batch. A part of an image is drawn as shares of
its sides, because its size is known only where it is decoded. Knows images and torch.
Shapes: N or B images, C channels, H x W pixels, T tries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lt_train.datasets._images.decoding import Box, Framing
from lt_train.datasets._images.files import ImageFiles, Images
from lt_train.datasets.base import Augmentation, ResizedCrop

__all__ = ["View", "apply_views", "draw_views", "normalise", "part_of_image"]

_TRIES = 10
"""Shares and shapes drawn for an image, of which the first that fits into it counts; torchvision's number."""


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """float32 `[B, C, H, W]`: `(images / 255 - mean) / std` a channel, of uint8 `[B, C, H, W]`."""
    shape = (1, -1, 1, 1)
    mean_C = torch.tensor(mean, device=images.device).view(shape) * 255
    std_C = torch.tensor(std, device=images.device).view(shape) * 255
    return (images.float() - mean_C) / std_C


def draw_views(count: int, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """What is random of one view of `count` images, a row each, whose last number is 1 where mirrored (even odds).

    Returns:
        For `PadCrop` int64 `[N, 3]`: row offset and column offset of the crop in `0 .. 2*pad`, mirrored.
        For `ResizedCrop` float32 `[N, 2*T + 3]`: T times share of the area and width over height; where the part lies
        between the top (0) and the bottom (1), and left to right; mirrored. See `part_of_image`.
    """
    if isinstance(augmentation, ResizedCrop):
        uniform_NT2 = torch.rand(count, _TRIES, 2, generator=generator)
        low, high = augmentation.scale
        shares = low + (high - low) * uniform_NT2[..., 0]
        low, high = map(math.log, augmentation.ratio)
        ratios = torch.exp(low + (high - low) * uniform_NT2[..., 1])
        drawn = [torch.stack([shares, ratios], dim=2).flatten(1), torch.rand(count, 2, generator=generator)]
    else:
        drawn = [torch.randint(0, 2 * augmentation.pad + 1, (count, 2), generator=generator)]
    mirrored = torch.randint(0, 2, (count, 1), generator=generator) * int(augmentation.flip)
    return torch.cat([*drawn, mirrored.to(drawn[0].dtype)], dim=1)


@dataclass(frozen=True)
class View:
    """Images as one view shows them: `[..]` reads a batch and augments it, by the rows that were drawn for it.

    Stands where images stand for `read_ahead`. `ResizedCrop` is for images in files alone.
    """

    images: Images
    augmentation: Augmentation
    drawn: Tensor

    def __len__(self) -> int:
        return len(self.images)

    @property
    def in_memory(self) -> bool:
        """Whether nothing has to be decoded."""
        if isinstance(self.augmentation, ResizedCrop):
            return False
        return isinstance(self.images, Tensor) or self.images.in_memory

    def __getitem__(self, batch: slice | Tensor) -> Tensor:
        """uint8 `[B, C, H, W]`.

        Raises:
            DataError: an image cannot be read or decoded; it is named.
        """
        drawn, augmentation = self.drawn[batch], self.augmentation
        if not isinstance(augmentation, ResizedCrop):
            return apply_views(self.images[batch], drawn, augmentation.pad)
        files, framings = self._framed(drawn)
        return _mirrored(files.framed(batch, framings), drawn)

    def attempt(self, batch: slice | Tensor) -> tuple[Tensor, dict[int, str]]:
        """See `ImageFiles.attempt`; for `ResizedCrop` alone, as other views are made of images that are read."""
        drawn = self.drawn[batch]
        files, framings = self._framed(drawn)
        images, unreadable = files.attempt(batch, framings)
        return _mirrored(images, drawn), unreadable

    def _framed(self, drawn: Tensor) -> tuple[ImageFiles, list[Framing]]:
        """The files, and what to cut out of each image."""
        assert isinstance(self.augmentation, ResizedCrop)
        assert isinstance(self.images, ImageFiles), "specs offer resized_crop where images are files alone"
        ratio = self.augmentation.ratio
        return self.images, [partial(part_of_image, row, ratio) for row in drawn.tolist()]


def _mirrored(images: Tensor, drawn: Tensor) -> Tensor:
    return torch.where(drawn[:, -1].view(-1, 1, 1, 1) == 1, images.flip(-1), images)


def apply_views(images: Tensor, views: Tensor, pad: int) -> Tensor:
    """Crop every image from its zero-padded self at its own offsets, then mirror where asked.

    Args:
        images: `[B, C, H, W]`, any dtype.
        views: int64 `[B, 3]` from `draw_views`; offset `pad` is no shift.
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
    """The part of an image of `width` x `height` pixels that a row of `draw_views` for `ResizedCrop` stands for.

    The first try that fits counts. Where none does, as in very long images, it is the largest part around the
    centre whose width over height lies within `ratio`. Source: torchvision, `RandomResizedCrop`.
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
