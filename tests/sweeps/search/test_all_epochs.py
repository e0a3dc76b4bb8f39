"""No early_stopping: nothing is stopped, whatever the length."""

from __future__ import annotations

import pytest

from lt_train.methods.base import TrainingSpec
from sweeps.search.all_epochs import AllEpochs


@pytest.mark.parametrize("epochs", [1, 20])
def test_nothing_is_stopped_and_nothing_is_refused(epochs: int) -> None:
    training = TrainingSpec(epochs=epochs)
    assert AllEpochs().halving(training) is None
    assert list(AllEpochs().check(training)) == []
