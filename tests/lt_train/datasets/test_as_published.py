"""Datasets without their files: the published counts, by kind."""

from __future__ import annotations

import pytest

from lt_train.datasets.base import DATASETS


@pytest.mark.parametrize(
    ("document", "parts", "classes", "shape"),
    [
        ({"kind": "cifar100_lt", "val_per_class": 0}, (10847, 0, 10000), 100, (3, 32, 32)),
        ({"kind": "cifar100_lt", "val_per_class": 0, "imbalance_ratio": 50}, (12608, 0, 10000), 100, (3, 32, 32)),
        ({"kind": "cifar100_lt"}, (10827, 2000, 10000), 100, (3, 32, 32)),
        ({"kind": "cifar10_lt", "val_per_class": 0}, (12406, 0, 10000), 10, (3, 32, 32)),
        ({"kind": "fashion_mnist_lt"}, (1236, 1000, 10000), 10, (1, 28, 28)),
        ({"kind": "imagenet_lt", "size": 160}, (115846, 20000, 50000), 1000, (3, 160, 160)),
        ({"kind": "inaturalist18"}, (437513, 0, 24426), 8142, (3, 224, 224)),
        ({"kind": "inaturalist18", "val_fraction": 0.01}, (429371, 8142, 24426), 8142, (3, 224, 224)),
        ({"kind": "places_lt"}, (62500, 7300, 36500), 365, (3, 224, 224)),
    ],
)
def test_the_published_counts(document: dict[str, object], parts: tuple[int, ...], classes: int, shape: object) -> None:
    data = DATASETS.parse({"root": "nowhere", **document}).as_published()
    assert data is not None
    assert (len(data.train), len(data.val or ()), len(data.test)) == parts
    assert data.num_classes == classes
    for part in (data.train, data.test):
        assert tuple(part.inputs.shape[1:]) == shape
        assert part.inputs.device.type == "meta"


@pytest.mark.parametrize("kind", ["image_folder", "image_list"])
def test_kinds_without_published_counts_return_none(kind: str) -> None:
    assert DATASETS.parse({"kind": kind, "root": "nowhere"}).as_published() is None
