"""The commands about sweep files and about sweeps on this machine. Each returns its exit code.

Results go to standard output, progress and notes to standard error. Heavy modules are imported by the function that
needs them.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lt_train.cli.program import AsJson, command, log_notes, positive
from lt_train.core.errors import SpecError, UserError
from lt_train.core.imports import is_installed
from lt_train.core.io import writing
from sweeps.cli.options import Fresh, Results, Spec, Specs, app

if TYPE_CHECKING:
    from sweeps.analysis.matrix_table import MatrixTable
    from sweeps.analysis.result import Result

OUTPUT_COLUMNS = 100
"""Width of comparisons that are not printed to a terminal."""

_log = logging.getLogger(__name__)


@command(app, "validate", "lt-sweep validate sweep.yaml")
def validate(specs: Specs, *, as_json: AsJson = False) -> int:
    """Check sweep files and print all problems."""
    from sweeps.config.matrix import load_file, sweeps_of
    from sweeps.store.directory import check_name

    problems: list[str] = []
    for spec in specs:
        try:
            for sweep in sweeps_of(load_file(spec)):
                check_name(sweep)
        except SpecError as error:
            problems += error.problems
    if as_json:
        print(json.dumps({"files": len(specs), "problems": problems}))
    elif problems:
        print(*problems, sep="\n", file=sys.stderr)
    else:
        print(f"{len(specs)} sweep file{'s' * (len(specs) > 1)} valid")
    return 2 if problems else 0


@command(app, "plan", "lt-sweep plan demo")
def plan(
    specs: Specs,
    *,
    tflops: Annotated[
        float | None,
        typer.Option(
            "--tflops",
            metavar="RATE",
            callback=positive,
            help="Speed of the device in TFLOP/s. Default: 20 for a GPU, measured on this machine otherwise.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Print trials, runs, memory and time of sweeps.

    Nothing is trained. Several sweeps are listed with one line each and their sum.
    """
    from sweeps.config.matrix import load_file, sweeps_of

    sweeps = [sweep for spec in specs for sweep in sweeps_of(load_file(spec))]

    from sweeps.experiment import plan as planning  # imports torch, which takes longer than reading the files
    from sweeps.reporting.terminal import plan_table, plans_document, plans_table

    plans = [(sweep, planning.plan(sweep, tflops)) for sweep in sweeps]
    ((sweep, planned), *more) = plans
    if as_json:
        print(json.dumps(plans_document(plans) if more else planned.document()))
        return 0
    Console().print(plans_table(plans) if more else plan_table(sweep, planned))
    log_notes(dict.fromkeys(note for _, planned in plans for note in planned.notes))
    return 0


@command(app, "demo", "lt-sweep demo", imports=False)
def demo(*, as_json: AsJson = False) -> int:
    """Run the bundled demo sweep in a few minutes.

    Writes to runs/demo in the current directory. Earlier results are moved to runs/demo.previous-N.
    """
    from lt_train.core.imports import EXTRAS
    from sweeps.config.interfaces import BACKENDS, TRACKERS
    from sweeps.config.spec import load_sweep
    from sweeps.experiment import runner

    spec = load_sweep("demo")  # its default backend and tracker are those that are installed
    backends, trackers = BACKENDS.kinds().values(), TRACKERS.kinds().values()
    libraries = {name for kind in backends for name in kind.libraries} | {
        name for kind in trackers for name in kind.libraries
    }
    if missing := sorted(name for name in libraries if not is_installed(name)):
        _log.info(
            "%s not installed: running with backend %s and tracking %s (pip install 'longtail-sweeps[%s]')",
            " and ".join(missing),
            spec.backend.kind,
            spec.tracking.kind,
            ",".join(EXTRAS[name] for name in missing),
        )
    return _show(lambda: runner.run(spec, fresh=True), Path(spec.storage) / spec.name, as_json)


