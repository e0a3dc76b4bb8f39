"""Coverage of the intervals in simulated sweeps: `python benchmarks/interval_coverage.py`, or `make coverage`.

In each cell, sweeps of two trials are simulated image by image with known accuracies, and the intervals of
`sweeps.analysis.intervals` are computed. The table shows how often an interval contains the true value, its mean width
relative to an oracle that knows the true variance, and how often a verdict is "better" where there is no difference.
Results are written to interval_coverage.json; docs/statistics.md is updated by hand.

Shapes: B sweeps, R backbones, S seeds, K classes, M images per class.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from sweeps.analysis import intervals
from sweeps.analysis.averages import ClassAverage
from sweeps.analysis.intervals import (
    CoveredEstimate,
    Levels,
    Moments,
    accuracy,
    accuracy_of,
    gain,
    gain_of,
)

RESULTS = Path(__file__).with_name("interval_coverage.json")

OWN_TO_BACKBONE = 0.3
"""Share of images that each backbone gets right or wrong independently of the others, given its accuracy."""

OWN_TO_METHOD = 0.2
"""The same for two methods on one backbone."""

OWN_TO_SEED = 0.1
"""The same for two seeds of one method."""

SHARED_SEED_EFFECT = 0.5
"""Correlation of the seed effects of two methods, so that their difference has the standard deviation of one."""

CHUNK = 1_500_000
"""Outcomes simulated at a time."""

GOALS = {"coverage": 0.93, "mean_coverage": [0.94, 0.965], "width": 1.15, "false_better": 0.05}

BOOTSTRAP = 500
"""Resamples of each simulated test set for the baseline."""

F = NDArray[np.float64]


@dataclass(frozen=True)
class Cell:
    """One setting of the simulation; accuracies and standard deviations are fractions of 1.

    Attributes:
        group: `all` classes, the `few` split with 10 images per class, `alike` (all classes have the same accuracy),
            `nested` (the better trial is right wherever the other is) or `backbones`.
        images: test images.
        classes: classes among which they are divided equally.
        seeds, seed_sd: seeds, and standard deviation of the accuracy over them.
        accuracy: true accuracy of the second trial, mean over classes.
        gain: true difference of the first trial.
        backbones, backbone_sd: backbones, and standard deviation of the accuracy over them.
    """

    group: str
    images: int
    classes: int
    seeds: int
    seed_sd: float
    accuracy: float
    gain: float
    backbones: int = 1
    backbone_sd: float = 0.0

    @property
    def uncovered(self) -> str:
        """What varies here and cannot be covered."""
        if self.backbones == 1 and self.backbone_sd:
            return "one backbone"
        return "one seed" if self.backbones == 1 and self.seeds == 1 and self.seed_sd else ""


def cells() -> Iterator[Cell]:
    """All cells; each shows the accuracy of one trial and the gain of another."""
    accuracies, seeds, gains = (0.05, 0.5, 0.95), list(itertools.product((1, 5), (0.0, 0.001, 0.01))), (0.0, 0.02)
    sets = [("all", images, classes) for images in (200, 500, 10_000) for classes in (10, 100)]
    sets += [("few", 30, 3), ("few", 300, 30)]
    for (group, images, classes), (count, sd), acc, difference in itertools.product(sets, seeds, accuracies, gains):
        yield Cell(group, images, classes, count, sd, acc, difference)
    for images, classes, acc, difference in itertools.product((200, 500), (10, 100), accuracies, gains):
        yield Cell("alike", images, classes, 1, 0.0, acc, difference)
    for images, acc in itertools.product((200, 500), accuracies):
        yield Cell("nested", images, 10, 1, 0.0, acc, 0.02)
    settings = itertools.product((200, 500, 10_000), (10, 100), (1, 5), (0.0, 0.005), accuracies, gains)
    for images, classes, count, sd, acc, difference in settings:
        yield Cell("backbones", images, classes, count, 0.001, acc, difference, 3, sd)
    yield Cell("backbones", 10_000, 10, 5, 0.001, 0.5, 0.0, 1, 0.005)


def simulate(cell: Cell, sweeps: int, rng: np.random.Generator) -> tuple[NDArray[np.bool_], NDArray[np.bool_], F, F]:
    """Outcomes of both trials `[B, R, S, K, M]`, and their true accuracies given seeds and backbones `[B, R, S]`.

    An image is right if its number in [0, 1) is below the accuracy of its class. All runs share the numbers, except
    those of the images that are own to a backbone, a method or a seed.
    """
    r, s, k, m = cell.backbones, cell.seeds, cell.classes, cell.images // cell.classes
    spread = 0.0 if cell.group == "alike" else 0.6 * min(cell.accuracy, 1 - cell.accuracy)
    by_class = cell.accuracy + spread * np.linspace(-1, 1, k)
    slope = by_class * (1 - by_class) / (by_class * (1 - by_class)).mean()
    backbone = cell.backbone_sd * rng.standard_normal((2, sweeps, r, 1))
    seed = cell.seed_sd * rng.standard_normal((3, sweeps, r, s))
    own, shared = np.sqrt(1 - SHARED_SEED_EFFECT), np.sqrt(SHARED_SEED_EFFECT)
    effects = [shared * (backbone[0] + seed[0]) + own * other for other in (seed[1], seed[2])]
    effects[0] = effects[0] + own * backbone[1]
    if cell.backbone_sd:
        effects[1] = effects[1] + own * cell.backbone_sd * rng.standard_normal((sweeps, r, 1))
    effects[0] = effects[0] + cell.gain

    def numbers(*shape: int) -> NDArray[np.uint16]:
        size = (sweeps, *shape, k, m)
        return np.frombuffer(rng.bytes(2 * int(np.prod(size))), dtype=np.uint16).reshape(size)

    own_to_method, own_to_seed = (0.0, 0.0) if cell.group == "nested" else (OWN_TO_METHOD, OWN_TO_SEED)
    common = numbers(1, 1)
    if r > 1:
        common = np.where(numbers(1, 1) < OWN_TO_BACKBONE * 65536, numbers(r, 1), common)
    methods = [np.where(numbers(1, 1) < own_to_method * 65536, numbers(r, 1), common), common]
    of_seeds = numbers(1, 1) < own_to_seed * 65536
    outcomes = []
    for image, effect in zip(methods, effects, strict=True):
        thresholds = np.clip(by_class + slope * effect[..., None], 0, 65535 / 65536)
        limit = np.round(thresholds * 65536).astype(np.uint16)[..., None]
        outcomes.append(np.where(of_seeds, numbers(r, s), image) < limit)
    return outcomes[0], outcomes[1], cell.accuracy + effects[0], cell.accuracy + effects[1]


def moments(values: NDArray[np.float32]) -> list[Moments]:
    """The moments of each sweep, of `values [B, R, S, K, M]`: those of the module, for all sweeps at once."""
    by_backbone = values.mean(axis=2, dtype=np.float64)
    parts = [*_statistics(values), *_statistics(by_backbone), _statistics(by_backbone.mean(axis=1))[1]]
    seed_means, seed_single, means, single, averaged = parts
    found = []
    for sweep in range(len(values)):
        sets = [
            [Levels(seed_means[sweep, r], float(seed_single[sweep, r].mean()), float(single[sweep, r]))]
            for r in range(values.shape[1])
        ]
        found.append(Moments(Levels(means[sweep], float(single[sweep].mean()), float(averaged[sweep])), sets))
    return found


def _statistics(values: NDArray[Any]) -> tuple[F, F]:
    """Mean over classes and its variance over images, of `values [..., K, M]`."""
    k, m = values.shape[-2:]
    sums = (values @ np.ones(m, dtype=values.dtype)).astype(np.float64)
    squares = np.einsum("...m,...m->...", values, values).astype(np.float64)
    return sums.mean(axis=-1) / m, np.maximum(squares - sums**2 / m, 0).sum(axis=-1) / (m - 1) / m / k**2


class Tally:
    """Coverage and widths of one kind of interval in one cell."""

    def __init__(self) -> None:
        self.errors: list[float] = []
        self.lows: list[float] = []
        self.highs: list[float] = []
        self.seeds_only: list[bool] = []
        self.images: list[float] = []
        self.better = 0

    def add(self, found: CoveredEstimate, truth: float) -> None:
        """Record one interval, relative to the true value."""
        assert found.low is not None
        assert found.high is not None
        self.errors.append(found.value - truth)
        self.lows.append(found.low - truth)
        self.highs.append(found.high - truth)
        self.images.append(found.variance["images"])
        if found.seeds_only.low is not None and found.seeds_only.high is not None:
            self.seeds_only.append(found.seeds_only.low <= truth <= found.seeds_only.high)

    def summary(self, levels: int) -> dict[str, float | None]:
        """Shares and ratios; `levels` are the seeds or backbones from which their variance is estimated."""
        errors, lows, highs = (np.array(values) for values in (self.errors, self.lows, self.highs))
        slack = 1e-9
        deviation = float(errors.std())
        share = min(max(1 - float(np.mean(self.images)) / deviation**2, 0.0), 1.0)
        return {
            "coverage": float(((lows <= slack) & (highs >= -slack)).mean()),
            "width": float((highs - lows).mean() / (2 * 1.959964 * deviation)),
            "least_width": least_width(share, levels) if levels > 1 else 1.0,
            "seeds_only": float(np.mean(self.seeds_only)) if self.seeds_only else None,
            "false_better": self.better / len(errors),
        }


def least_width(share: float, levels: int, draws: int = 200_000) -> float:
    """Width relative to the oracle's of an interval that knows the variance over images and estimates that over levels.

    The estimate has `levels - 1` degrees of freedom and the true variance over levels is `share` of the total. The
    interval is scaled to cover 95% exactly. Nothing that does not know the variance over levels can be expected to be
    narrower.
    """
    rng = np.random.default_rng(0)
    estimated = 1 - share + share * rng.chisquare(levels - 1, draws) / (levels - 1)
    error = np.abs(rng.standard_normal(draws)) / np.sqrt(estimated)
    return float(np.quantile(error, 0.95) * np.sqrt(estimated).mean() / 1.959964)


def run_cell(cell: Cell, sweeps: int, seed: int) -> dict[str, Any]:
    """Simulate one cell."""
    rng = np.random.default_rng(seed)
    average = ClassAverage(np.repeat(np.arange(cell.classes), cell.images // cell.classes))
    tallies = {"accuracy": Tally(), "gain": Tally()}
    size = max(1, CHUNK // (cell.images * cell.seeds * cell.backbones))
    for begin in range(0, sweeps, size):
        ours, theirs, true_ours, true_theirs = simulate(cell, min(size, sweeps - begin), rng)
        a, b = ours.astype(np.float32), theirs.astype(np.float32)
        of_accuracy, of_gain = moments(b) if cell.gain == 0 else [], moments(a - b)
        if begin == 0:
            check(ours[0], theirs[0], average, of_accuracy[:1], of_gain[0])
        for sweep, one in enumerate(of_accuracy):
            truth = float(true_theirs[sweep].mean()) if cell.uncovered else cell.accuracy
            tallies["accuracy"].add(accuracy_of(one, average), truth)
        for sweep, one in enumerate(of_gain):
            found = gain_of(one, average)
            truth = float((true_ours - true_theirs)[sweep].mean()) if cell.uncovered else cell.gain
            tallies["gain"].add(found.difference, truth)
            tallies["gain"].better += found.verdict == "better"
    levels = cell.backbones if cell.backbones > 1 else cell.seeds
    return {name: tally.summary(levels) for name, tally in tallies.items() if tally.errors}


def check(
    ours: NDArray[np.bool_], theirs: NDArray[np.bool_], average: ClassAverage, one: Sequence[Moments], other: Moments
) -> None:
    """The moments of the simulation give the intervals that the module computes from images."""
    a, b = (values.reshape(*values.shape[:2], -1) for values in (ours, theirs))
    for moment in one:
        direct = accuracy(b, average)
        assert direct is not None
        np.testing.assert_allclose([direct.low, direct.high], _ends(accuracy_of(moment, average)), atol=1e-5)
    found = gain(a, b, average)
    assert found is not None
    np.testing.assert_allclose(_ends(found.difference), _ends(gain_of(other, average).difference), atol=1e-5)


def _ends(found: CoveredEstimate) -> list[float | None]:
    return [found.low, found.high]


def bootstrap_coverage(cell: Cell, sweeps: int, seed: int) -> float:
    """Coverage of the percentile interval of the plain bootstrap within classes, for one seed."""
    rng = np.random.default_rng(seed)
    size, m, covered = 250, cell.images // cell.classes, 0
    for begin in range(0, sweeps, size):
        right = simulate(cell, min(size, sweeps - begin), rng)[1][:, 0, 0].mean(axis=-1)
        for by_class in right:
            means = rng.binomial(m, by_class, (BOOTSTRAP, cell.classes)).mean(axis=1) / m
            low, high = np.quantile(means, (0.025, 0.975))
            covered += low - 1e-9 <= cell.accuracy <= high + 1e-9
    return covered / sweeps


def baselines(sweeps: int) -> dict[str, list[dict[str, Any]]]:
    """The bootstrap in cells with few images per class, and plain Satterthwaite with three backbones."""
    found: dict[str, list[dict[str, Any]]] = {"bootstrap": [], "satterthwaite": []}
    for group, images, classes in (("all", 200, 100), ("all", 500, 100), ("few", 30, 3), ("all", 500, 10)):
        for accuracy_ in (0.5, 0.95):
            cell = Cell(group, images, classes, 1, 0.0, accuracy_, 0.0)
            ours = run_cell(cell, sweeps, 1)["accuracy"]["coverage"]
            row = {"bootstrap": bootstrap_coverage(cell, sweeps, 1), "ours": ours}
            found["bootstrap"].append(asdict(cell) | row)
    for accuracy_ in (0.05, 0.5, 0.95):
        cell = Cell("backbones", 10_000, 100, 1, 0.001, accuracy_, 0.0, 3, 0.005)
        ours = run_cell(cell, sweeps, 1)
        used = intervals.SATTERTHWAITE
        intervals.SATTERTHWAITE = 1
        try:
            plain = run_cell(cell, sweeps, 1)
        finally:
            intervals.SATTERTHWAITE = used
        found["satterthwaite"].append(asdict(cell) | {"plain": plain, "ours": ours})
    return found


def summarize(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The values with goals, over all cells in which everything that varies is covered."""
    covered = [row for row in rows if not row["uncovered"] and row["group"] != "nested"]
    found: dict[str, Any] = {}
    for kind in ("accuracy", "gain"):
        values = [row[kind] for row in covered if kind in row]
        coverages, widths = [one["coverage"] for one in values], [one["width"] for one in values]
        found[kind] = {
            "cells": len(values),
            "coverage": min(coverages),
            "cells_below": sum(one < GOALS["coverage"] for one in coverages),
            "mean_coverage": float(np.mean(coverages)),
            "width": max(widths),
            "mean_width": float(np.mean(widths)),
            "cells_wider": sum(one > GOALS["width"] for one in widths),
        }
    found["false_better"] = max(row["gain"]["false_better"] for row in covered if row["gain_true"] == 0)
    return found


