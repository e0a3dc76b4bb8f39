"""Predictions for a folder: on the test images of the sweep, they have its recorded accuracy, to the image."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from support.images import write_images, write_tree

import sweeps
from lt_train.core.errors import DataError, UserError
from sweeps.analysis.load import Sweep, read_sweep
from sweeps.config.spec import SweepSpec, load_resolved
from sweeps.reporting.export import export_model, predict
from sweeps.reporting.export.predict import _luminance

pytestmark = pytest.mark.slow

MakeSweep = Callable[..., SweepSpec]

CLASSES = ("auk", "crow", "owl")


def run(spec: SweepSpec) -> tuple[Sweep, float]:
    result = sweeps.run(spec)
    assert result.winner is not None
    assert result.winner.best_of.acc_all is not None
    return read_sweep(Path(spec.storage) / spec.name), result.winner.best_of.acc_all


@pytest.fixture
def on_images(small_sweep: MakeSweep) -> Callable[..., SweepSpec]:
    sections = {
        "backbone": {"kind": "small_cnn", "width": 4},
        "stage1": {"kind": "ce", "epochs": 12, "batch_size": 8, "lr": 0.05},
        "search": {"trials": 2, "space": {"method.lr": {"loguniform": [1e-2, 1.0]}}},
    }
    return lambda **others: load_resolved(small_sweep().resolved() | sections | others)


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    parts = {"train": (40, 30, 20), "val": (3, 3, 3), "test": (7, 7, 7)}
    return write_tree(
        tmp_path / "birds", {part: dict(zip(CLASSES, counts, strict=True)) for part, counts in parts.items()}
    )


@pytest.fixture
def sweep(on_images: MakeSweep, birds: Path) -> tuple[Sweep, float]:
    dataset = {"kind": "image_folder", "root": str(birds), "size": 8, "resize": 9}
    return run(on_images(dataset=dataset, features={"test_flip": True, "batch_size": 4}))


def test_the_test_images_have_the_recorded_accuracy(sweep: tuple[Sweep, float], birds: Path) -> None:
    found, accuracy = sweep
    frame = predict(found, birds / "test")
    assert list(frame.columns) == ["file", "class", "probability", "p_auk", "p_crow", "p_owl"]
    assert (
        frame["file"].tolist()
        == sorted(frame["file"])
        == sorted(path.relative_to(birds / "test").as_posix() for path in (birds / "test").rglob("*.jpg"))
    )
    right = frame["file"].str.split("/").str[0] == frame["class"]
    assert right.mean() == pytest.approx(accuracy, abs=1e-6)
    assert 1 / len(CLASSES) < right.mean() < 1, "not a constant, and not perfect, so that differences are seen"
    probabilities = frame[["p_auk", "p_crow", "p_owl"]].to_numpy()
    np.testing.assert_allclose(probabilities.sum(1), 1)
    assert (probabilities.max(1) == frame["probability"]).all()
    classifier = found.classifier(found.winner)
    with torch.inference_mode():  # of the features of the sweep, whose test images are in the same order
        tested = torch.stack([classifier(view) for view in found.test.features]).mean(0).softmax(1)
    np.testing.assert_allclose(probabilities, tested.numpy(), atol=1e-4)


def test_the_most_probable_classes(sweep: tuple[Sweep, float], birds: Path) -> None:
    whole, top = predict(sweep[0], birds / "test"), predict(sweep[0], birds / "test", top=2)
    assert list(top.columns) == ["file", "class", "probability", "class_2", "probability_2"]
    second = np.sort(whole[["p_auk", "p_crow", "p_owl"]].to_numpy(), axis=1)[:, 1]
    np.testing.assert_allclose(top["probability_2"], second)
    with pytest.raises(UserError, match=r"top must be in 1 \.\. 3, the number of classes, got 4"):
        predict(sweep[0], birds / "test", top=4)


def test_unreadable_images_are_named(
    sweep: tuple[Sweep, float], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "new"
    write_images(place, {"a.jpg": 0, "b/b.jpg": 1, "c.jpg": 2}, {"b/b.jpg": "truncated"})
    (place / "notes.txt").write_text("not an image")
    with pytest.raises(DataError, match=r"unreadable images: 1 .*b/b\.jpg .*leave them out with --unreadable skip"):
        predict(sweep[0], place)
    with caplog.at_level(logging.INFO, "sweeps"):
        assert predict(sweep[0], place, unreadable="skip")["file"].tolist() == ["a.jpg", "c.jpg"]
    assert "left out: unreadable images: 1" in caplog.text
    assert "files that are not images were ignored: 1 (notes.txt)" in caplog.text
    (tmp_path / "empty").mkdir()
    for folder, problem in (("empty", "must contain images"), ("missing", "is not a folder")):
        with pytest.raises(UserError, match=problem):
            predict(sweep[0], tmp_path / folder)


def test_classes_have_the_names_of_the_extraction(sweep: tuple[Sweep, float], birds: Path, tmp_path: Path) -> None:
    """Also if the folders were renamed, so that their order is another one, or removed."""
    before = predict(sweep[0], birds / "test")
    shutil.copytree(birds / "test", tmp_path / "test")
    for part in ("train", "val", "test"):
        (birds / part / "owl").rename(birds / part / "a red owl")
    pd.testing.assert_frame_equal(predict(sweep[0], tmp_path / "test"), before)
    file = export_model(sweep[0], tmp_path / "out", format="state_dict")
    assert tuple((file.parent / "classes.txt").read_text().splitlines()) == CLASSES
    shutil.rmtree(birds)
    pd.testing.assert_frame_equal(predict(sweep[0], tmp_path / "test"), before)


def test_grey_datasets_take_files_too(on_images: MakeSweep, tmp_path: Path) -> None:
    found, accuracy = run(on_images(dataset="digits_lt"))
    test = found.spec.dataset.load().test
    for number, (image, label) in enumerate(zip(test.inputs, test.labels.tolist(), strict=True)):
        file = tmp_path / "digits" / str(label) / f"{number:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels: Any = image[0].numpy()
        Image.fromarray(pixels).convert("RGB" if number % 2 else "L").save(file)
    frame = predict(found, tmp_path / "digits")
    assert 0.2 < accuracy < 1
    assert (frame["file"].str[0] == frame["class"]).mean() == pytest.approx(accuracy, abs=1e-6)


def test_colours_become_grey_as_in_pillow() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    grey = _luminance(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    np.testing.assert_array_equal(grey[0, 0].numpy(), np.asarray(Image.fromarray(pixels).convert("L")))


def test_a_sweep_on_features_takes_no_images(small_sweep: MakeSweep, birds: Path) -> None:
    found, _ = run(small_sweep(search={"trials": 1}))
    with pytest.raises(UserError, match="was run on given features, so it has no backbone and takes no images"):
        predict(found, birds / "test")
