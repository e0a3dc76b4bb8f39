"""`lt-sweep`: the command line over `sweeps`. Parses, calls one function, prints.

Exit codes: 0 done, 1 failed, 2 the user's input, 130 interrupted. Results go to standard output, progress and trouble
to standard error. Heavy rooms are imported by the command that needs them, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from lt_train.errors import LongtailError, SpecError, UserError

if TYPE_CHECKING:
    from sweeps.result import Result

__all__ = ["build_parser", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code: int = arguments.command(arguments)
        sys.stdout.flush()  # here, where a reader that is gone is still handled
        return code
    except SpecError as error:
        print(*error.problems, sep="\n", file=sys.stderr)
        return error.exit_code
    except LongtailError as error:
        print(f"lt-sweep: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("lt-sweep: interrupted; `lt-sweep resume` goes on from the last finished pack", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output is gone (`| head`): nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _validate(arguments: argparse.Namespace) -> int:
    from sweeps.spec import load_sweep

    problems: list[str] = []
    for file in arguments.spec:
        try:
            load_sweep(file)
        except SpecError as error:
            problems += error.problems
    if arguments.json:
        print(json.dumps({"files": len(arguments.spec), "problems": problems}))
    else:
        print(*problems, sep="\n", end="\n" if problems else "", file=sys.stderr)
        if not problems:
            print(f"{len(arguments.spec)} sweep file{'s' * (len(arguments.spec) > 1)} valid")
    return 2 if problems else 0


def _plan(arguments: argparse.Namespace) -> int:
    from sweeps.plan import plan
    from sweeps.sizes import shown_size
    from sweeps.spec import load_sweep

    spec = load_sweep(arguments.spec)
    planned = plan(spec)
    if arguments.json:
        print(json.dumps(planned.document()))
        return 0
    rows = [
        ("trials", f"{planned.trials} in {planned.generations} generations of {spec.search.generation}"),
        (
            "runs",
            f"{planned.runs}: search {planned.search_runs} ({planned.seeds} seeds), "
            f"baselines {planned.baseline_runs}, finalists {planned.finalist_runs}",
        ),
        (
            "packs",
            f"{planned.packs}, {2 * planned.packs_per_generation} can train at once (two generations); "
            f"{planned.pack_sizes}",
        ),
        ("data", f"{planned.train_images} train, {planned.val_images} val, {planned.test_images} test images"),
        ("head", f"{planned.classes} classes x {planned.feature_dim} features"),
        ("bank", f"{shown_size(planned.bank_bytes)}, {planned.views} training view{'s' * (planned.views > 1)}"),
        ("memory a pack", f"{shown_size(planned.pack_bytes)} beside the bank, for the largest"),
        (
            "re-training",
            f"about {_seconds(planned.train_seconds)} on one worker of this machine "
            f"({spec.resources.cpus_per_pack} CPU a pack); stage 1 and features come before it",
        ),
        ("result", f"{Path(spec.storage).expanduser() / spec.name / 'result.json'}"),
    ]
    if planned.epochs_saved:
        saved = f"{spec.search.scheduler.kind} saves {planned.epochs_saved:.0%} of the search's epochs"
        rows.insert(3, ("scheduler", saved))
    if len(planned.methods) > 1:
        rows.insert(0, ("methods", ", ".join(f"{name} ({trials})" for name, trials in planned.methods.items())))
    table = Table(title=f"plan of {spec.name}", title_justify="left", show_header=False)
    for name, value in rows:
        table.add_row(name, value)
    Console().print(table)
    for note in planned.notes:
        print(f"note: {note}", file=sys.stderr)
    return 0


def _run(arguments: argparse.Namespace) -> int:
    from sweeps.directory import running_spec
    from sweeps.driver import run
    from sweeps.spec import load_sweep

    spec = load_sweep(arguments.spec)
    if arguments.backend:
        spec = running_spec(spec, arguments.backend)
    return _show(lambda: run(spec, fresh=arguments.fresh), Path(spec.storage).expanduser() / spec.name, arguments.json)


def _resume(arguments: argparse.Namespace) -> int:
    from sweeps.driver import resume

    return _show(lambda: resume(arguments.directory), arguments.directory, arguments.json)


def _show(sweep: Callable[[], Result], directory: Path, as_json: bool) -> int:
    """Run a sweep and print its comparison, also when only the tracking server stayed away."""
    from sweeps.driver import TrackingBehind
    from sweeps.report.terminal import comparison

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
        console.print(comparison(result))
        print(f"\n{directory / 'result.json'} holds all of it; next:")
        # As it was typed: after `make demo` the program is not on the PATH.
        program = sys.argv[0] if Path(sys.argv[0]).name == "lt-sweep" else "lt-sweep"
        print(f"  {program} ui {directory}     compare trials in MLflow")
        print(f"  {program} plan SPEC.yaml     what a sweep of your own would cost")
        print(f"  ls {directory / 'artifacts'}     tables by class and by trial, figures, the resolved spec")
    if behind is not None:
        raise behind
    return 0 if result.winner is not None else 1


def _kinds(arguments: argparse.Namespace) -> int:
    from sweeps.rooms import rooms

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
            table.add_row(name, f"{summary}\n{fields}" if fields else summary, end_section=True)
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


def _schema(arguments: argparse.Namespace) -> int:
    from sweeps.spec import schema

    print(json.dumps(schema(), indent=1))
    return 0


def _ui(arguments: argparse.Namespace) -> int:
    from sweeps.directory import load_spec
    from sweeps.spec import load_sweep

    target: Path = arguments.target
    spec = load_spec(target) if target.is_dir() else load_sweep(target).anchored(Path.cwd())
    serve: Callable[..., int] | None = getattr(spec.tracking, "serve", None)
    if serve is None:
        raise UserError(f"{target}: tracking is {spec.tracking.kind!r}, which has no user interface")
    try:
        return serve(spec.name, Path(spec.storage), arguments.port)
    except KeyboardInterrupt:
        return 130  # how one stops it


def _port(text: str) -> int:
    port = int(text)
    if not 0 < port < 65536:
        raise argparse.ArgumentTypeError(f"must be in 1..65535, got {port}")
    return port


def _seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.2g} minutes" if seconds < 7200 else f"{seconds / 3600:.2g} hours"


def build_parser() -> argparse.ArgumentParser:
    """The parser of `lt-sweep`."""
    parser = argparse.ArgumentParser(
        prog="lt-sweep",
        description="Hyperparameter sweeps over classifier re-training for long-tailed recognition.",
        epilog="exit codes: 0 done, 1 failed, 2 something to mend in the input, 130 interrupted",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(
        name: str, function: Callable[[argparse.Namespace], int], summary: str, example: str
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=f"example: {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(command=function)
        return sub

    def add_json(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--json", action="store_true", help="print JSON for a program to read")

    sub = command(
        "validate", _validate, "check sweep files, all problems at once", "lt-sweep validate sweeps/specs/*.yaml"
    )
    sub.add_argument("spec", nargs="+", type=Path, help="sweep files")
    add_json(sub)
    sub = command(
        "plan", _plan, "trials, runs, memory and time, nothing trained", "lt-sweep plan sweeps/specs/demo.yaml"
    )
    sub.add_argument("spec", type=Path, help="sweep file")
    add_json(sub)
    sub = command("run", _run, "run a sweep, or go on with it", "lt-sweep run sweeps/specs/demo.yaml --backend inline")
    sub.add_argument("spec", type=Path, help="sweep file")
    sub.add_argument("--fresh", action="store_true", help="start over; the old results are kept as NAME.previous-N")
    sub.add_argument("--backend", help="train there instead of where the file says, for example inline")
    add_json(sub)
    sub = command("resume", _resume, "go on with an interrupted sweep", "lt-sweep resume runs/demo")
    sub.add_argument("directory", type=Path, help="sweep directory")
    add_json(sub)
    sub = command("kinds", _kinds, "every dataset, backbone, method, sampler ... there is", "lt-sweep kinds")
    add_json(sub)
    command("schema", _schema, "JSON schema of sweep files, for editors", "lt-sweep schema > sweep.schema.json")
    sub = command("ui", _ui, "open MLflow on a sweep's runs table", "lt-sweep ui runs/demo --port 5000")
    sub.add_argument("target", type=Path, help="sweep directory or sweep file")
    sub.add_argument("--port", type=_port, default=5000, help="port on localhost (default 5000)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
