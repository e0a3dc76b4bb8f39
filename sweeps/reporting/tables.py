"""The tables of a report but the verdict's: methods, the paper beside us, finalists, trials, cost, failures. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from lt_train.metrics.accuracy import SPLITS
from sweeps.analysis import selection
from sweeps.analysis.labels import called, short_params
from sweeps.analysis.load import Sweep, TrialRuns
from sweeps.analysis.statistics import difference, estimate
from sweeps.reporting.model import Cell, Column, Table
from sweeps.reporting.paper import TABLE1_ORDER, printed

__all__ = [
    "all_trials",
    "beside_paper",
    "best_trials",
    "cost",
    "failures",
    "finalists",
    "methods",
    "per_class",
    "phases",
]

MOST_SHOWN = 20
"""Rows of a long list that the page shows; the CSV has all."""

BY_SPLIT = tuple(Column(split, "percent") for split in SPLITS)


def methods(sweep: Sweep) -> Table:
    """Every method at its best and every baseline: means with intervals, best of S, against the first, LoMa."""
    seeds = sweep.spec.selection.seeds
    first = sweep.winner
    shown = [*sweep.methods]
    recipes = [one.recipe for one in shown]
    shown += [one for one in sweep.sound_baselines.values() if one.recipe not in recipes]
    rows: list[tuple[Cell, ...]] = []
    for one in shown:
        baseline = one.trial.phase == "baseline"
        gap = None if first is None or one is first else difference(one, first, sweep.column)
        rows.append(
            (
                called(sweep, one) + " (baseline)" * baseline,
                *(estimate(one.values[:, place]) for place in range(len(SPLITS))),
                _best(sweep, one),
                None if gap is None else gap.by_split[sweep.column],
                "first" if one is first else "" if gap is None else gap.told,
                _mean([record.loma_mean for record in one.records]),
                _mean([record.loma_cv for record in one.records]),
                None if baseline else one.objective,
                short_params(one.trial.params),
            )
        )
    columns = (
        Column("method"),
        *BY_SPLIT,
        Column(f"best of {seeds}", "percent"),
        Column("minus first", "gain"),
        Column("is"),
        Column("LoMa", "number"),
        Column("LoMa cv", "number"),
        Column(f"{sweep.spec.selection.on} {sweep.spec.selection.metric}", "percent"),
        Column("setting"),
    )
    note = (
        "Test accuracy in percent, mean and half its 95% interval over seeds. Best of "
        f"{seeds}: all classes, the seed that is best by what is selected on. Minus first: in "
        f"{sweep.spec.selection.metric}, paired by seed. LoMa: Eq. 6, mean over classes; cv: its std over mean."
    )
    return Table("methods", "Methods, each at its best", columns, tuple(rows), note, frozenset({0} if first else ()))


def beside_paper(sweep: Sweep) -> Table | None:
    """Table 1, 2 or 4 with our best of S beside the paper's, in the paper's order; None for data it does not have."""
    theirs = printed(sweep.spec)
    if theirs is None:
        return None
    ours: dict[str, TrialRuns] = {}
    for one in (*sweep.methods, *sweep.sound_baselines.values()):
        ours.setdefault(one.trial.method.kind, one)
    order = [kind for kind in (*TABLE1_ORDER, *theirs.rows, *ours) if kind in ours or kind in theirs.rows]
    rows: list[tuple[Cell, ...]] = []
    for kind in dict.fromkeys(order):
        row: list[Cell] = [kind]
        best = selection.reported([sweep.best_seed(ours[kind])])[0] if kind in ours else [np.nan] * len(SPLITS)
        for place, value in enumerate(theirs.rows.get(kind, (None,) * len(SPLITS))):
            mean = estimate(ours[kind].values[:, place]) if kind in ours else None
            row += [mean, None if np.isnan(best[place]) else float(best[place]), None if value is None else value / 100]
        rows.append(tuple(row))
    columns = [Column("method")]
    for split in SPLITS:
        columns += [Column(f"{split} {whose}", "percent") for whose in ("mean", "best", "paper")]
    return Table("paper", "Beside the paper", tuple(columns), tuple(rows), theirs.where)


def finalists(sweep: Sweep) -> Table | None:
    """What became of the best trials on fresh seeds."""
    if not sweep.finalists:
        return None
    searched = {(one.trial.candidate, one.trial.number): one for one in sweep.searched}
    vanilla = sweep.sound_baselines.get("vanilla")
    rows: list[tuple[Cell, ...]] = []
    for one in sweep.finalists:
        before = searched.get((one.trial.candidate, one.trial.number))
        old, new = None if before is None else before.objective, one.objective
        gap = None if vanilla is None or one.failed else difference(one, vanilla, sweep.column)
        change = None if old is None or new is None else new - old
        over = (None, "failed" if one.failed else "") if gap is None else (gap.by_split[sweep.column], gap.told)
        rows.append((called(sweep, one), old, new, change, *over, short_params(one.trial.params)))
    what = f"{sweep.spec.selection.on} {sweep.spec.selection.metric}"
    columns = (
        Column("finalist"),
        Column(f"{what} in the search", "percent"),
        Column("on fresh seeds", "percent"),
        Column("change", "points"),
        Column("test gain over vanilla", "points"),
        Column("is"),
        Column("setting"),
    )
    note = "The search's value is what it was chosen by, and so tends to be too high; the fresh one was not chosen by."
    return Table("finalists", "Finalists on fresh seeds", columns, tuple(rows), note)


def all_trials(sweep: Sweep) -> Table:
    """Every run of every setting, for programs."""
    paths = list(dict.fromkeys(path for one in sweep.every for path in one.trial.params))
    titles = ["phase", "method", "trial", *paths, "seed", "objective", *(f"acc_{split}" for split in SPLITS)]
    rows: list[tuple[Cell, ...]] = []
    for one in sweep.every:
        for record in one.records:
            numbers: list[Any] = [None] * len(SPLITS)
            if record.failure is None:
                numbers = [None if np.isnan(v) else float(v) for v in selection.reported([record])[0]]
            about = (one.trial.phase, one.trial.called, one.trial.number, *(_cell(one, path) for path in paths))
            rows.append((*about, record.seed, one.objective, *numbers, record.stopped, record.failure))
    return Table("runs", "Every run", tuple(map(Column, [*titles, "stopped", "failure"])), tuple(rows))


def best_trials(sweep: Sweep) -> Table | None:
    """The leading trials of the search, where one is finished."""
    known = [one for one in sweep.searched if one.objective is not None and one.stopped is None]
    best = sorted(known, key=lambda one: -(one.objective or 0.0))[:MOST_SHOWN]
    if not best:
        return None
    rows = tuple(
        (
            called(sweep, one),
            one.objective,
            *(estimate(one.values[:, place]) for place in range(len(SPLITS))),
            short_params(one.trial.params),
        )
        for one in best
    )
    what = Column(f"{sweep.spec.selection.on} {sweep.spec.selection.metric}", "percent")
    columns = (Column("trial"), what, *(Column(f"test {split}", "percent") for split in SPLITS), Column("setting"))
    note = f"{selection.best_told(len(best)).capitalize()} of {len(sweep.searched)} trials"
    note = f"{note if len(sweep.searched) > 1 else 'The only trial'}; runs.csv has every run."
    return Table("trials", "Leading trials of the search", columns, rows, note)


def per_class(sweep: Sweep, shown: dict[str, TrialRuns]) -> Table | None:
    """Size, accuracy, LoMa and regularised std of every class, each the mean over seeds; for programs."""
    if sweep.manifest is None or not shown:
        return None
    columns = [Column("class"), Column("training_images")]
    parts: list[Sequence[Any]] = [range(sweep.manifest.num_classes), sweep.manifest.class_counts]
    for name, one in shown.items():
        for field in ("class_accuracy", "loma", "regularised_std"):
            columns.append(Column(f"{name} {field}"))
            parts.append(over_seeds(one, field))
    return Table("per_class", "By class", tuple(columns), tuple(zip(*parts, strict=True)))


def over_seeds(setting: TrialRuns, field: str) -> list[float | None]:
    """A value by class, mean over seeds; None where a class has none."""
    stack = np.array([getattr(record, field) for record in setting.records], dtype=np.float64)
    return [None if np.isnan(value) else float(value) for value in stack.mean(axis=0)]


def cost(sweep: Sweep) -> Table:
    """Time by phase of the work."""
    meaning = {
        "total": "this call, from start to end",
        "prepare": "data, stage 1, features",
        "backend": "training packs, wall clock",
        "search": "asking and telling the sampler",
        "tracking": "beside the others",
        "ledger": "writing what is finished",
        "train": "in packs of all calls, summed over workers",
    }
    rows = tuple((name, value, meaning.get(name, "")) for name, value in sorted(sweep.seconds.items(), key=_by_size))
    device = "GPU" if sweep.spec.resources.gpus_per_pack else "CPU"
    share = sweep.spec.resources.gpus_per_pack if device == "GPU" else sweep.spec.resources.cpus_per_pack
    spent = sweep.seconds.get("train", 0.0) * share
    note = f"{spent:,.1f} {device} seconds of training: {share:g} {device} a pack, summed over packs."
    if sweep.state == "unfinished":
        note += " The other times are known once the sweep is finished."
    return Table("cost", "Time", (Column("phase"), Column("seconds", "number"), Column("what")), rows, note)


def _by_size(entry: tuple[str, float]) -> float:
    return -entry[1]


def phases(sweep: Sweep) -> Table:
    """Runs by phase, and what was not trained because it was there."""
    rows: list[tuple[Cell, ...]] = []
    seen: set[str] = set()
    for name, settings in (
        ("baselines", sweep.baselines),
        ("search", sweep.searched),
        ("finalists", sweep.finalists),
        ("trained longer", () if sweep.extended is None else (sweep.extended,)),
    ):
        records = [record for one in settings for record in one.records]
        own = {record.key: record for record in records if record.key not in seen}
        seen |= own.keys()
        failed = sum(record.failure is not None for record in own.values())
        stopped = sum(record.stopped is not None for record in own.values())
        epochs = sum(len(record.test) for record in own.values())
        rows.append((name, len(settings), len(own), stopped, failed, len(records) - len(own), epochs))
    titles = ("phase", "settings", "runs trained", "of them stopped early", "failed", "shared", "epochs")
    columns = (Column("phase"), *(Column(title, "count") for title in titles[1:]))
    note = (
        f"{sum(int(str(row[2])) for row in rows)} of {sweep.runs_wanted} runs that the sweep asks for; {sweep.cached} "
        "were wanted and found done already, as duplicates or from before."
    )
    return Table("runs_by_phase", "Runs", columns, tuple(rows), note)


def failures(sweep: Sweep) -> Table | None:
    """What failed, by setting and reason."""
    found = [(one, Counter(r.failure for r in one.records if r.failure is not None)) for one in sweep.every]
    rows: list[tuple[Cell, ...]] = [
        (one.trial.phase, called(sweep, one), f"{count} of {len(one.records)}", short_params(one.trial.params), why)
        for one, reasons in found
        for why, count in reasons.items()
    ]
    if not rows:
        return None
    shown, note = rows[:MOST_SHOWN], ""
    if len(rows) > len(shown):
        note = f"The first {len(shown)} of {len(rows)}; runs.csv has all."
    columns = tuple(map(Column, ("phase", "setting", "seeds", "values", "why")))
    return Table("failures", "Failures", columns, tuple(shown), note)


def _best(sweep: Sweep, setting: TrialRuns) -> Cell:
    value = float(selection.reported([sweep.best_seed(setting)])[0, 0])
    return None if np.isnan(value) else value


def _cell(setting: TrialRuns, path: str) -> Cell:
    value = setting.trial.params.get(path)
    return value if value is None or isinstance(value, int | float) else str(value)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
