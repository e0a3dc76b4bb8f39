"""The inline backend: what goes wrong in a pack goes wrong here."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.ledgers import runs_by_key

import sweeps
from lt_train.retrain import fused
from sweeps.config.spec import SweepSpec


def test_a_pack_that_raises_in_this_process_ends_the_sweep_with_its_error(
    small_sweep: Callable[..., SweepSpec], monkeypatch: pytest.MonkeyPatch
):
    calls = []

    def broken(*arguments, **options):
        calls.append(arguments)
        if len(calls) > 2:
            raise RuntimeError("out of luck")
        return fit(*arguments, **options)

    fit = fused.fit
    spec = small_sweep()
    monkeypatch.setattr(fused, "fit", broken)
    with pytest.raises(RuntimeError, match="out of luck"):
        sweeps.run(spec)
    finished = runs_by_key(spec)
    monkeypatch.undo()
    assert sweeps.run(spec).runs.cached == len(finished) > 0
