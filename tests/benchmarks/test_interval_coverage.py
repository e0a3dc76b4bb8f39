"""The simulation of coverage, with a few sweeps: true accuracies and noise are as stated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

HERE = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HERE))


def test_simulated_sweeps_have_the_stated_accuracy_gain_and_noise() -> None:
    from interval_coverage import Cell, simulate

    cell = Cell("all", 500, 10, 5, 0.01, 0.9, 0.02, 3, 0.02)
    ours, theirs, true_ours, true_theirs = simulate(cell, 200, np.random.default_rng(0))
    assert ours.shape == (200, 3, 5, 10, 50)
    assert theirs.mean() == pytest.approx(0.9, abs=0.004)
    assert (ours.mean() - theirs.mean()) == pytest.approx(0.02, abs=0.004)
    for true in (true_ours, true_theirs, true_ours - true_theirs):
        assert true.std(axis=2, ddof=1).mean() == pytest.approx(0.01 * 0.94, abs=0.0007)  # c4 of five seeds
        assert true.mean(axis=2).std() == pytest.approx(np.sqrt(0.02**2 + 0.01**2 / 5), abs=0.003)
    assert abs(ours.mean(axis=(3, 4)) - true_ours).mean() < 0.016


@pytest.mark.parametrize("backbones", [1, 3])
def test_a_cell_agrees_with_the_module(backbones: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """`run_cell` compares its moments with the intervals of the module; it fails if they differ."""
    import interval_coverage as coverage

    cell = coverage.Cell("few", 30, 3, 5, 0.01, 0.5, 0.0, backbones)
    found = coverage.run_cell(cell, 100, 0)
    for one in found.values():
        assert one["coverage"] > 0.85
        assert 0.8 < one["width"] < 2
    original = coverage.moments

    def too_small(values: Any) -> Any:
        return original(values * 0.9)

    monkeypatch.setattr(coverage, "moments", too_small)
    with pytest.raises(AssertionError, match="Not equal"):
        coverage.run_cell(cell, 100, 0)


def test_the_least_width_is_students_where_seeds_are_everything() -> None:
    from interval_coverage import least_width

    assert least_width(0.0, 5) == pytest.approx(1, abs=0.01)
    assert least_width(1.0, 5) == pytest.approx(2.776 / 1.96 * 0.94, abs=0.01)
