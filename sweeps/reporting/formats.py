"""Tables as Markdown, LaTeX (booktabs) and CSV, and a cell as people read it. Knows tables; computes nothing."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator

from sweeps.analysis.estimate import Estimate
from sweeps.reporting.cells import percent, points
from sweeps.reporting.model import Cell, Column, Kind, Table

__all__ = ["as_csv", "as_latex", "as_markdown", "shown"]

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "<": r"$<$",
    ">": r"$>$",
}


def shown(cell: Cell, kind: Kind) -> str:
    """`79.48 ±0.02`, `+4.16 [+4.14, +4.17]`, `< 0.001`; a dash for what is not known."""
    if cell is None:
        return "-"
    if isinstance(cell, str):
        return cell
    if isinstance(cell, Estimate):
        if cell.low is None or cell.high is None:
            return shown(cell.mean, kind)
        if kind == "points":
            return f"{_number(cell.mean, kind)} [{_number(cell.low, kind)}, {_number(cell.high, kind)}]"
        scale = 100 if kind in ("percent", "gain") else 1
        half = scale * (cell.high - cell.low) / 2
        return f"{_number(cell.mean, kind)} ±{half:.2f}" if scale == 100 else f"{_number(cell.mean, kind)} ±{half:.3g}"
    return _number(cell, kind)


def _number(value: float, kind: Kind) -> str:
    if kind == "percent":
        return percent(value)
    if kind in ("points", "gain"):
        return points(value)
    if kind == "p":
        return "< 0.001" if value < 0.001 else f"{value:.3f}"
    if kind == "count":
        return f"{value:.0f}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def as_markdown(table: Table) -> str:
    """A Markdown table under its title, with its note."""
    lines = [
        _row([column.title for column in table.columns]),
        _row(["---" if column.kind == "text" else "---:" for column in table.columns]),
    ]
    for number, row in enumerate(table.rows):
        cells = [shown(cell, column.kind).replace("|", "\\|").replace("\n", " ") for cell, column in _cells(table, row)]
        lines.append(_row([f"**{cell}**" if cell and number in table.strong else cell for cell in cells]))
    return "\n".join([f"## {table.title}", "", *lines, *(["", table.note] if table.note else [])]) + "\n"


def as_latex(table: Table) -> str:
    """A `table` environment with the rules of the package booktabs, which is all it needs."""
    places = "".join("l" if column.kind == "text" else "r" for column in table.columns)
    lines = [r"% needs \usepackage{booktabs}", r"\begin{table}", r"\centering", rf"\caption{{{_tex(table.title)}}}"]
    lines += [rf"\label{{tab:{table.name}}}", rf"\begin{{tabular}}{{{places}}}", r"\toprule"]
    lines += [" & ".join(_tex(column.title) for column in table.columns) + r" \\", r"\midrule"]
    for number, row in enumerate(table.rows):
        cells = [_tex(shown(cell, column.kind)) for cell, column in _cells(table, row)]
        bold = number in table.strong
        lines.append(" & ".join(rf"\textbf{{{cell}}}" if bold else cell for cell in cells) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines + ([f"% {table.note}"] if table.note else [])) + "\n"


def as_csv(table: Table) -> str:
    """Numbers as they are, fractions of 1; an estimate takes three columns, an unknown value is empty."""
    wide = [any(isinstance(row[place], Estimate) for row in table.rows) for place in range(len(table.columns))]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    header: list[str] = []
    for column, three in zip(table.columns, wide, strict=True):
        header += [column.title, f"{column.title} low", f"{column.title} high"] if three else [column.title]
    writer.writerow(header)
    for row in table.rows:
        values: list[object] = []
        for cell, three in zip(row, wide, strict=True):
            if isinstance(cell, Estimate):
                values += [cell.mean, cell.low, cell.high]
            else:
                values += [cell, None, None] if three else [cell]
        writer.writerow(["" if value is None else value for value in values])
    return out.getvalue()


def _cells(table: Table, row: tuple[Cell, ...]) -> Iterator[tuple[Cell, Column]]:
    yield from zip(row, table.columns, strict=True)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _tex(text: str) -> str:
    return re.sub("[" + re.escape("".join(_LATEX)) + "]", lambda found: _LATEX[found[0]], text).replace("\n", " ")
