"""Tables of a report: methods, comparison with the paper, finalists, trials, classes, cost, failures.

Results printed in the paper (Tables 1, 2 and 4) are in percent: all, many, medium, few; None if not printed. The row of
Re-Sampling in Table 1 is left out: it repeats that of Vanilla FC by mistake. Table 3 is left out: no sweep of ours is
comparable with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from lt_train.metrics import ACCURACIES, SPLITS
from sweeps.analysis import selection
from sweeps.analysis.labels import best_text, short_params, trial_label, verdict_text
from sweeps.analysis.load import Sweep, TrialRuns
from sweeps.analysis.statistics import compare_trials, estimate
from sweeps.config.plugin_groups import STAGE1_HEAD
from sweeps.config.spec import SweepSpec
from sweeps.reporting.model import Cell, Column, Table, score_columns
from sweeps.reporting.verdict import score_cells

Splits = tuple[float | None, float | None, float | None, float | None]

TABLE1_ORDER = (
    "vanilla",
    "cosine",
    "lws",
    "ldam",
    "balanced_softmax",
    "resample",
    "focal",
    "class_balanced",
    "maxnorm",
    "tau_norm",
    "logit_adjust",
)
"""Method kinds in the order of Table 1."""

TABLE1: Mapping[str, Splits] = {
    "vanilla": (48.44, 78.74, 47.37, 14.33),
    "cosine": (52.20, 77.21, 50.52, 24.98),
    "lws": (48.99, 78.51, 47.51, 16.26),
    "ldam": (52.94, 72.37, 54.31, 28.67),
    "balanced_softmax": (52.23, 77.63, 50.74, 24.33),
    "focal": (50.94, 78.00, 49.97, 20.50),
    "class_balanced": (53.31, 70.88, 50.25, 36.41),
    "maxnorm": (51.64, 77.60, 49.37, 23.99),
    "tau_norm": (53.01, 74.74, 47.31, 34.30),
    "logit_adjust": (52.45, 75.57, 47.71, 31.00),
}

TABLE2_CIFAR: Mapping[int, Mapping[str, float]] = {
    100: {"los": 54.9, "ltwb": 53.4, "tau_norm": 47.7},
    50: {"los": 58.8, "ltwb": 57.7, "tau_norm": 52.5},
    10: {"los": 69.7, "ltwb": 68.7, "tau_norm": 63.8},
}

TABLE2_LISTS: Mapping[str, Mapping[str, Splits]] = {
    "imagenet_lt": {
        "los": (54.4, 63.2, 50.7, 42.3),
        "ltwb": (53.9, 62.5, 50.4, 41.5),
        "crt": (49.6, 61.8, 46.2, 27.3),
        "tau_norm": (49.4, 59.1, 46.9, 30.7),
        "disalign": (52.9, 61.3, 52.2, 31.4),
    },
    "inaturalist18": {
        "los": (70.8, 69.2, 70.7, 71.3),
        "ltwb": (70.2, 71.2, 70.4, 69.7),
        "crt": (65.2, 69.0, 66.0, 63.2),
        "tau_norm": (65.6, 65.6, 65.3, 65.5),
        "disalign": (70.6, 69.0, 71.1, 70.2),
    },
}

_TABLE4_METHODS = ("vanilla", "ce", "focal", "ldam", "balanced_softmax", "class_balanced", "los")

TABLE4: Mapping[str, Mapping[str, float]] = {
    recipe: dict(zip(_TABLE4_METHODS, row, strict=True))
    for recipe, row in {
        "ce_steps": (41.59, 41.67, 44.18, 43.87, 45.03, 45.01, 45.18),
        "ce_drw": (42.38, 42.38, 42.55, 42.41, 44.27, 44.39, 44.88),
        "ldam_drw": (44.43, 44.45, 44.58, 44.47, 45.34, 45.52, 45.86),
        "balanced_softmax": (45.90, 45.91, 46.04, 45.90, 46.81, 46.76, 47.08),
    }.items()
}
"""By stage-1 recipe (on the schedule of LDAM) and method: accuracy over all classes of CIFAR100-LT at IR 100."""


@dataclass(frozen=True)
class Printed:
    """What the paper prints for the data of a sweep: by method kind, with the source and how it differs from ours."""

    where: str
    rows: Mapping[str, Splits]


BEST_OF_FIVE = (
    "best of five trials at the best epoch on the test set, with the batch norm of the backbone in training mode. "
    "Compare it with our best of five, not with our mean"
)


def printed(spec: SweepSpec) -> Printed | None:
    """The results of the paper for the dataset, imbalance ratio and stage 1 of a sweep; None if it has none."""
    document = spec.resolved()
    data, backbone = document["dataset"], (document["backbone"] or {}).get("kind")
    if data["kind"] in TABLE2_LISTS:
        theirs = {"imagenet_lt": "resnext50", "inaturalist18": "resnet50"}[data["kind"]]
        return Printed(_where("Table 2", backbone, theirs), TABLE2_LISTS[data["kind"]])
    ratio = data.get("imbalance_ratio")
    if data["kind"] != "cifar100_lt" or data["n_max"] != 500 or ratio not in TABLE2_CIFAR:
        return None
    recipe = str((document["stage1"] or {}).get("kind"))
    if backbone == "resnet32" and ratio == 100 and recipe in TABLE4:
        rows: dict[str, Splits] = {kind: (value, None, None, None) for kind, value in TABLE4[recipe].items()}
        return Printed(f"Table 4, row {recipe}: {BEST_OF_FIVE}", rows)
    alone: dict[str, Splits] = {kind: (value, None, None, None) for kind, value in TABLE2_CIFAR[ratio].items()}
    if ratio == 100:
        # Table 1 evaluates all methods on one backbone; Table 2 quotes them from their own papers.
        return Printed(_where("Table 1 (los, ltwb: Table 2)", backbone, "resnet34"), alone | dict(TABLE1))
    return Printed(_where("Table 2", backbone, "resnet34"), alone)


def _where(table: str, ours: str | None, theirs: str) -> str:
    other = "" if ours == theirs else f". Backbone of the paper: {theirs}, ours: {ours or 'given as features'}"
    return f"{table}: {BEST_OF_FIVE}{other}"


MOST_SHOWN = 20
"""Rows of a long list that the page shows; the CSV file has all."""


def methods(sweep: Sweep) -> Table:
    """The best trial of every method, and every baseline: accuracy, best of S, difference to the best, LoMa."""
    seeds = sweep.spec.selection.seeds
    first = sweep.winner
    shown = [*sweep.methods]
    recipes = [one.recipe for one in shown]
    shown += [one for one in sweep.finished_baselines.values() if one.recipe not in recipes]
    rows: list[tuple[Cell, ...]] = []
    for one in shown:
        baseline = one.trial.phase == "baseline"
        gap = None if first is None or one is first else compare_trials(one, first)[sweep.score.name]
        rows.append(
            (
                trial_label(one) + " (baseline)" * baseline,
                *score_cells(one),
                _best(sweep, one),
                None if gap is None else gap.difference,
                "best" if one is first else verdict_text(gap),
                selection.mean_of_all([record.loma_mean for record in one.records]),
                selection.mean_of_all([record.loma_cv for record in one.records]),
                None if baseline else one.objective,
                short_params(one.trial.params),
            )
        )
    columns = (
        Column("method"),
        *score_columns(sweep.spec.scores),
        Column(f"best of {seeds}", "percent"),
        Column("minus best", "gain"),
        Column("verdict"),
        Column("LoMa", "number"),
        Column("LoMa cv", "number"),
        Column(f"{sweep.spec.selection.on} {sweep.spec.selection.metric}", "percent"),
        Column("parameters"),
    )
    note = (
        "Test accuracy in percent, mean and half width of its 95% interval over seeds. Best of "
        f"{seeds}: all classes, the best seed by the selection metric. Minus best: in "
        f"{sweep.spec.selection.metric}, paired by seed. LoMa: Eq. 6, mean over classes; cv: its standard deviation "
        "divided by its mean."
    )
    return Table("methods", "Best trial of each method", columns, tuple(rows), note, frozenset({0} if first else ()))


def beside_paper(sweep: Sweep) -> Table | None:
    """Our results beside Table 1, 2 or 4 of the paper, in its order; None for data that the paper does not have."""
    theirs = printed(sweep.spec)
    if theirs is None:
        return None
    ours: dict[str, TrialRuns] = {}
    for one in (*sweep.methods, *sweep.finished_baselines.values()):
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
        columns += [Column(f"{split} {which}", "percent") for which in ("mean", "best", "paper")]
    return Table("paper", "Comparison with the paper", tuple(columns), tuple(rows), theirs.where)


def finalists(sweep: Sweep) -> Table | None:
    """The best trials of the search on new seeds."""
    if not sweep.finalists:
        return None
    searched = {(one.trial.candidate, one.trial.number): one for one in sweep.searched}
    head = sweep.stage1_head
    rows: list[tuple[Cell, ...]] = []
    for one in sweep.finalists:
        before = searched.get((one.trial.candidate, one.trial.number))
        old, new = None if before is None else before.objective, one.objective
        gap = None if head is None or one.failed else compare_trials(one, head)[sweep.score.name]
        change = None if old is None or new is None else new - old
        over = (None if gap is None else gap.difference, "failed" if one.failed else verdict_text(gap))
        rows.append((trial_label(one), old, new, change, *over, short_params(one.trial.params)))
    what = f"{sweep.spec.selection.on} {sweep.spec.selection.metric}"
    columns = (
        Column("finalist"),
        Column(f"{what} in the search", "percent"),
        Column("on new seeds", "percent"),
        Column("change", "points"),
        Column(f"test gain over {STAGE1_HEAD}", "points"),
        Column("verdict"),
        Column("parameters"),
    )
    note = "Trials were selected by their value in the search, which is therefore optimistic; that on new seeds is not."
    return Table("finalists", "Finalists on new seeds", columns, tuple(rows), note)


def all_runs(trials: Sequence[TrialRuns]) -> Table:
    """All runs of these trials, for programs."""
    paths = list(dict.fromkeys(path for one in trials for path in one.trial.params))
    scores = trials[0].scores if trials else ACCURACIES
    titles = ["phase", "method", "trial", *paths, "seed", "objective", *(score.name for score in scores)]
    rows: list[tuple[Cell, ...]] = []
    for one in trials:
        for record in one.records:
            numbers: list[Any] = [None] * len(scores)
            if record.failure is None:
                numbers = [None if np.isnan(v) else float(v) for v in selection.reported([record])[0]]
            about = (one.trial.phase, one.trial.display_name, one.trial.number, *(_cell(one, path) for path in paths))
            failure = record.failure or one.undefined or None
            rows.append((*about, record.seed, one.objective, *numbers, record.stopped, failure))
    return Table("runs", "All runs", tuple(map(Column, [*titles, "stopped", "failure"])), tuple(rows))


def best_trials(sweep: Sweep) -> Table | None:
    """The best trials of the search; None if none is finished."""
    known = [one for one in sweep.searched if one.objective is not None and one.stopped is None]
    best = sorted(known, key=lambda one: -(one.objective or 0.0))[:MOST_SHOWN]
    if not best:
        return None
    rows = tuple(
        (
            trial_label(one),
            one.objective,
            *score_cells(one),
            short_params(one.trial.params),
        )
        for one in best
    )
    what = Column(f"{sweep.spec.selection.on} {sweep.spec.selection.metric}", "percent")
    on_test = (replace(column, title=f"test {column.title}") for column in score_columns(sweep.spec.scores))
    columns = (Column("trial"), what, *on_test, Column("parameters"))
    note = f"{best_text(len(best)).capitalize()} of {len(sweep.searched)} trials. All runs are in data/runs.csv."
    return Table("trials", "Best trials of the search", columns, rows, note)


def per_class(sweep: Sweep, shown: dict[str, TrialRuns]) -> Table | None:
    """Size, accuracy, LoMa and regularised std of every class, mean over seeds; for programs."""
    if sweep.manifest is None or not shown:
        return None
    columns = [Column("class"), Column("training_images")]
    parts: list[Sequence[Any]] = [range(sweep.manifest.num_classes), sweep.manifest.class_counts]
    for name, one in shown.items():
        for field in ("class_accuracy", "loma", "regularised_std"):
            columns.append(Column(f"{name} {field}"))
            parts.append(over_seeds(one, field))
    return Table("per_class", "Results by class", tuple(columns), tuple(zip(*parts, strict=True)))


def over_seeds(runs: TrialRuns, field: Literal["class_accuracy", "loma", "regularised_std"]) -> list[float | None]:
    """A field by class, mean over seeds; None for a class without a value."""
    mean = runs.by_class(field).mean(axis=0)
    return [None if np.isnan(value) else float(value) for value in mean]


def cost(sweep: Sweep) -> Table:
    """Time by kind of work."""
    meaning = {
        "total": "wall clock of the call that completed the sweep",
        "prepare": "data, stage 1 and features",
        "backend": "re-training, wall clock",
        "search": "search algorithm",
        "listeners": "progress and callbacks",
        "ledger": "recording finished runs",
        "train": "re-training of all calls, summed over workers",
    }
    rows = tuple((name, value, meaning.get(name, "")) for name, value in sorted(sweep.seconds.items(), key=_by_size))
    device = "GPU" if sweep.spec.resources.gpus_per_pack else "CPU"
    share = sweep.spec.resources.gpus_per_pack if device == "GPU" else sweep.spec.resources.cpus_per_pack
    spent = sweep.seconds.get("train", 0.0) * share
    note = f"{spent:,.1f} {device} seconds of training: {share:g} {device} per pack, summed over packs."
    if sweep.state == "unfinished":
        note += " Other times are recorded when the sweep finishes."
    return Table("cost", "Time", (Column("phase"), Column("seconds", "number"), Column("meaning")), rows, note)


def _by_size(entry: tuple[str, float]) -> float:
    return -entry[1]


def phases(sweep: Sweep) -> Table:
    """Runs by phase, and how many were shared instead of trained."""
    rows: list[tuple[Cell, ...]] = []
    seen: set[str] = set()
    for name, trials in (
        ("baselines", sweep.baselines),
        ("search", sweep.searched),
        ("finalists", sweep.finalists),
        ("extended training", () if sweep.extended is None else (sweep.extended,)),
    ):
        records = [record for one in trials for record in one.records]
        own = {record.key: record for record in records if record.key not in seen}
        seen |= own.keys()
        failed = sum(record.failure is not None for record in own.values())
        stopped = sum(record.stopped is not None for record in own.values())
        epochs = sum(record.epochs for record in own.values())
        rows.append((name, len(trials), len(own), stopped, failed, len(records) - len(own), epochs))
    titles = ("phase", "trials", "runs trained", "of these stopped early", "failed", "shared", "epochs")
    columns = (Column("phase"), *(Column(title, "count") for title in titles[1:]))
    note = (
        f"{sum(int(str(row[2])) for row in rows)} of {sweep.planned_runs} planned runs were trained. Shared: the run "
        "of an earlier trial with the same parameters."
    )
    return Table("runs_by_phase", "Runs", columns, tuple(rows), note)


def failures(sweep: Sweep) -> Table | None:
    """Failed trials with the reason."""
    found = [(one, Counter(r.failure for r in one.records if r.failure is not None)) for one in sweep.every]
    rows: list[tuple[Cell, ...]] = [
        (one.trial.phase, trial_label(one), f"{count} of {len(one.records)}", short_params(one.trial.params), why)
        for one, reasons in found
        for why, count in reasons.items()
    ]
    rows += [
        (one.trial.phase, trial_label(one), "", short_params(one.trial.params), one.undefined)
        for one in sweep.every
        if one.undefined
    ]
    if not rows:
        return None
    shown, note = rows[:MOST_SHOWN], ""
    if len(rows) > len(shown):
        note = f"The first {len(shown)} of {len(rows)}; all are in data/runs.csv."
    columns = tuple(map(Column, ("phase", "trial", "seeds", "parameters", "reason")))
    return Table("failures", "Failures", columns, tuple(shown), note)


def _best(sweep: Sweep, runs: TrialRuns) -> Cell:
    value = float(selection.reported([sweep.best_seed(runs)])[0, 0])
    return None if np.isnan(value) else value


def _cell(runs: TrialRuns, path: str) -> Cell:
    value = runs.trial.params.get(path)
    return value if value is None or isinstance(value, int | float) else str(value)
