"""Formats of numbers and cells, and tables as Markdown, LaTeX (booktabs) and CSV.

These renderers are our own: pandas' would need every cell formatted first, and do not escape or align by column.
"""

from __future__ import annotations

import csv
import io
import re

from sweeps.analysis.statistics import Estimate
from sweeps.reporting.model import Cell, Kind, Table

__all__ = ["as_csv", "as_latex", "as_markdown", "format_cell", "percent", "points"]

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


def percent(value: float | None) -> str:
    """`79.48`; a dash for None."""
    return "-" if value is None else f"{_hundredths(value):.2f}"


def points(value: float) -> str:
    """`+4.16`; float rounding errors of 0 are shown as `+0.00`."""
    return f"{_hundredths(value):+.2f}"


def _hundredths(value: float) -> float:
    """In percent, rounded as shown; 0 has no sign."""
    return round(100 * value, 2) + 0.0


def format_cell(cell: Cell, kind: Kind) -> str:
    """`79.48 ±0.02`, `+4.16 [+4.14, +4.17]`, `< 0.001`; a dash for None."""
    if cell is None:
        return "-"
    if isinstance(cell, str):
        return cell
    if isinstance(cell, Estimate):
        if cell.low is None or cell.high is None:
            return format_cell(cell.value, kind)
        if kind == "points":
            return f"{_number(cell.value, kind)} [{_number(cell.low, kind)}, {_number(cell.high, kind)}]"
        scale = 100 if kind in ("percent", "gain") else 1
        half = scale * (cell.high - cell.low) / 2
        return (
            f"{_number(cell.value, kind)} ±{half:.2f}" if scale == 100 else f"{_number(cell.value, kind)} ±{half:.3g}"
        )
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
    if kind == "loma":
        return f"{value:.3f}" if abs(value) < 1e4 else f"{value:.3g}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def as_markdown(table: Table, heading: str = "## ") -> str:
    """A Markdown table with its note, under its title unless `heading` is empty."""
    lines = [
        _row([column.title for column in table.columns]),
        _row(["---" if column.kind == "text" else "---:" for column in table.columns]),
    ]
    for number, row in enumerate(table.rows):
        cells = [text.replace("|", "\\|").replace("\n", " ") for text in _texts(table, row)]
        bold = [bool(cell) and table.is_strong(number, column) for column, cell in enumerate(cells)]
        lines.append(_row([f"**{cell}**" if strong else cell for cell, strong in zip(cells, bold, strict=True)]))
    title = [f"{heading}{table.title}", ""] if heading else []
    return "\n".join([*title, *lines, *(["", table.note] if table.note else [])]) + "\n"


def as_latex(table: Table) -> str:
    """A `table` environment; needs the package booktabs only."""
    places = "".join("l" if column.kind == "text" else "r" for column in table.columns)
    lines = [r"% needs \usepackage{booktabs}", r"\begin{table}", r"\centering", rf"\caption{{{_tex(table.title)}}}"]
    lines += [rf"\label{{tab:{table.name}}}", rf"\begin{{tabular}}{{{places}}}", r"\toprule"]
    lines += [" & ".join(_tex(column.title) for column in table.columns) + r" \\", r"\midrule"]
    for number, row in enumerate(table.rows):
        cells = [_tex(text) for text in _texts(table, row)]
        bold = [table.is_strong(number, column) for column in range(len(cells))]
        marked = (rf"\textbf{{{cell}}}" if strong else cell for cell, strong in zip(cells, bold, strict=True))
        lines.append(" & ".join(marked) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join(lines + ([f"% {table.note}"] if table.note else [])) + "\n"


def as_csv(table: Table) -> str:
    """Unrounded numbers, fractions of 1. An estimate takes three columns; an unknown value is empty."""
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
                values += [cell.value, cell.low, cell.high]
            else:
                values += [cell, None, None] if three else [cell]
        writer.writerow(["" if value is None else value for value in values])
    return out.getvalue()


def _texts(table: Table, row: tuple[Cell, ...]) -> list[str]:
    return [format_cell(cell, column.kind) for cell, column in zip(row, table.columns, strict=True)]


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _tex(text: str) -> str:
    return re.sub("[" + re.escape("".join(_LATEX)) + "]", lambda found: _LATEX[found[0]], text).replace("\n", " ")
