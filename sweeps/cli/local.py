"""What the commands about files and sweeps on this machine do: each takes the command line, returns the exit code.

Results go to standard output, progress and trouble to standard error. Heavy rooms are imported by the command that
needs them.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lt_train.core.errors import SpecError, UserError
from lt_train.core.io import writing

if TYPE_CHECKING:
    from sweeps.analysis.result import Result

__all__ = ["compare", "kinds", "plan", "report", "resume", "run", "schema", "table", "ui", "validate"]

WIDE = 100
"""Columns of what is printed to no terminal."""


def validate(arguments: argparse.Namespace) -> int:
    """Every problem of some sweep files."""
    from sweeps.config.matrix import load_file

    problems: list[str] = []
    for file in arguments.spec:
        try:
            load_file(file)
        except SpecError as error:
            problems += error.problems
    if arguments.json:
        print(json.dumps({"files": len(arguments.spec), "problems": problems}))
    else:
        print(*problems, sep="\n", end="\n" if problems else "", file=sys.stderr)
        if not problems:
            print(f"{len(arguments.spec)} sweep file{'s' * (len(arguments.spec) > 1)} valid")
    return 2 if problems else 0


def plan(arguments: argparse.Namespace) -> int:
    """What sweeps come to."""
    from sweeps.config.matrix import SweepMatrix, load_file
    from sweeps.experiment import plan as planning
    from sweeps.reporting.planned import plan_table, plans_document, plans_table

    loaded = [load_file(file) for file in arguments.spec]
    specs = [spec for one in loaded for spec in (one.sweeps if isinstance(one, SweepMatrix) else [one])]
    plans = [(spec, planning.plan(spec, arguments.tflops)) for spec in specs]
    ((spec, planned), *more) = plans
    if arguments.json:
        print(json.dumps(plans_document(plans) if more else planned.document()))
        return 0
    Console().print(plans_table(plans) if more else plan_table(spec, planned))
    for note in dict.fromkeys(note for _, planned in plans for note in planned.notes):
        print(f"note: {note}", file=sys.stderr)
    return 0


def run(arguments: argparse.Namespace) -> int:
    """Run the sweep of a file, or its sweeps, or go on with them."""
    from sweeps.cli.matrix import show_matrix
    from sweeps.config.matrix import SweepMatrix, load_file
    from sweeps.experiment import runner as driver
    from sweeps.experiment.matrix_runner import run_matrix
    from sweeps.store.directory import running_spec
    from sweeps.store.status import JOB_VARIABLE

    loaded = load_file(arguments.spec)
    if backend := arguments.backend:
        changed = functools.partial(running_spec, backend=backend)
        loaded = loaded.each(changed) if isinstance(loaded, SweepMatrix) else changed(loaded)
    if JOB_VARIABLE in os.environ:
        # A job's own directory may be made anew, under its feet, by whoever else needs it on this machine.
        loaded = loaded.anchored(Path.cwd())
        with writing(Path(loaded.storage)):
            Path(loaded.storage).mkdir(parents=True, exist_ok=True)
        os.chdir(loaded.storage)
    if isinstance(loaded, SweepMatrix):
        matrix = loaded
        return show_matrix(lambda: run_matrix(matrix, fresh=arguments.fresh), as_json=arguments.json)
    spec = loaded
    return _show(
        lambda: driver.run(spec, fresh=arguments.fresh), Path(spec.storage).expanduser() / spec.name, arguments.json
    )


def resume(arguments: argparse.Namespace) -> int:
    """Go on with a sweep, or a matrix of them, from its directory; or with the matrix of a file."""
    from sweeps.cli.matrix import show_matrix
    from sweeps.config.matrix import SweepMatrix
    from sweeps.experiment import runner as driver
    from sweeps.experiment.matrix_runner import resume_matrix, run_matrix
    from sweeps.store.matrix_directory import find_sweeps

    target = Path(arguments.target).expanduser()
    found = find_sweeps(target) if target.exists() else None
    if isinstance(found, SweepMatrix):
        matrix = found  # a file may have changed since, and the sweeps' directories know
        again = (lambda: resume_matrix(target)) if target.is_dir() else (lambda: run_matrix(matrix))
        return show_matrix(again, as_json=arguments.json)
    if found is not None:
        raise UserError(f"{target} is the file of one sweep; resume takes its directory, {found.storage}/{found.name}")
    return _show(lambda: driver.resume(target), target, arguments.json)


def table(arguments: argparse.Namespace) -> int:
    """The table of a finished sweep, or of a matrix, once more."""
    from sweeps.cli.matrix import show_results

    return show_results(arguments.target, as_json=arguments.json, markdown=arguments.markdown)


def _show(sweep: Callable[[], Result], directory: Path, as_json: bool) -> int:
    """Run a sweep and print its comparison, also when only the tracking server stayed away."""
    from sweeps.experiment.runner import TrackingBehind
    from sweeps.reporting.terminal import summary

    behind: TrackingBehind | None = None
    try:
        result = sweep()
    except TrackingBehind as error:
        behind, result = error, error.result
    if as_json:
        print(result.model_dump_json(by_alias=True))
    else:
        console = Console()
        for note in result.notes:
            print(f"note: {note}", file=sys.stderr)
        # As it was typed: after `make demo` the program is not on the PATH.
        program = sys.argv[0] if Path(sys.argv[0]).name == "lt-sweep" else "lt-sweep"
        after = [
            "",
            f"{directory / 'result.json'} holds all of it; next:",
            f"  {program} ui {directory}     compare trials in MLflow",
            f"  {program} report {directory}     a page with verdict, tables and figures",
            f"  {program} plan SPEC.yaml     what a sweep of your own would cost",
            f"  ls {directory / 'artifacts'}     tables by class and by trial, figures, the resolved spec",
        ]
        console.print(summary(result, console, below=len(after)))
        print(*after, sep="\n")
    if behind is not None:
        raise behind
    return 0 if result.winner is not None else 1


def report(arguments: argparse.Namespace) -> int:
    """The report of sweeps that lie here, finished or not."""
    from sweeps.reporting.write import write

    written = write(arguments.runs, arguments.out)
    verdicts = {one.name: one.verdict for one in written.reports}
    if arguments.json:
        told = {
            name: {"headline": one.headline, "params": one.params, "selected": one.selected, "cautions": one.cautions}
            for name, one in verdicts.items()
        }
        print(json.dumps({"page": str(written.page), "sweeps": told}))
        return 0
    for name, one in verdicts.items():
        print(f"{name}: {one.headline}")
    print(f"{written.page} holds all of it; tables as Markdown, LaTeX and CSV lie beside it")
    return 0


def compare(arguments: argparse.Namespace) -> int:
    """Sweeps that lie here beside the first of them."""
    from sweeps.analysis.comparison import compare
    from sweeps.reporting.comparison_sections import comparison_sections
    from sweeps.reporting.terminal import sections_shown

    found = compare(*arguments.runs)
    if arguments.json:
        print(found.model_dump_json(by_alias=True))
    else:
        told = sys.stdout.isatty() or "COLUMNS" in os.environ
        Console(width=None if told else WIDE).print(sections_shown(comparison_sections(found)))
    return 0


def kinds(arguments: argparse.Namespace) -> int:
    """Every kind with its fields."""
    from sweeps.config.plugin_groups import rooms

    found = rooms()
    if arguments.json:
        print(
            json.dumps({room: {name: _fields(kind) for name, kind in kinds.items()} for room, kinds in found.items()})
        )
        return 0
    for room, kinds in found.items():
        table = Table(title=room, title_justify="left", title_style="bold")
        table.add_column("kind", no_wrap=True)
        table.add_column("what it is, and its fields with their defaults", overflow="fold")
        for name, kind in kinds.items():
            summary = (kind.__doc__ or "").strip().splitlines()[0]
            fields = ", ".join(f"{key}={value}" for key, value in _fields(kind).items())
            table.add_row(name, Text(f"{summary}\n{fields}" if fields else summary), end_section=True)
        Console().print(table)
    return 0


def _fields(kind: Any) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        if name == "kind":
            continue
        default = "required" if field.is_required() else field.get_default(call_default_factory=True)
        shown[name] = default.model_dump(mode="json") if hasattr(default, "model_dump") else default
    return shown


def schema(arguments: argparse.Namespace) -> int:
    """The JSON schema of a sweep file."""
    from sweeps.config import spec

    print(json.dumps(spec.schema(), indent=1))
    return 0


def ui(arguments: argparse.Namespace) -> int:
    """MLflow on a sweep's runs table."""
    from sweeps.config.spec import load_sweep
    from sweeps.store.directory import load_tracking
    from sweeps.store.layout import sweep_directory

    target: Path = arguments.target
    if target.is_dir():
        directory = sweep_directory(target)
        place, tracking = directory.path, load_tracking(directory)
    else:
        spec = load_sweep(target).anchored(Path.cwd())
        place, tracking = Path(spec.storage) / spec.name, spec.tracking
    serve: Callable[..., int] | None = getattr(tracking, "serve", None)
    if serve is None:
        raise UserError(f"{target}: tracking is {tracking.kind!r}, which has no user interface")
    try:
        return serve(place.name, place.parent, arguments.port)
    except KeyboardInterrupt:
        return 130  # how one stops it
