"""Tables for a terminal: the comparison that a finished sweep prints, and what `plan` and `kinds` show.

Knows results and rich; computes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from lt_train.metrics.accuracy import SPLITS
from sweeps.analysis.labels import short_params
from sweeps.analysis.result import Gain, Result, Row, Winner
from sweeps.analysis.selection import chosen_over, finalists_told, seeds_told
from sweeps.reporting import model as content
from sweeps.reporting.cells import difference, means, percent, plain
from sweeps.reporting.formats import shown
from sweeps.reporting.model import Section

__all__ = ["comparison", "sections_shown", "summary", "winner_line"]

SCREEN = 24
"""Lines of the smallest terminal that people have."""


def comparison(result: Result, most: int | None = None) -> Group:
    """What a sweep found: its table of methods where it has several, else the winner beside the baselines.

    Args:
        result: of a finished sweep.
        most: rows, or of a single method baselines, that are shown at most; how many are not is told.
    """
    if len(result.methods) > 1:
        seeds = result.protocol.seeds
        shown = f"mean ±95% over {seeds_told(seeds)}" if seeds > 1 else seeds_told(seeds)
        title = f"{result.sweep}: test accuracy in %, {shown}, best on top"
        rows = len(result.methods) + len(result.other_baselines())
        return Group(Text(title), _methods(result, most), *_not_shown(rows, most), *_notes(result, most))
    hidden = _not_shown(len(result.baselines), most) or [Text()]
    return Group(_winner_and_baselines(result, most), *hidden, *_notes(result, most))


def summary(result: Result, console: Console, below: int) -> Group:
    """`comparison` with as many rows as a screen takes that shows so many other lines below it; one at least."""
    most = max(len(result.methods) + len(result.other_baselines()), len(result.baselines))
    shown = comparison(result)
    while most > 1 and len(console.render_lines(shown)) + below > SCREEN:
        most -= 1
        shown = comparison(result, most)
    return shown


def _not_shown(rows: int, most: int | None) -> list[Text]:
    more = 0 if most is None else rows - most
    return [Text(f"  and {more} more, which `lt-sweep table` shows")] if more > 0 else []


def winner_line(result: Result) -> str:
    """The winner, its test accuracy and what it gains, in a line; empty where there is none."""
    winner = result.winner
    if winner is None:
        return ""
    gains = [f"{difference(gain['acc_all'])} over {name}" for name, gain in winner.gain.items() if "acc_all" in gain]
    return f"{_named(result, winner)}: test {means(winner)[0]} %" + (f", {', '.join(gains)}" if gains else "")


def sections_shown(sections: Sequence[Section]) -> Group:
    """What a page says of several sweeps, without its figures."""
    parts: list[RenderableType] = []
    for section in sections:
        parts.append(Text(section.title, style="bold"))
        parts += [Text(text) for text in section.text]
        for one in section.tables:
            parts += [Text(), _shown(one), Text(one.note, style="dim")]
        parts.append(Text())
    return Group(*parts[:-1])


def _shown(one: content.Table) -> Table:
    """Numbers keep their line; names and paths make room."""
    table = Table(title=Text(one.title), title_justify="left", title_style="", box=None, padding=(0, 2, 0, 0))
    rows = [[shown(cell, column.kind) for cell, column in zip(row, one.columns, strict=True)] for row in one.rows]
    for column in one.columns:
        number = column.kind != "text"
        table.add_column(column.title, justify="right" if number else "left", overflow="fold", no_wrap=number)
    for place, row in enumerate(rows):
        table.add_row(*map(Text, row), style="bold" if place in one.strong else "")
    return table


def _named(result: Result, winner: Winner) -> str:
    whose = f"{winner.method}, " if len(result.methods) > 1 else ""
    return f"{whose}trial {winner.trial}, {short_params(winner.searched) or 'nothing searched'}"


def _methods(result: Result, most: int | None) -> Table:
    """A line a method, best first: mean over seeds and its 95% interval by split, the best of S, what selected it."""
    seeds = result.protocol.seeds
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    table.add_column("method", overflow="fold")  # where room is short, names take a second line, and no number is cut
    for split in SPLITS:
        table.add_column(split, no_wrap=True)
    table.add_column(f"best/{seeds}", justify="right", no_wrap=True)
    table.add_column(result.protocol.on, justify="right", no_wrap=True)
    for place, row in enumerate(result.methods[:most]):
        tie = "=" if place and row.tied else ""
        table.add_row(tie, row.method, *means(row), percent(row.best_of.acc_all), percent(row.objective))
    left = None if most is None else max(0, most - len(result.methods))
    for name, baseline in list(result.other_baselines().items())[:left]:
        table.add_row("", f"{name} (baseline)", *means(baseline), percent(baseline.best_of.acc_all), "")
    return table


def _winner_and_baselines(result: Result, most: int | None) -> Table:
    """Baselines and winner: best of S beside the mean over seeds and its 95% interval, in percent."""
    table = Table(title=f"{result.sweep}: test accuracy in %", title_justify="left", box=None, padding=(0, 1, 0, 0))
    table.add_column("method", overflow="fold")
    table.add_column("shown", overflow="fold")
    for split in SPLITS:
        table.add_column(split, no_wrap=True)
    table.add_column("LoMa", justify="right", no_wrap=True)
    table.add_column("cv", justify="right", no_wrap=True)
    for name, row in list(result.baselines.items())[:most]:
        _add(table, name, row)
    if result.winner is not None:
        _add(table, result.winner.params["kind"], result.winner)
    return table


def _add(table: Table, name: str, row: Row) -> None:
    loma = [plain(row.loma.mean), plain(row.loma.cv)]
    best = [percent(getattr(row.best_of, f"acc_{split}")) for split in SPLITS]
    if len(row.seeds) == 1:
        table.add_row(name, "one run", *best, *loma)
        return
    table.add_row(name, f"best of {len(row.seeds)}", *best)
    table.add_row("", "mean ±95%", *means(row), *loma)


def _notes(result: Result, most: int | None) -> list[Text]:
    protocol, winner, several = result.protocol, result.winner, len(result.methods) > 1
    fresh = f", {finalists_told(protocol.finalists)} on fresh seeds" if protocol.finalists else ""
    lines = ["no winner" if winner is None else f"winner: {_named(result, winner)}"]
    lines.append(
        f"selected on {protocol.on} {protocol.metric}, {protocol.epoch} epoch, "
        f"{chosen_over(protocol.objective, protocol.seeds)}{fresh}"
    )
    if protocol.on == "test":
        lines.append("selected on the test set, as the paper does: these accuracies flatter the winner")
    if winner is None:
        some = any(trial.objective is not None and trial.stopped is None for trial in result.trials)
        whole = " that was not stopped" if result.runs.stopped else ""
        lines.append(f"every {'finalist' if some else f'trial{whole}'} failed: result.json says why")
    elif not several:
        lines += [f"gain over {name}, points: {_gain(gain)}" for name, gain in list(winner.gain.items())[:most]]
    lines += _longer(result)
    if protocol.seeds > 1:
        ties = any(row.tied for row in result.methods[1:most])
        what = "intervals and ties (=) are over seeds of" if ties else "intervals are over seeds of the"
        lines.append(f"{what} re-training: one backbone, one test set")
    trials = sum(trial.stopped is not None for trial in result.trials)
    if trials:
        lines.append(f"{trials} of {len(result.trials)} trials ({result.runs.stopped} runs) were stopped early")
    lines.append(
        f"{result.runs.finished} runs finished, {result.runs.failed} failed, {result.runs.cached} taken from before; "
        f"{result.seconds['total']:.0f} s, of them training {result.seconds['train']:.0f} s"
    )
    return [Text(line) for line in lines]


def _longer(result: Result) -> list[str]:
    """Where the winner leads when it trains longer."""
    extended = result.extended
    if extended is None:
        return [f"not trained extended_training: {result.not_longer}"] if result.not_longer else []
    ends = {
        "falls": "it stands on a transient",
        "level": "level, no transient",
        "gains": "not trained to its end",
        "unclear": f"cannot be told with {seeds_told(len(extended.seeds))}",
    }[extended.ends]
    lines = [f"trained {extended.times}x as long: {difference(extended.change)} on {result.protocol.on}: {ends}"]
    if extended.over_start is not None and extended.beside_start == "below":
        lines.append(f"  and so below the stage-1 head, vanilla: {difference(extended.over_start)}")
    return lines


def _gain(gain: Mapping[str, Gain]) -> str:
    return ", ".join(f"{metric[4:]} {difference(gain[metric])}" for metric in ("acc_all", "acc_few") if metric in gain)