def show(document: dict[str, Any], console: Console) -> None:
    """Print one row per cell, then the summary."""
    titles = ("group", "images", "classes", "seeds", "seed sd", "backbones", "sd", "accuracy", "gain", "")
    columns = ("covers", "width", "least", "seeds only", "covers", "width", "least", "seeds only", "better")
    table = Table(
        *titles, *columns, title="percent; the first four columns are of the accuracy, the others of the gain"
    )
    for row in document["cells"]:
        shares = [f"{100 * row[name]:.1f}" for name in ("seed_sd", "accuracy_true", "gain_true", "backbone_sd")]
        where = [row["group"], f"{row['images']:,}", str(row["classes"]), str(row["seeds"]), shares[0]]
        where += [
            str(row["backbones"]),
            shares[3],
            shares[1],
            shares[2],
            row["uncovered"] and f"not covered: {row['uncovered']}",
        ]
        better = f"{100 * row['gain']['false_better']:.1f}" if row["gain_true"] == 0 else ""
        table.add_row(*where, *_four(row.get("accuracy")), *_four(row["gain"]), better)
    console.print(table)
    console.print(document["summary"], document["baselines"])


def _four(one: dict[str, Any] | None) -> list[str]:
    if one is None:
        return [""] * 4
    only = "" if one["seeds_only"] is None else f"{100 * one['seeds_only']:.1f}"
    return [f"{100 * one['coverage']:.1f}", f"{one['width']:.2f}", f"{one['least_width']:.2f}", only]


def main() -> int:
    """Simulate all cells, print the table and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=2000, help="simulated sweeps per cell (default: 2000)")
    parser.add_argument("--show", action="store_true", help="print the recorded results and simulate nothing")
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 220)
    if arguments.show:
        show(json.loads(RESULTS.read_text()), console)
        return 0
    begin = time.perf_counter()
    rows = []
    for number, cell in enumerate(cells()):
        values = asdict(cell)
        named = {"accuracy_true": values.pop("accuracy"), "gain_true": values.pop("gain"), "uncovered": cell.uncovered}
        rows.append(values | named | run_cell(cell, arguments.sweeps, number))
    document = {"sweeps": arguments.sweeps, "goals": GOALS, "summary": summarize(rows)}
    document |= {"baselines": baselines(arguments.sweeps), "seconds": time.perf_counter() - begin, "cells": rows}
    RESULTS.write_text(json.dumps(_rounded(document), indent=1) + "\n")
    show(document, console)
    return 0


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    sys.exit(main())
