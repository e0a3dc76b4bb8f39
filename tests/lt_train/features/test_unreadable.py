"""Images that turn out unreadable during an extraction: refused by name, or dropped with a note."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.extraction import broken_inside, write_checkpoint
from support.images import encoded, write_tree

from lt_train.core.errors import DataError, StorageError
from lt_train.core.text import ProgressCallback
from lt_train.datasets.base import DATASETS, ImageData
from lt_train.features.bank import FeatureBank
from lt_train.features.extract import build_bank
from lt_train.features.files import open_bank
from lt_train.features.shards import Extractor, Shard, ShardResult, Workers, in_this_process
from lt_train.features.spec import FeaturesSpec

TREE = {"train": {"auk": 9, "crow": 6, "owl": 3}, "val": {"auk": 2, "crow": 2, "owl": 2}}

Make = Callable[..., FeatureBank]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "birds", TREE | {"test": TREE["val"]})


@pytest.fixture
def make(root: Path, tmp_path: Path) -> Make:
    """Builds the bank of the tree; `spoil` runs after the images were checked and before they are extracted."""
    checkpoint = write_checkpoint(tmp_path / "stage1.safetensors", channels=3, classes=3)

    def bank(
        spoil: Callable[[], Any] = lambda: None,
        in_memory: int = 0,
        store: str = "banks",
        dataset: dict[str, Any] | None = None,
        workers: Workers = in_this_process,
        report: ProgressCallback | None = None,
        **spec: Any,
    ) -> Any:
        folder = {"kind": "image_folder", "root": str(root), "size": 8, "in_memory": in_memory}
        parsed = DATASETS.parse(folder | (dataset or {}))
        if in_memory:
            spoil()
        data = parsed.load()
        if not in_memory:
            spoil()
        features = FeaturesSpec(**({"views": 2, "batch_size": 4} | spec))
        return open_bank(
            build_bank(parsed, checkpoint, features, tmp_path / store, data=data, workers=workers, report=report)
        )

    return bank


def spoiled(root: Path, how: str, name: str = "train/crow/02.jpg") -> None:
    file = root / name
    content = file.read_bytes()
    if how == "missing":
        file.unlink()
    else:
        file.write_bytes(
            {"empty": b"", "truncated": content[: len(content) // 2], "inside": broken_inside(len(content) - 5)}[how]
        )


@pytest.mark.parametrize(
    ("how", "why"), [("missing", "missing"), ("empty", "0 bytes"), ("truncated", "truncated"), ("inside", "")]
)
def test_by_default_the_first_is_named(make: Make, root: Path, tmp_path: Path, how: str, why: str) -> None:
    with pytest.raises(DataError, match=rf"1 \(1 in train\): train/crow/02\.jpg \(.*{why}.*features\.unreadable: skip"):
        make(lambda: spoiled(root, how))


def test_a_fixed_image_is_extracted_when_the_extraction_resumes(make: Make, root: Path) -> None:
    whole = make(store="whole")
    good = (root / "train/owl/02.jpg").read_bytes()
    with pytest.raises(DataError, match=r"train/owl/02\.jpg"):
        make(lambda: spoiled(root, "inside", "train/owl/02.jpg"))
    (root / "train/owl/02.jpg").write_bytes(good)
    assert torch.equal(make().train_features, whole.train_features)


@pytest.mark.parametrize("in_memory", [0, 2**30])
def test_skipped_images_are_dropped_with_a_note(make: Make, root: Path, in_memory: int) -> None:
    def spoil() -> None:
        for name in ("train/crow/02.jpg", "train/auk/00.jpg", "test/owl/01.jpg"):
            spoiled(root, "inside", name)

    whole, bank = make(store="whole"), make(spoil, in_memory, unreadable="skip")
    kept = torch.tensor([row for row in range(18) if row not in (0, 11)])
    for view in range(2):
        torch.testing.assert_close(bank.train_features[view], whole.train_features[view][kept])
    assert bank.train_labels.tolist() == whole.train_labels[kept].tolist()
    assert bank.class_counts.tolist() == [8, 5, 3]
    assert bank.split_counts.tolist() == [9, 6, 3]
    torch.testing.assert_close(bank.test.features, whole.test.features[:, :-1])
    assert bank.test.labels.tolist() == [0, 0, 1, 1, 2]
    assert bank.val is not None
    assert len(bank.val.labels) == 6
    dropped, lacks = bank.notes[-2:]
    assert dropped.startswith("dropped (features.unreadable: skip): unreadable images: 3 (2 in train, 1 in test)")
    assert all(name in dropped for name in ("train/crow/02.jpg", "train/auk/00.jpg", "test/owl/01.jpg"))
    assert lacks.startswith("test lacks images")
    bank.check()


def test_a_bank_that_lacks_images_is_not_reused_for_all_images(make: Make, root: Path) -> None:
    lacking = make(lambda: spoiled(root, "inside"), unreadable="skip")
    assert len(lacking.train_labels) == 17
    with pytest.raises(DataError, match=r"train/crow/02\.jpg"):
        make()


def test_in_memory_images_are_checked_before_anything_is_extracted(make: Make, root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"image test/auk/01\.jpg cannot be decoded \(not an image of a known format\)"):
        make(lambda: spoiled(root, "inside", "test/auk/01.jpg"), 2**30)
    assert not (tmp_path / "banks").exists()


def test_every_class_and_every_set_must_keep_an_image(make: Make, root: Path) -> None:
    def owls() -> None:
        for number in range(3):
            spoiled(root, "empty", f"train/owl/{number:02}.jpg")

    with pytest.raises(DataError, match=r"3 \(3 in train\): .*every class needs a training image.* none: 2"):
        make(owls, unreadable="skip")

    def tests() -> None:
        for file in (root / "test").rglob("*.jpg"):
            file.write_bytes(b"")

    for number in range(3):
        (root / f"train/owl/{number:02}.jpg").write_bytes(encoded(2, number))
    with pytest.raises(DataError, match=r"test must have readable images, got none"):
        make(tests, unreadable="skip")


def test_images_that_reappear_are_read_when_the_extraction_resumes(make: Make, root: Path) -> None:
    whole = make(store="whole", unreadable="skip")
    with pytest.raises(DataError, match=r"3 \(3 in train\): .*every class needs a training image.* none: 2"):
        make(lambda: (root / "train/owl").rename(root / "gone"), unreadable="skip")
    (root / "gone").rename(root / "train/owl")
    bank = make(unreadable="skip")
    assert torch.equal(bank.train_features, whole.train_features)
    assert bank.notes == whole.notes


@pytest.mark.parametrize("unreadable", ["fail", "skip"])
@pytest.mark.parametrize("augmentation", [{"pad": 1, "flip": True}, "resized_crop"], ids=["pad_crop", "resized_crop"])
def test_a_machine_without_the_images_drops_none(make: Make, root: Path, unreadable: str, augmentation: Any) -> None:
    """They are missing there and readable here."""
    augmented = {"augmentation": augmentation}
    whole = make(store="whole", dataset=augmented, unreadable=unreadable)

    def lacking(extractor: Extractor, wanted: Sequence[Shard]) -> Iterator[ShardResult]:
        done = list(extractor.run(wanted[:2]))
        root.rename(root.with_name("not mounted"))
        done += extractor.run(wanted[2:])
        root.with_name("not mounted").rename(root)
        return (dataclasses.replace(one, host="node-7") for one in done)

    with pytest.raises(
        StorageError,
        match=r"image train/auk/00\.jpg could not be read on node-7 \(missing\), but can be read on .*same path",
    ):
        make(workers=lacking, dataset=augmented, unreadable=unreadable)
    reports: list[tuple[int, int, str]] = []
    bank = make(dataset=augmented, unreadable=unreadable, report=lambda *one: reports.append(one))
    assert reports[0][2] == "resumed after 18 of 60 images"
    assert torch.equal(bank.train_features, whole.train_features)
    assert bank.notes == whole.notes


def test_an_io_error_is_raised_and_not_skipped(make: Make, root: Path) -> None:
    def a_folder_in_its_place() -> None:
        (root / "train/crow/02.jpg").unlink()
        (root / "train/crow/02.jpg").mkdir()

    with pytest.raises(StorageError, match=r"image train/crow/02\.jpg cannot be read \(.*check its disk"):
        make(a_folder_in_its_place, unreadable="skip")


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_are_read(make: Make, root: Path, mode: str) -> None:
    (root / "train/crow/02.jpg").write_bytes(encoded(1, 2, mode))
    with Image.open(io.BytesIO((root / "train/crow/02.jpg").read_bytes())) as image:
        assert image.mode == mode
    assert len(make().train_labels) == 18


def test_stage_1_refuses_unreadable_images(root: Path, tmp_path: Path) -> None:
    from lt_train.backbones.base import BACKBONES
    from lt_train.pretrain.recipes import RECIPES
    from lt_train.pretrain.train import train_backbone

    spoiled(root, "inside", "test/owl/00.jpg")
    data = DATASETS.parse({"kind": "image_folder", "root": str(root), "size": 8}).load()
    assert isinstance(data, ImageData)
    with pytest.raises(DataError, match=r"image test/owl/00\.jpg cannot be decoded"):
        train_backbone(data, BACKBONES.parse({"kind": "small_cnn"}), RECIPES.parse({"kind": "ce"}), tmp_path / "out")
