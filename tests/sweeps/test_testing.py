"""The conformance checks of searches, trackers and backends name what is wrong; built-in kinds pass them elsewhere."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field

from lt_train.features.bank import FeatureBank
from lt_train.methods.base import TrainingSpec
from lt_train.retrain import fused
from lt_train.retrain.base import Halving
from sweeps.config.interfaces import BackendSpec, PackSource, TrackedSweep, TrackedTrial, Tracker, TrackingSpec
from sweeps.search.base import AlgorithmSpec, Dimension, EarlyStoppingSpec, Tried
from sweeps.testing import check_algorithm, check_backend, check_early_stopping, check_tracker

pytestmark = pytest.mark.usefixtures("own_kinds")


class Draws(AlgorithmSpec):
    """Random draws; `change` breaks one thing."""

    kind: Literal["draws"] = "draws"
    change: str = Field(default="", description="what is wrong")

    def propose(
        self, space: Mapping[str, Dimension], seed: int, tried: Sequence[Tried], count: int
    ) -> list[dict[str, Any]]:
        """See `AlgorithmSpec.propose`."""
        if self.change == "results" and tried:
            max(one.value for one in tried if one.value is not None)
        if self.change == "total":
            seed += count
        shift = 1.5 if self.change == "outside" else 1.0
        found = []
        for number in range(len(tried), len(tried) + count):
            stream = random.Random() if self.change == "global" else random.Random(f"{seed} {number}")
            found.append({path: one.at(min(shift * stream.random(), 0.999)) for path, one in space.items()})
            if self.change == "outside":
                found[-1] |= {path: 2 * value for path, value in found[-1].items() if type(value) is float}
            if self.change == "missing":
                found[-1].popitem()
        return found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("global", "Draws.propose must depend on its arguments only, .* when it is called again"),
        ("outside", "Draws proposed .*; .* must be in "),
        ("missing", "Draws proposed .*; a trial must have a value for each of"),
        ("total", "Draws.propose with count . must give the first of the trials with count 8"),
        ("results", "Draws.propose fails if all 1 trials are running: ValueError"),
    ],
)
def test_a_wrong_algorithm_is_named(change: str, message: str) -> None:
    check_algorithm(Draws)
    with pytest.raises(AssertionError, match=message):
        check_algorithm(Draws(change=change))


class Late(EarlyStoppingSpec):
    """A rung that may lie after the last epoch."""

    kind: Literal["late"] = "late"

    def halving(self, training: TrainingSpec) -> Halving | None:
        """See `EarlyStoppingSpec.halving`."""
        return Halving((5,))


def test_a_wrong_early_stopping_rule_is_named() -> None:
    with pytest.raises(AssertionError, match=r"Late: rungs must be before the last epoch 1, got \(5,\)"):
        check_early_stopping(Late)


class Lines(TrackingSpec):
    """One JSON file per sweep; `change` breaks one thing."""

    own_files = "lines-"

    kind: Literal["lines"] = "lines"
    change: str = Field(default="", description="what is wrong")

    def open(self, sweep: TrackedSweep, storage: Path) -> Tracker:
        """See `TrackingSpec.open`."""
        prefix = "" if self.change == "name" else "lines-"
        return LinesTracker(storage / f"{prefix}{sweep.sweep_id}.json", self.change)


class LinesTracker:
    """Keeps rows in a file."""

    def __init__(self, path: Path, change: str) -> None:
        self.path, self.change = path, change
        self.rows: list[Any] = json.loads(path.read_text()) if path.exists() and change != "forgets" else []

    def log_trial(self, trial: TrackedTrial) -> None:
        row = [trial.key, *([trial.metrics["acc_all"]] if self.change == "failed" else [])]
        if row not in self.rows or self.change == "twice":
            self.rows.append(row)
        self.path.write_text(json.dumps(self.rows))

    def finish(self, *content: Any) -> None:
        if self.change == "result":
            self.rows.append(["result"])
        self.path.write_text(json.dumps(self.rows))

    def interrupted(self) -> None:
        if self.change == "closed":
            self.path.rename(self.path.with_suffix(".closed"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("twice", "Lines: repeated calls in an interrupted sweep must change nothing, but\n"),
        ("result", "Lines: repeated calls in a sweep that ends must change nothing"),
        ("failed", "Lines fails in an interrupted sweep: KeyError: 'acc_all'"),
        ("closed", "Lines fails in an interrupted sweep: FileNotFoundError"),
        ("name", "Lines writes .*json to the storage, .* set Lines.own_files"),
    ],
)
def test_a_wrong_tracker_is_named(change: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_tracker(Lines(change=change), shown=lambda storage: [one.read_text() for one in storage.iterdir()])


def test_a_tracker_conforms() -> None:
    check_tracker(Lines, shown=lambda storage: [one.read_text() for one in storage.iterdir()])


class Own(BackendSpec):
    """Trains in this process; `change` breaks one thing."""

    kind: Literal["own"] = "own"
    change: str = Field(default="", description="what is wrong")

    def train(self, bank: FeatureBank, source: PackSource, *, cpus: int, gpus: float) -> None:
        """See `BackendSpec.train`."""
        with ThreadPoolExecutor(1) as other:
            while not source.exhausted() and (pack := source.next_pack()) is not None:
                runs = pack.runs[:1] * len(pack.runs) if self.change == "runs" else pack.runs
                halving = None if self.change == "halving" else pack.halving
                try:
                    results = fused.fit(bank, runs, rule=pack.rule, halving=halving)
                except Exception as error:
                    if self.change != "reports":
                        raise
                    source.failed(pack, str(error), own=False)
                    continue
                if self.change == "thread":
                    other.submit(source.complete, pack, results, 0.0).result()
                else:
                    source.complete(pack, results, 0.0)
                if self.change == "short":
                    return


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("short", "Own.train returned before the source was exhausted"),
        ("runs", "Own: .* of a run of pack first-0 differs from that of the inline backend"),
        ("halving", "Own: .* of a run of pack first-2 differs from that of the inline backend"),
        ("thread", "Own must call the source from one thread, got 2"),
        ("reports", "Own: a pack whose training raises an error failed by its own fault"),
    ],
)
def test_a_wrong_backend_is_named(change: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_backend(Own(change=change))
