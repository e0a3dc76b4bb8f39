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
    seeds = max([len(result.winner.seeds) if result.winner else 1] + [len(r.seeds) for r in result.baselines.values()])
    table = Table(title=f"{result.sweep}: test accuracy in %", title_justify="left")
    table.add_column("method")
    table.add_column("reported")
    for split in SPLITS:
        table.add_column(split, justify="right")
    table.add_column("LoMa", justify="right")
    table.add_column("LoMa cv", justify="right")
    for name, row in result.baselines.items():
        _add(table, name, row, seeds)
    if result.winner is not None:
        searched = {path: result.winner.params[path.rpartition(".")[2]] for path in _searched(result)}
        _add(table, f"{result.winner.params['kind']} {short_params(searched)}", result.winner, seeds)
    return Group(table, *_notes(result))


def _add(table: Table, name: str, row: Row, seeds: int) -> None:
    loma = [_plain(row.loma.mean), _plain(row.loma.cv)]
    if len(row.seeds) < seeds and len(row.seeds) == 1:
        table.add_row(name, "no seeds", *(_percent(getattr(row.mean, f"acc_{s}")) for s in SPLITS), *loma, end_section=True)
        return
    table.add_row(
        name,
        f"best of {len(row.seeds)}",
        *(_percent(getattr(row.best_of, f"acc_{split}")) for split in SPLITS),
    )
    cells = []
    for split in SPLITS:
        mean, ci95 = getattr(row.mean, f"acc_{split}"), getattr(row.ci95, f"acc_{split}")
        half = "" if ci95 is None else f" ±{50 * (ci95[1] - ci95[0]):.2f}"
        cells.append(_percent(mean) + half)
    table.add_row("", "mean ±95%", *cells, *loma, end_section=True)


def _notes(result: Result) -> list[Text]:
    protocol, winner = result.protocol, result.winner
    fresh = f", {protocol.finalists} finalists on fresh seeds" if protocol.finalists else ""
    lines = [
        f"selected on {protocol.on} {protocol.metric}, {protocol.epoch} epoch, {protocol.objective} of "
        f"{protocol.seeds} seeds{fresh}"
    ]
    if protocol.on == "test":
        lines.append("selected on the test set, as the paper does: these accuracies flatter the winner")
    if winner is None:
        lines.append("every trial failed; there is no winner")
    else:
        for baseline, gain in winner.gain.items():
            shown = []
            for metric in ("acc_all", "acc_few"):
                if metric in gain:
                    ci95 = gain[metric].ci95
                    span = "" if ci95 is None else f" [{100 * ci95[0]:+.2f}, {100 * ci95[1]:+.2f}]"
                    shown.append(f"{metric[4:]} {100 * gain[metric].mean:+.2f}{span}")
            lines.append(f"gain over {baseline}, paired by seed, in points: {', '.join(shown)}")
    lines.append(
        f"{result.runs.finished} runs finished, {result.runs.failed} failed, {result.runs.cached} taken from before; "
        f"{result.seconds['total']:.0f} s, of them training {result.seconds['train']:.0f} s"
    )
    return [Text(line) for line in lines]


def _searched(result: Result) -> list[str]:
    return list(result.trials[0].params) if result.trials else []


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
