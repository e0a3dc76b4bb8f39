"""From stored pictures to network input: random crop and mirror, then normalisation to float.

What is random is drawn first, for a whole epoch or view (`draw_views`), and applied as pictures are read (`View`), so
that a result depends neither on the batch size nor on who reads which batch. A part of a picture is drawn as shares of
its sides, because its size is known only where it is decoded. Knows pictures and torch.
Shapes: N or B pictures, C channels, H x W pixels, T tries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lt_train.datasets._images.decoding import Box, Framing
from lt_train.datasets._images.files import PictureFiles, Pictures
from lt_train.datasets.base import Augmentation, ResizedCrop

__all__ = ["View", "apply_views", "draw_views", "normalise", "part_of_picture"]

_TRIES = 10
"""Shares and shapes drawn for a picture, of which the first that fits into it counts; torchvision's number."""


def normalise(pictures: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """float32 `[B, C, H, W]`: `(pictures / 255 - mean) / std` a channel, of uint8 `[B, C, H, W]`."""
    shape = (1, -1, 1, 1)
    mean_C = torch.tensor(mean, device=pictures.device).view(shape) * 255
    std_C = torch.tensor(std, device=pictures.device).view(shape) * 255
    return (pictures.float() - mean_C) / std_C


def draw_views(count: int, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """What is random of one view of `count` pictures, a row each, whose last number is 1 where mirrored (even odds).

    Returns:
        For `PadCrop` int64 `[N, 3]`: row offset and column offset of the crop in `0 .. 2*pad`, mirrored.
        For `ResizedCrop` float32 `[N, 2*T + 3]`: T times share of the area and width over height; where the part lies
        between the top (0) and the bottom (1), and left to right; mirrored. See `part_of_picture`.
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
    """Pictures as one view shows them: `[..]` reads a batch and augments it, by the rows that were drawn for it.

    Stands where pictures stand for `read_ahead`. `ResizedCrop` is for pictures in files alone.
    """

    pictures: Pictures
    augmentation: Augmentation
    drawn: Tensor

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def in_memory(self) -> bool:
        """Whether nothing has to be decoded."""
        if isinstance(self.augmentation, ResizedCrop):
            return False
        return isinstance(self.pictures, Tensor) or self.pictures.in_memory

    def __getitem__(self, batch: slice | Tensor) -> Tensor:
        """uint8 `[B, C, H, W]`.

        Raises:
            DataError: a picture cannot be read or decoded; it is named.
        """
        drawn, augmentation = self.drawn[batch], self.augmentation
        if not isinstance(augmentation, ResizedCrop):
            return apply_views(self.pictures[batch], drawn, augmentation.pad)
        files, framings = self._framed(drawn)
        return _mirrored(files.framed(batch, framings), drawn)

    def attempt(self, batch: slice | Tensor) -> tuple[Tensor, dict[int, str]]:
        """See `PictureFiles.attempt`; for `ResizedCrop` alone, as other views are made of pictures that are read."""
        drawn = self.drawn[batch]
        files, framings = self._framed(drawn)
        pictures, unreadable = files.attempt(batch, framings)
        return _mirrored(pictures, drawn), unreadable

    def _framed(self, drawn: Tensor) -> tuple[PictureFiles, list[Framing]]:
        """The files, and what to cut out of each picture."""
        assert isinstance(self.augmentation, ResizedCrop)
        assert isinstance(self.pictures, PictureFiles), "specs offer resized_crop where pictures are files alone"
        ratio = self.augmentation.ratio
        return self.pictures, [partial(part_of_picture, row, ratio) for row in drawn.tolist()]


def _mirrored(pictures: Tensor, drawn: Tensor) -> Tensor:
    return torch.where(drawn[:, -1].view(-1, 1, 1, 1) == 1, pictures.flip(-1), pictures)


def apply_views(pictures: Tensor, views: Tensor, pad: int) -> Tensor:
    """Crop every picture from its zero-padded self at its own offsets, then mirror where asked.

    Args:
        pictures: `[B, C, H, W]`, any dtype.
        views: int64 `[B, 3]` from `draw_views`; offset `pad` is no shift.
        pad: pixels of zero padding on each side.

    Returns:
        The same shape and dtype.
    """
    count, channels, height, width = pictures.shape
    padded = torch.nn.functional.pad(pictures, (pad, pad, pad, pad))
    columns = torch.arange(width, device=pictures.device).expand(count, width)
    columns = torch.where(views[:, 2:] == 1, columns.flip(1), columns) + views[:, 1:2]
    rows = torch.arange(height, device=pictures.device) + views[:, 0:1]
    return padded[
        torch.arange(count, device=pictures.device)[:, None, None, None],
        torch.arange(channels, device=pictures.device)[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]


def part_of_picture(view: Sequence[float], ratio: tuple[float, float], width: int, height: int) -> Box:
    """The part of a picture of `width` x `height` pixels that a row of `draw_views` for `ResizedCrop` stands for.

    The first try that fits counts. Where none does, as in very long pictures, it is the largest part around the
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
