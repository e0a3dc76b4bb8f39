"""Fixtures of the tests of stage 1."""

import pytest

from lt_train.datasets.base import DATASETS, ImageData


@pytest.fixture(scope="session")
def digits() -> ImageData:
    """The long-tailed digits."""
    data = DATASETS.parse({"kind": "digits_lt"}).load()
    assert isinstance(data, ImageData)
    return data
