"""The table of a finished sweep in Markdown, for a paper's appendix or a README. Knows results; computes nothing."""

from __future__ import annotations

from lt_train.metrics.accuracy import SPLITS
from sweeps.analysis.labels import short_params
from sweeps.analysis.result import MethodRow, Result, Row
from sweeps.analysis.selection import best_told, chosen_over
from sweeps.reporting.cells import difference, means, percent, plain

__all__ = ["method_table"]


def method_table(result: Result) -> str:
    """A row a method, best first, then the baselines: means with 95% intervals, best of S, gain over the baselines."""
    protocol, baselines, seeds = result.protocol, list(result.baselines), result.protocol.seeds
    gains = [f"gain over {name}" for name in baselines]
    header = ["method", *SPLITS, f"best of {seeds}", *gains, "LoMa", "cv", protocol.on, "setting", "trials"]
    tied = [False, *(row.tied for row in result.methods[1:])]
    rows = [_method(row, baselines, protocol.metric, tie) for row, tie in zip(result.methods, tied, strict=False)]
    rows += [_baseline(name, row, len(baselines)) for name, row in result.other_baselines().items()]
    lines = [f"# {result.sweep}", "", _line(header), _line(["---"] * len(header)), *map(_line, rows), ""]
    fresh = f"; {best_told(protocol.finalists)} of each method run again on fresh seeds" if protocol.finalists else ""
    shown = f"mean and half its 95% interval over {seeds} seeds" if seeds > 1 else "one seed"
    about = (
        f"Test accuracy in %: {shown} of the re-training (one backbone, one test set). Selected on {protocol.on} "
        f"{protocol.metric}, {protocol.epoch} epoch, {chosen_over(protocol.objective, seeds)}{fresh}. "
        f"`best of {seeds}`: the seed that is best by the same rule, all classes. `=`: tied with the first, no "
        "difference over these seeds (paired, 95%)."
    )
    return "\n".join([*lines, about]) + "\n"


def _method(row: MethodRow, baselines: list[str], metric: str, tied: bool) -> list[str]:
    return [
        row.method + " =" * tied,
        *means(row),
        percent(row.best_of.acc_all),
        *(difference(row.gain[name][metric]) if metric in row.gain.get(name, {}) else "" for name in baselines),
        plain(row.loma.mean),
        plain(row.loma.cv),
        percent(row.objective),
        short_params(row.searched),
        str(row.trials),
    ]


def _baseline(name: str, row: Row, baselines: int) -> list[str]:
    loma = [plain(row.loma.mean), plain(row.loma.cv)]
    return [f"{name} (baseline)", *means(row), percent(row.best_of.acc_all), *[""] * baselines, *loma, "", "", ""]


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
