"""Tables for a terminal: the comparison that a finished sweep prints, and what `plan` and `kinds` show.

Knows results and rich; computes nothing.
"""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from lt_train.metrics import SPLITS
from sweeps.cards import short_params
from sweeps.result import Result, Row

__all__ = ["comparison"]


def comparison(result: Result) -> Group:
    """Baselines and winner side by side: best of S beside the mean over seeds and its 95% interval, in percent."""
    table = Table(title=f"{result.sweep}: test accuracy in %", title_justify="left", box=None, padding=(0, 1, 0, 0))
    table.add_column("method", no_wrap=True)
    table.add_column("shown", no_wrap=True)
    for split in SPLITS:
        table.add_column(split, no_wrap=True)
    table.add_column("LoMa", justify="right")
    table.add_column("cv", justify="right")
    for name, row in result.baselines.items():
        _add(table, name, row)
    if result.winner is not None:
        _add(table, result.winner.params["kind"], result.winner)
    return Group(table, Text(), *_notes(result))


def _add(table: Table, name: str, row: Row) -> None:
    loma = [_plain(row.loma.mean), _plain(row.loma.cv)]
    best = [_percent(getattr(row.best_of, f"acc_{split}")) for split in SPLITS]
    if len(row.seeds) == 1:
        table.add_row(name, "one run", *best, *loma)
        return
    table.add_row(name, f"best of {len(row.seeds)}", *best)
    means = []
    for split in SPLITS:
        mean, ci95 = getattr(row.mean, f"acc_{split}"), getattr(row.ci95, f"acc_{split}")
        half = "" if ci95 is None else f" ±{50 * (ci95[1] - ci95[0]):.2f}"
        means.append(_percent(mean) + half)
    table.add_row("", "mean ±95%", *means, *loma)


def _notes(result: Result) -> list[Text]:
    protocol, winner = result.protocol, result.winner
    fresh = f", {protocol.finalists} finalists on fresh seeds" if protocol.finalists else ""
    lines = [
        f"{'no winner' if winner is None else f'winner: trial {winner.trial}, {_values(result)}'}",
        f"selected on {protocol.on} {protocol.metric}, {protocol.epoch} epoch, {protocol.objective} of "
        f"{protocol.seeds} seeds{fresh}",
    ]
    if protocol.on == "test":
        lines.append("selected on the test set, as the paper does: these accuracies flatter the winner")
    if winner is None:
        some = any(trial.objective is not None for trial in result.trials)
        lines.append(f"every {'finalist' if some else 'trial'} failed: result.json says why")
    else:
        for baseline, gain in winner.gain.items():
            shown: list[str] = []
            for metric in ("acc_all", "acc_few"):
                if metric in gain:
                    ci95 = gain[metric].ci95
                    span = "" if ci95 is None else f" [{100 * ci95[0]:+.2f}, {100 * ci95[1]:+.2f}]"
                    shown.append(f"{metric[4:]} {100 * gain[metric].mean:+.2f}{span}")
            lines.append(f"gain over {baseline}, points: {', '.join(shown)}")
    if protocol.seeds > 1:
        lines.append("intervals are over seeds of the re-training: one backbone, one test set")
    lines.append(
        f"{result.runs.finished} runs finished, {result.runs.failed} failed, {result.runs.cached} taken from before; "
        f"{result.seconds['total']:.0f} s, of them training {result.seconds['train']:.0f} s"
    )
    return [Text(line) for line in lines]


def _values(result: Result) -> str:
    assert result.winner is not None
    return short_params({path: result.winner.params[path.rpartition(".")[2]] for path in result.trials[0].params})


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