@command(app, "run", "lt-sweep run sweep.yaml --backend inline")
def run(
    spec: Spec,
    *,
    fresh: Fresh = False,
    backend: Annotated[
        str | None,
        typer.Option("--backend", metavar="KIND", help="Replace the backend of the sweep file, for example by inline."),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Run a sweep, or resume it if it was interrupted."""
    from sweeps.cli.matrix import show_matrix
    from sweeps.config.matrix import SweepMatrix, load_file
    from sweeps.experiment import runner
    from sweeps.store.directory import with_backend
    from sweeps.store.progress import JOB_VARIABLE

    loaded = load_file(spec)
    if backend is not None:
        loaded = with_backend(loaded, backend)
    if JOB_VARIABLE in os.environ:
        # Ray may recreate a job's working directory while the job runs. The storage directory stays.
        loaded = loaded.with_absolute_paths(Path.cwd())
        with writing(Path(loaded.storage)):
            Path(loaded.storage).mkdir(parents=True, exist_ok=True)
        os.chdir(loaded.storage)
    if isinstance(loaded, SweepMatrix):
        matrix = loaded
        return show_matrix(lambda: runner.run(matrix, fresh=fresh), as_json=as_json)
    sweep = loaded
    return _show(lambda: runner.run(sweep, fresh=fresh), Path(sweep.storage).expanduser() / sweep.name, as_json)


def resume_here(target: Path, *, as_json: bool) -> int:
    """Resume the sweep or the matrix of a directory on this machine, or the matrix of a file."""
    from sweeps.cli.matrix import show_matrix
    from sweeps.config.matrix import SweepMatrix
    from sweeps.experiment import runner
    from sweeps.store.directory import load_target

    target = target.expanduser()
    found = load_target(target) if target.exists() else None
    if isinstance(found, SweepMatrix):
        # A directory is resumed with the specs in it: the sweep file may have changed since.
        matrix = found
        resumed = (lambda: runner.resume(target)) if target.is_dir() else (lambda: runner.run(matrix))
        return show_matrix(cast("Callable[[], MatrixTable]", resumed), as_json=as_json)
    if found is not None:
        raise UserError(
            f"{target} is a sweep file; resume needs the directory of the sweep, {found.storage}/{found.name}"
        )
    return _show(lambda: runner.resume(target), target, as_json)


def _show(sweep: Callable[[], Result], directory: Path, as_json: bool) -> int:
    """Run a sweep and print its comparison, even if the tracking server could not be reached."""
    from sweeps.experiment.runner import TrackingBehind
    from sweeps.reporting.terminal import summary
    from sweeps.store.directory import load_tracking
    from sweeps.store.layout import sweep_directory

    behind: TrackingBehind | None = None
    try:
        result = sweep()
    except TrackingBehind as error:
        behind, result = error, error.result
    if as_json:
        print(result.model_dump_json(by_alias=True))
    else:
        console = Console()
        log_notes(result.notes)
        # As it was typed: after `make demo` the program is not on the PATH.
        program = sys.argv[0] if Path(sys.argv[0]).name == "lt-sweep" else "lt-sweep"
        has_ui = hasattr(load_tracking(sweep_directory(directory)), "serve")
        can_report = is_installed("jinja2") and is_installed("matplotlib")
        after = [
            "",
            f"Results: {directory / 'result.json'}. Next steps:",
            *[f"  {program} ui {directory}     compare trials in the tracking UI"] * has_ui,
            *[f"  {program} report {directory}     HTML report with tables and figures"] * can_report,
            f"  {program} plan SPEC.yaml     estimated cost of your own sweep",
            f"  ls {directory / 'artifacts'}     tables by class and by trial, figures, the resolved spec",
        ]
        console.print(summary(result, console, below=len(after)))
        print(*after, sep="\n")
    if behind is not None:
        raise behind
    return 0 if result.winner is not None else 1


@command(app, "table", "lt-sweep table runs/demo")
def table(
    target: Annotated[
        Path,
        typer.Argument(
            metavar="TARGET", help="Directory of a sweep or a matrix, sweep file, or name of a bundled sweep file."
        ),
    ],
    *,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    as_json: AsJson = False,
) -> int:
    """Print the results table of a sweep or a matrix."""
    from sweeps.cli.matrix import show_results

    return show_results(target, as_json=as_json, markdown=markdown)


@command(app, "report", "lt-sweep report runs/demo")
def report(
    runs: Results,
    *,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Directory to write to. Default for one RUN: its report directory."),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Write an HTML report of sweeps, finished or not."""
    from sweeps.reporting.write import write

    written = write(runs, out)
    verdicts = {one.name: one.verdict for one in written.reports}
    if as_json:
        shown = {
            name: {"headline": one.headline, "params": one.params, "selected": one.selected, "cautions": one.cautions}
            for name, one in verdicts.items()
        }
        print(json.dumps({"page": str(written.page), "sweeps": shown}))
        return 0
    for name, one in verdicts.items():
        print(f"{name}: {one.headline}")
        for text in one.unreadable:
            _log.warning("%s", text)
    print(f"Report: {written.page}, with its tables as Markdown, LaTeX and CSV in the same directory")
    return 0


@command(app, "compare", "lt-sweep compare runs/ir100 runs/ir50")
def compare(runs: Results, *, as_json: AsJson = False) -> int:
    """Compare sweeps; the first is the reference.

    Prints the settings that differ, the differences in accuracy and the classes that gain or lose.
    """
    from sweeps.analysis.comparison import compare
    from sweeps.reporting.result_tables import comparison_sections
    from sweeps.reporting.terminal import sections_shown

    found = compare(*runs)
    if as_json:
        print(found.model_dump_json(by_alias=True))
    else:
        width_is_known = sys.stdout.isatty() or "COLUMNS" in os.environ
        console = Console(width=None if width_is_known else OUTPUT_COLUMNS)
        console.print(sections_shown(comparison_sections(found)))
    return 0


@command(app, "kinds", "lt-sweep kinds")
def kinds(*, as_json: AsJson = False) -> int:
    """List all datasets, backbones, methods and other kinds."""
    from sweeps.config.plugin_groups import plugin_groups

    groups = plugin_groups()
    if as_json:
        fields = {group: {name: _fields(kind) for name, kind in kinds.items()} for group, kinds in groups.items()}
        print(json.dumps(fields))
        return 0
    for group, kinds in groups.items():
        table = Table(title=group, title_justify="left", title_style="bold")
        table.add_column("kind", no_wrap=True)
        table.add_column("description, fields and their defaults", overflow="fold")
        for name, kind in kinds.items():
            summary = (kind.__doc__ or "").strip().splitlines()[0]
            fields_shown = ", ".join(f"{key}={value}" for key, value in _fields(kind).items())
            table.add_row(name, Text(f"{summary}\n{fields_shown}" if fields_shown else summary), end_section=True)
        Console().print(table)
    for group, offered, module in _offered():
        print(
            f"{group}: {offered} is offered by {module}, which is not imported; allow it with --allow-import {module}"
        )
    return 0


def _offered() -> Iterator[tuple[str, str, str]]:
    """Kinds that installed packages offer and that are not allowed: their group, name and package."""
    from lt_train.core.plugins import is_allowed, offered
    from lt_train.core.registry import REGISTRIES

    for group in REGISTRIES:
        for point in offered(group):
            if not is_allowed(point.module):
                yield group, point.name, point.module.partition(".")[0]


def _fields(kind: Any) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        if name == "kind":
            continue
        default = "required" if field.is_required() else field.get_default(call_default_factory=True)
        shown[name] = default.model_dump(mode="json") if hasattr(default, "model_dump") else default
    return shown


@command(app, "schema", "lt-sweep schema > sweep.schema.json")
def schema(
    *, as_json: Annotated[bool, typer.Option("--json", help="No effect: the output is always JSON.")] = False
) -> int:
    """Print the JSON schema of sweep files, for editors."""
    from sweeps.config import spec

    print(json.dumps(spec.schema(), indent=1))
    return 0


@command(app, "ui", "lt-sweep ui runs/demo --port 5000")
def ui(
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="Directory of a sweep, or sweep file.")],
    *,
    port: Annotated[int, typer.Option("--port", metavar="PORT", min=1, max=65535, help="Port on localhost.")] = 5000,
) -> int:
    """Open the tracking UI on the runs of a sweep."""
    from sweeps.config.spec import load_sweep
    from sweeps.store.directory import load_tracking
    from sweeps.store.layout import sweep_directory

    if target.is_dir():
        directory = sweep_directory(target)
        place, tracking = directory.path, load_tracking(directory)
    else:
        spec = load_sweep(target).with_absolute_paths(Path.cwd())
        place, tracking = Path(spec.storage) / spec.name, spec.tracking
    serve: Callable[..., int] | None = getattr(tracking, "serve", None)
    if serve is None:
        raise UserError(f"{target}: tracking is {tracking.kind!r}, which has no user interface")
    try:
        return serve(place.name, place.parent, port)
    except KeyboardInterrupt:
        return 130  # Ctrl-C is the way to stop it
