"""scikit-learn's digits, cut long-tailed."""

import pytest
import torch

from lt_train.core.errors import SpecError
from lt_train.datasets.base import DATASETS, ImageData


def test_digits_are_cut_and_split_by_the_defaults() -> None:
    data = DATASETS.parse({"kind": "digits_lt"}).load()
    assert isinstance(data, ImageData)
    assert data.class_counts().tolist() == [110, 78, 56, 40, 29, 20, 14, 10, 7, 5]
    assert torch.bincount(data.test.labels).tolist() == [50] * 10
    assert data.val is not None
    assert torch.bincount(data.val.labels).tolist() == [14] * 10
    assert data.train.inputs.shape[1:] == (1, 8, 8)
    assert data.train.inputs.dtype == torch.uint8
    assert int(data.train.inputs.max()) == 255
    assert data.notes == ()


def test_no_image_is_in_two_parts() -> None:
    data = DATASETS.parse({"kind": "digits_lt", "imbalance_ratio": 1, "n_max": 110}).load()
    assert isinstance(data, ImageData)
    assert data.val is not None
    images = torch.cat([data.train.inputs, data.val.inputs, data.test.inputs]).flatten(1)
    assert len(images.unique(dim=0)) == len(images)


def test_a_class_at_full_size_gives_validation_images_with_a_note() -> None:
    data = DATASETS.parse({"kind": "digits_lt", "n_max": 124}).load()
    assert isinstance(data, ImageData)
    assert data.split_counts[0] == 124
    assert data.class_counts()[0] == 114  # class 0 has 178 images: 50 test, 124 training, 4 left over
    assert "class 0: 10 of 124" in data.notes[0]


@pytest.mark.parametrize(
    ("field", "value"), [("imbalance_ratio", 0.5), ("n_max", 125), ("n_max", 0), ("val_per_class", -1), ("n_mx", 3)]
)
def test_a_field_out_of_range_is_named(field: str, value: float) -> None:
    with pytest.raises(SpecError, match=rf"digits_lt\.{field}"):
        DATASETS.parse({"kind": "digits_lt", field: value})
