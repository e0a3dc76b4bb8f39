"""`lt-sweep`: the command line over `sweeps`. Parses, calls one function, and says in an exit code how it went.

Exit codes: 0 done, 1 failed, 2 the user's input, 130 interrupted. What a command does is in `sweeps.cli.local` and
`sweeps.cli.jobs`, which are imported when one runs: `--help` waits for nothing.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lt_train.core.errors import LongtailError, SpecError
from sweeps.experiment.signals import interrupt

__all__ = ["build_parser", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    signal.signal(signal.SIGTERM, interrupt)
    try:
        _prepare(arguments)
        room, _, function = arguments.command.rpartition(".")
        code: int = getattr(importlib.import_module(room), function)(arguments)
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


def _prepare(arguments: argparse.Namespace) -> None:
    """What must be known before any room is imported: secrets, files, and whose kinds there are beside ours."""
    from lt_train.core.registry import ALLOWED_VARIABLE
    from sweeps.cluster.inline_files import unpack
    from sweeps.cluster.secret_files import load_secret_files

    load_secret_files()
    unpack()
    if allowed := getattr(arguments, "allow_import", None):
        os.environ[ALLOWED_VARIABLE] = ",".join(allowed)
        sys.path.append(os.getcwd())  # a package that lies here, last: no file here stands in for a library


def _port(text: str) -> int:
    port = int(text)
    if not 0 < port < 65536:
        raise argparse.ArgumentTypeError(f"must be in 1..65535, got {port}")
    return port


def _rate(text: str) -> float:
    rate = float(text)
    if not 0 < rate < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return rate


def build_parser() -> argparse.ArgumentParser:
    """The parser of `lt-sweep`."""
    parser = argparse.ArgumentParser(
        prog="lt-sweep",
        description="Hyperparameter sweeps over classifier re-training for long-tailed recognition.",
        epilog="exit codes: 0 done, 1 failed, 2 something to mend in the input, 130 interrupted",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_file_commands(commands)
    _add_sweep_commands(commands)
    return parser


def _add_file_commands(commands: Any) -> None:
    """Commands about sweep files and kinds."""
    sub = _command(
        commands, "validate", "check sweep files, all problems at once", "lt-sweep validate sweeps/specs/*.yaml"
    )
    sub.add_argument("spec", nargs="+", type=Path, help="sweep files")
    _add_import(sub)
    _add_json(sub)
    sub = _command(
        commands, "plan", "trials, runs, memory and time, nothing trained", "lt-sweep plan sweeps/specs/demo.yaml"
    )
    sub.add_argument("spec", nargs="+", type=Path, help="sweep files; of several a line each, and the sum")
    sub.add_argument(
        "--tflops",
        metavar="RATE",
        type=_rate,
        help="10^12 operations a second of the device to estimate for (default: 20 for a GPU, else measured here)",
    )
    _add_import(sub)
    _add_json(sub)
    sub = _command(commands, "kinds", "every dataset, backbone, method, sampler ... there is", "lt-sweep kinds")
    _add_import(sub)
    _add_json(sub)
    sub = _command(commands, "schema", "JSON schema of sweep files, for editors", "lt-sweep schema > sweep.schema.json")
    _add_import(sub)
    _add_json(sub, "it is JSON with or without")


def _add_sweep_commands(commands: Any) -> None:
    """Commands about sweeps that run: on this machine, or as jobs of a cluster."""
    sub = _command(
        commands, "run", "run a sweep, or go on with it", "lt-sweep run sweeps/specs/demo.yaml --backend inline"
    )
    sub.add_argument("spec", type=Path, help="sweep file")
    sub.add_argument("--fresh", action="store_true", help="start over; the old results are kept as NAME.previous-N")
    sub.add_argument("--backend", help="train there instead of where the file says, for example inline")
    _add_import(sub)
    _add_json(sub)
    sub = _command(
        commands,
        "submit",
        "run a sweep as a job of a Ray cluster, or go on with it there",
        "lt-sweep submit sweep.yaml --address http://127.0.0.1:8265 --watch",
        "jobs.submit",
    )
    sub.add_argument("spec", type=Path, help="sweep file; it travels, with the files it names by relative paths")
    sub.add_argument("--working-dir", type=Path, help="upload this whole directory instead")
    sub.add_argument("--fresh", action="store_true", help="start over; the old results are kept as NAME.previous-N")
    sub.add_argument("--watch", action="store_true", help="follow its progress until it ends")
    _add_job_options(sub)
    _add_json(sub, "print the job as one JSON document; with --watch its progress too, a line a change")
    sub = _command(
        commands,
        "status",
        "how far a sweep is: trials finished, best so far, rate, time left",
        "lt-sweep status demo --address http://127.0.0.1:8265 --watch",
        "jobs.status",
    )
    _add_target(sub)
    sub.add_argument("--watch", action="store_true", help="until it ends; exit code 0 when it is finished then")
    _add_json(sub, "print one JSON document; with --watch one a line, whenever it changes")
    sub = _command(
        commands,
        "logs",
        "what a sweep's job has printed",
        "lt-sweep logs demo --address http://127.0.0.1:8265 --follow",
        "jobs.logs",
    )
    _add_target(sub, directory=False)
    how = sub.add_mutually_exclusive_group()  # what goes on has no end that a document could have
    how.add_argument("--follow", action="store_true", help="and prints, until it ends")
    _add_json(how)
    sub = _command(
        commands,
        "list",
        "the sweeps of a cluster, or of a storage here",
        "lt-sweep list --address http://127.0.0.1:8265",
        "jobs.list_sweeps",
    )
    _add_address(sub)
    sub.add_argument("--storage", type=Path, help="those of this directory here (default without a cluster: runs)")
    _add_json(sub)
    sub = _command(
        commands,
        "stop",
        "end a sweep in good order; finished runs are kept",
        "lt-sweep stop demo --address http://127.0.0.1:8265",
        "jobs.stop",
    )
    _add_target(sub)
    _add_json(sub)
    sub = _command(commands, "resume", "go on with an interrupted sweep", "lt-sweep resume runs/demo", "jobs.resume")
    _add_target(sub)
    _add_job_options(sub, address=False)
    _add_json(sub)
    sub = _command(
        commands,
        "report",
        "a page with verdict, tables and figures of sweeps, finished or not",
        "lt-sweep report runs/demo",
    )
    sub.add_argument(
        "runs", metavar="RUN", nargs="+", type=Path, help="directory of a sweep or a matrix, or a sweep's result.json"
    )
    sub.add_argument("--out", type=Path, help="directory to write to (default for one RUN: its report/)")
    _add_import(sub)
    _add_json(sub)
    sub = _command(
        commands,
        "compare",
        "sweeps beside the first of them: what differs, by how much, on which classes",
        "lt-sweep compare runs/ir100 runs/ir50",
    )
    sub.add_argument(
        "runs", metavar="RUN", nargs="+", type=Path, help="directory of a sweep or a matrix, or a sweep's result.json"
    )
    _add_import(sub)
    _add_json(sub)
    sub = _command(
        commands, "table", "the table of a sweep's results, or of a matrix's, once more", "lt-sweep table runs/demo"
    )
    sub.add_argument("target", type=Path, help="sweep file, or directory of a sweep or a matrix")
    sub.add_argument("--markdown", action="store_true", help="as Markdown, for a README or a paper's appendix")
    _add_import(sub)
    _add_json(sub)
    sub = _command(commands, "ui", "open MLflow on a sweep's runs table", "lt-sweep ui runs/demo --port 5000")
    sub.add_argument("target", type=Path, help="sweep directory or sweep file")
    sub.add_argument("--port", type=_port, default=5000, help="port on localhost (default 5000)")
    _add_import(sub)


def _command(commands: Any, name: str, summary: str, example: str, function: str | None = None) -> Any:
    sub = commands.add_parser(
        name,
        help=summary,
        description=summary,
        epilog=f"example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub.set_defaults(command=f"sweeps.cli.{function or f'local.{name}'}")
    return sub


def _add_json(sub: Any, text: str = "print one JSON document for a program to read") -> None:
    sub.add_argument("--json", action="store_true", help=text)


def _add_import(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--allow-import",
        metavar="PACKAGE",
        action="append",
        default=[],
        help="kinds of this package are there too; its code runs. Without it no sweep file can make code run",
    )


def _add_address(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--address",
        metavar="URL",
        help="job API of a Ray cluster, such as http://127.0.0.1:8265 (default: RAY_API_SERVER_ADDRESS)",
    )


def _add_target(sub: argparse.ArgumentParser, *, directory: bool = True) -> None:
    what = "a sweep's name or a job's id on the cluster at --address" + ("; without it a sweep directory" * directory)
    sub.add_argument("target", help=what)
    _add_address(sub)


def _add_job_options(sub: argparse.ArgumentParser, *, address: bool = True) -> None:
    """How a driver is run on a cluster."""
    if address:
        _add_address(sub)
    group = sub.add_argument_group("on a cluster")
    group.add_argument("--env", metavar="NAME=VALUE", action="append", default=[], help="of the job; all can read it")
    group.add_argument(
        "--secret-file",
        metavar="NAME=/PATH",
        action="append",
        default=[],
        help="set NAME to what this file on the cluster holds; only the path travels",
    )
    group.add_argument("--ship-code", action="store_true", help="send this machine's lt_train and sweeps along")
    group.add_argument(
        "--image",
        metavar="URI",
        help="container image of driver and workers, with this project in it; podman runs it, whose settings say which "
        "directories of a node are in it: storage must be",
    )
    group.add_argument("--cpus", type=float, help="CPUs of the driver itself (default 0: on the head)")
    group.add_argument("--gpus", type=float, help="GPUs of the driver, for stage 1 and extraction")
    _add_import(sub)


if __name__ == "__main__":
    sys.exit(main())
