"""Normalisation and augmentations against torch's and torchvision's own operations."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional
from torchvision.transforms import v2

from lt_train.datasets._images.checks import probe
from lt_train.datasets._images.decode import Decoder
from lt_train.datasets._images.files import Files, ImageFiles, read_ahead
from lt_train.datasets._images.transform import View, apply_views, draw_views, normalise, part_of_image
from lt_train.datasets.base import PadCrop, ResizedCrop

IMAGES = torch.randint(0, 256, (40, 3, 6, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def drawn_pads(seed: int, pad: int = 2, flip: bool = True, count: int = 40) -> torch.Tensor:
    return draw_views(count, PadCrop(pad=pad, flip=flip), torch.Generator().manual_seed(seed))


def test_normalise_is_the_formula() -> None:
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    normal = normalise(IMAGES, mean, std)
    for channel in range(3):
        expected = (IMAGES[:, channel].double() / 255 - mean[channel]) / std[channel]
        torch.testing.assert_close(normal[:, channel].double(), expected, atol=1e-6, rtol=1e-6)


def test_every_image_is_cropped_and_mirrored_as_drawn() -> None:
    views = drawn_pads(0)
    result = apply_views(IMAGES, views, pad=2)
    for image, view, (row, column, mirrored) in zip(IMAGES, result, views.tolist(), strict=True):
        cropped = functional.pad(image, (2, 2, 2, 2))[:, row : row + 6, column : column + 7]
        assert torch.equal(view, cropped.flip(-1) if mirrored else cropped)


def test_draws_cover_their_range() -> None:
    views = drawn_pads(0, count=1000)
    assert views[:, 0].unique().tolist() == views[:, 1].unique().tolist() == [0, 1, 2, 3, 4]
    assert 400 < int(views[:, 2].sum()) < 600
    assert int(drawn_pads(0, flip=False)[:, 2].sum()) == 0


def test_no_shift_and_no_mirror_changes_nothing() -> None:
    assert torch.equal(apply_views(IMAGES, drawn_pads(0, pad=0, flip=False), pad=0), IMAGES)


def test_views_depend_on_the_generator_and_not_on_batches() -> None:
    views = drawn_pads(3)
    assert torch.equal(views, drawn_pads(3))
    assert not torch.equal(views, drawn_pads(4))
    whole = apply_views(IMAGES, views, 2)
    halves = [apply_views(IMAGES[part], views[part], 2) for part in (slice(0, 13), slice(13, 40))]
    assert torch.equal(whole, torch.cat(halves))


SIZES = [(40, 30), (30, 41), (17, 17), (8, 90), (200, 9), (64, 64), (3, 5)] * 4


@pytest.fixture
def images(tmp_path: Path) -> ImageFiles:
    rng = np.random.default_rng(3)
    names = [f"{k}.png" for k in range(len(SIZES))]
    for name, (width, height) in zip(names, SIZES, strict=True):
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(tmp_path / name)
    source, decoder = Files(tmp_path, names), Decoder(size=12, resize=14)
    return ImageFiles(source, decoder, probe(source, decoder, whole=False)[0])


def drawn_crops(count: int, seed: int = 0, augmentation: ResizedCrop | None = None) -> torch.Tensor:
    return draw_views(count, augmentation or ResizedCrop(), torch.Generator().manual_seed(seed))


def test_a_view_is_torchvisions_resized_crop_of_the_whole_image(tmp_path: Path, images: ImageFiles) -> None:
    augmentation, rows = ResizedCrop(), drawn_crops(len(SIZES))
    view = View(images, augmentation, rows)[:]
    assert 0 < rows[:, -1].sum() < len(SIZES)
    for name, row, result in zip(images.names, rows.tolist(), view, strict=True):
        with Image.open(tmp_path / name) as image:
            left, top, width, height = part_of_image(row, augmentation.ratio, *image.size)
            expected = v2.functional.resized_crop(image, top, left, height, width, [12, 12])
        expected = v2.functional.pil_to_tensor(v2.functional.hflip(expected) if row[-1] else expected)
        assert torch.equal(result, expected)


def test_the_whole_of_a_square_is_the_resized_image(images: ImageFiles) -> None:
    square = images.take(torch.tensor([SIZES.index((17, 17))]))
    whole = ResizedCrop(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=False)
    resized = ImageFiles(square.source, Decoder(17, 17), np.zeros(len(SIZES)), np.array([2]))
    assert torch.equal(View(resized, whole, drawn_crops(1, augmentation=whole))[:], resized[:])


@pytest.mark.parametrize(("width", "height"), [(500, 375), (60, 80), (400, 90)])
def test_parts_have_torchvisions_distribution(width: int, height: int) -> None:
    count, augmentation = 4000, ResizedCrop(scale=(0.2, 0.9), ratio=(0.5, 2.0))
    ours = [
        part_of_image(row, augmentation.ratio, width, height) for row in drawn_crops(count, 1, augmentation).tolist()
    ]
    theirs = []
    crop = v2.RandomResizedCrop(12, augmentation.scale, augmentation.ratio)
    image = torch.empty(3, height, width)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(count):
            box = crop.make_params([image])
            theirs.append((box["left"], box["top"], box["width"], box["height"]))
    one, other = (np.array(boxes) / (width, height, width, height) for boxes in (ours, theirs))
    assert np.abs(one.mean(axis=0) - other.mean(axis=0)).max() < 0.015
    deciles = np.linspace(0.1, 0.9, 9)
    assert np.abs(np.quantile(one, deciles, axis=0) - np.quantile(other, deciles, axis=0)).max() < 0.04
    for left, top, part_width, part_height in ours:
        assert 0 <= left <= width - part_width
        assert 0 <= top <= height - part_height


@pytest.mark.parametrize(("width", "height"), [(900, 2), (2, 900), (1, 1)])
def test_the_fallback_is_torchvisions_centre_part(width: int, height: int) -> None:
    augmentation = ResizedCrop(scale=(0.9, 1.0))
    expected = v2.RandomResizedCrop(12, (0.9, 1.0)).make_params([torch.empty(3, height, width)])
    for row in drawn_crops(50, 2, augmentation).tolist():
        box = part_of_image(row, augmentation.ratio, width, height)
        assert box._asdict() == expected


def test_a_view_depends_neither_on_batches_nor_on_the_reader(images: ImageFiles) -> None:
    augmentation, rows = ResizedCrop(), drawn_crops(len(SIZES), 5)
    view = View(images, augmentation, rows)
    whole = view[:]
    batches = [slice(0, 5), torch.tensor([9, 3, 20]), slice(5, len(SIZES))]
    for batch, read in zip(batches, read_ahead(view, batches), strict=True):
        assert torch.equal(read, whole[batch])
    assert torch.equal(View(images.hold(), augmentation, rows)[:], whole)
    half = torch.arange(14, len(SIZES))  # what a worker has: some of the images and their rows
    assert torch.equal(View(images.take(half), augmentation, rows[half])[:], whole[half])
    assert torch.equal(drawn_crops(len(SIZES), 5), rows)
    assert not torch.equal(View(images, augmentation, drawn_crops(len(SIZES), 6))[:], whole)


def test_the_flip_is_even_or_never() -> None:
    assert 400 < drawn_crops(1000)[:, -1].sum() < 600
    assert drawn_crops(1000, augmentation=ResizedCrop(flip=False))[:, -1].sum() == 0
