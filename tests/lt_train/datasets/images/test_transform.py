"""Normalisation and augmentation against torch's own operations, image by image."""

import torch
from torch.nn import functional

from lt_train.datasets._images.transform import apply_views, draw_views, normalise
from lt_train.datasets.base import PadCrop

IMAGES = torch.randint(0, 256, (40, 3, 6, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def drawn(seed: int, pad: int = 2, flip: bool = True, count: int = 40) -> torch.Tensor:
    return draw_views(count, PadCrop(pad=pad, flip=flip), torch.Generator().manual_seed(seed))


def test_normalise_is_the_formula() -> None:
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    normal = normalise(IMAGES, mean, std)
    for channel in range(3):
        expected = (IMAGES[:, channel].double() / 255 - mean[channel]) / std[channel]
        torch.testing.assert_close(normal[:, channel].double(), expected, atol=1e-6, rtol=1e-6)


def test_every_image_is_cropped_and_mirrored_as_drawn() -> None:
    views = drawn(0)
    result = apply_views(IMAGES, views, pad=2)
    for image, view, (row, column, mirrored) in zip(IMAGES, result, views.tolist(), strict=True):
        cropped = functional.pad(image, (2, 2, 2, 2))[:, row : row + 6, column : column + 7]
        assert torch.equal(view, cropped.flip(-1) if mirrored else cropped)


def test_draws_cover_their_range() -> None:
    views = drawn(0, count=1000)
    assert views[:, 0].unique().tolist() == views[:, 1].unique().tolist() == [0, 1, 2, 3, 4]
    assert 400 < int(views[:, 2].sum()) < 600
    assert int(drawn(0, flip=False)[:, 2].sum()) == 0


def test_no_shift_and_no_mirror_is_the_image_itself() -> None:
    assert torch.equal(apply_views(IMAGES, drawn(0, pad=0, flip=False), pad=0), IMAGES)


def test_views_depend_on_the_generator_alone_and_not_on_batches() -> None:
    views = drawn(3)
    assert torch.equal(views, drawn(3))
    assert not torch.equal(views, drawn(4))
    whole = apply_views(IMAGES, views, 2)
    halves = [apply_views(IMAGES[part], views[part], 2) for part in (slice(0, 13), slice(13, 40))]
    assert torch.equal(whole, torch.cat(halves))
