"""The inline backend: errors of a pack are raised in this process."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.ledgers import runs_of

import sweeps
from lt_train.retrain import fused
from sweeps.config.spec import SweepSpec


def test_an_error_in_a_pack_ends_the_sweep_with_that_error(
    small_sweep: Callable[..., SweepSpec], monkeypatch: pytest.MonkeyPatch
):
    calls = []

    def broken(*arguments, **options):
        calls.append(arguments)
        if len(calls) > 2:
            raise RuntimeError("injected failure")
        return fit(*arguments, **options)

    fit = fused.fit
    spec = small_sweep()
    monkeypatch.setattr(fused, "fit", broken)
    with pytest.raises(RuntimeError, match="injected failure"):
        sweeps.run(spec)
    recorded = runs_of(spec)
    assert recorded
    monkeypatch.undo()
    sweeps.run(spec)
    runs = runs_of(spec)
    assert runs[: len(recorded)] == recorded
    assert len({run["key"] for run in runs}) == len(runs), "no run is trained twice"
