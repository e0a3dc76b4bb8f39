"""From stored pictures to network input: random crop and mirror on uint8, then normalisation to float.

What is random is drawn first, for a whole epoch or view (`draw_views`), and applied batch by batch (`apply_views`), so
that a result never depends on the batch size. Knows torch only. Shapes: N or B pictures, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lt_train.datasets.base import Augmentation

__all__ = ["apply_views", "draw_views", "normalise"]


def normalise(pictures: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """float32 `[B, C, H, W]`: `(pictures / 255 - mean) / std` a channel, of uint8 `[B, C, H, W]`."""
    shape = (1, -1, 1, 1)
    mean_C = torch.tensor(mean, device=pictures.device).view(shape) * 255
    std_C = torch.tensor(std, device=pictures.device).view(shape) * 255
    return (pictures.float() - mean_C) / std_C


def draw_views(count: int, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """int64 `[N, 3]`: row offset and column offset of the crop in `0 .. 2*pad`, and 1 where mirrored (even odds)."""
    offsets = torch.randint(0, 2 * augmentation.pad + 1, (count, 2), generator=generator)
    mirrored = torch.randint(0, 2, (count, 1), generator=generator) * int(augmentation.flip)
    return torch.cat([offsets, mirrored], dim=1)


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
