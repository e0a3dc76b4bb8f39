"""What the commands about running sweeps do: submit, status, logs, list, stop, resume; on a cluster, or on this disk.

With `--address`, or `RAY_API_SERVER_ADDRESS` in its place, a target is a sweep's name or a job's id on that cluster;
else, and wherever it is one, a directory of a sweep or a matrix here. Each function takes the parsed command line and
returns the exit code.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lt_train.core.errors import LongtailError, UserError, first_line
from lt_train.core.registry import ALLOWED_VARIABLE, allowed_package
from sweeps.cli.follow import (
    cluster_of,
    directory_progress,
    driver_of,
    job_progress,
    matrix_members,
    not_followed,
    progress_of,
    watch,
)
from sweeps.cluster.jobs import GRACE_SECONDS, Cluster, Job, JobOptions
from sweeps.cluster.secret_files import checked_environment, secret_files
from sweeps.reporting.progress import as_line, as_table
from sweeps.store.layout import IDENTITY, is_matrix, sweep_directory
from sweeps.store.lease import Holder
from sweeps.store.moments import shown_moment
from sweeps.store.status import Progress, without_progress

__all__ = ["list_sweeps", "logs", "resume", "status", "stop", "submit"]

OF_ONE_JOB = ("RAY_", "LT_SWEEP_JOB")
"""How variables begin that a job has and its resume has anew."""


def submit(arguments: argparse.Namespace) -> int:
    """Send a sweep to a cluster, and follow it if asked to."""
    from sweeps.cluster.upload import bundled  # reads the spec, which takes torch; nothing else here does

    options = _options(arguments)
    cluster = Cluster(arguments.address)
    with bundled(arguments.spec, arguments.working_dir) as bundle:
        job = cluster.submit(
            ["run", bundle.file, *(["--fresh"] if arguments.fresh else [])],
            sweep=bundle.name,
            storage=bundle.storage,
            options=options,
            working_dir=bundle.directory,
            place=bundle.place,
        )
    if arguments.json:
        print(json.dumps({"job": job.id, "sweep": job.sweep, "address": cluster.address}))
    else:
        _print_started(f"submitted as job {job.id}", cluster, job)
    if arguments.watch:
        return watch(lambda: job_progress(cluster, cluster.find(job.id)), as_json=arguments.json)
    return 0


def resume(arguments: argparse.Namespace) -> int:
    """Go on with a sweep from what its storage holds, here or on a cluster."""
    options = _options(arguments)  # what is wrong with them no cluster need be asked
    cluster = cluster_of(arguments, or_file=True)
    if cluster is None:
        from sweeps.cli import local as here

        return here.resume(arguments)
    last = cluster.find(str(arguments.target))
    again = cluster.submit(
        ["resume", f"{last.storage}/{last.sweep}"],
        sweep=last.sweep,
        storage=last.storage,
        options=_as_before(options, last, arguments),
    )
    if arguments.json:
        print(json.dumps({"job": again.id}))
    else:
        _print_started(f"resumed as job {again.id}", cluster, again)
    return 0


def _print_started(how: str, cluster: Cluster, job: Job) -> None:
    where = f"{job.sweep} --address {cluster.address}"
    print(f"{how}; it goes on without this terminal")
    print(f"  lt-sweep status {where} --watch     how far it is")
    print(f"  lt-sweep logs {where} --follow      what it prints")
    print(f"  lt-sweep stop {where}               end it; finished runs are kept", flush=True)


def status(arguments: argparse.Namespace) -> int:
    """How far a sweep is; with --watch until it ends, whose exit code is then the sweep's."""
    ask = progress_of(arguments)
    if arguments.watch:
        return watch(ask, as_json=arguments.json)
    progress, where = ask()
    if arguments.json:
        print(progress.model_dump_json())
        return 0
    Console().print(as_table(progress, where=where))
    if cluster_of(arguments) is None and is_matrix(Path(arguments.target)):
        for member in matrix_members(Path(arguments.target)):
            print(as_line(member) if isinstance(member, Progress) else f"sweep {member}: not begun")
    return 0


def logs(arguments: argparse.Namespace) -> int:
    """What a job's driver has printed, without the lines that are meant for `status`."""
    cluster = Cluster(arguments.address)
    job = cluster.find(arguments.target)
    if not arguments.follow:
        log = without_progress(cluster.log(job))
        told = {"job": job.id, "sweep": job.sweep, "state": job.state, "log": log}
        sys.stdout.write(json.dumps(told) + "\n" if arguments.json else log)
        return 0
    rest = ""
    try:
        for piece in cluster.follow(job):
            *lines, rest = (rest + piece).split("\n")
            sys.stdout.write(without_progress("".join(f"{line}\n" for line in lines)))
            sys.stdout.flush()
    except KeyboardInterrupt:
        return not_followed()
    sys.stdout.write(without_progress(rest))
    return 0 if cluster.find(job.id).state == "succeeded" else 1


def list_sweeps(arguments: argparse.Namespace) -> int:
    """Every sweep of a cluster, or of a storage here, newest first."""
    cluster = None if arguments.storage is not None and not arguments.address else cluster_of(arguments)
    if cluster is not None:
        rows = [
            {
                "sweep": job.sweep,
                "state": job.state,
                "started_ms": job.started_ms,
                "job": job.id,
                "storage": job.storage,
            }
            for job in cluster.jobs()
        ]
    else:
        rows = []
        storage = Path("runs") if arguments.storage is None else arguments.storage.expanduser()
        for directory in sorted(storage.glob(f"*/{IDENTITY}")):
            rows.append(_row(directory.parent))
        rows.sort(key=lambda row: -int(str(row["started_ms"] or 0)))
    if arguments.json:
        print(json.dumps(rows))
        return 0
    if not rows:
        print(f"no sweeps {f'on {cluster.address}' if cluster is not None else f'in {storage}'}")
        return 0
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in rows[0]:
        title = name.removesuffix("_ms")
        narrowest = len("2026-11-25") if title == "started" else len(title)
        # Whole, and an id in one piece: the next command wants it.
        table.add_column(title, overflow="fold", min_width=narrowest, no_wrap=name in ("job", "state"))
    for row in rows:
        table.add_row(*(Text(_shown(name, value)) for name, value in row.items()))
    Console().print(table)
    return 0


def _row(directory: Path) -> dict[str, str | int | None]:
    """A sweep of a storage; one that cannot be read is shown with what is wrong."""
    try:
        progress, where = directory_progress(directory)
    except (LongtailError, OSError) as error:
        return {"sweep": directory.name, "state": "unreadable", "started_ms": None, "where": first_line(error)}
    return {"sweep": progress.sweep, "state": progress.state, "started_ms": progress.started_ms, "where": where}


def stop(arguments: argparse.Namespace) -> int:
    """End a sweep's driver in good order: finished runs are kept, what is open in tracking is closed."""
    cluster = cluster_of(arguments)
    if cluster is not None:
        job = cluster.find(arguments.target)
        if not job.ended:
            told = f"asked job {job.id} to stop; it closes what is open in tracking first"
            print(f"{told}, for {GRACE_SECONDS} s at most", file=sys.stderr, flush=True)
        ended = job if job.ended else cluster.stop(job)
        was = "had ended already" if job.ended else "is stopped"
        print(json.dumps({"job": ended.id, "state": ended.state}) if arguments.json else f"job {ended.id} {was}")
        return 0
    target = Path(arguments.target)
    path = target.expanduser().resolve() if is_matrix(target) else sweep_directory(target).path
    running = driver_of(path)
    if running is None:
        print(json.dumps({"stopped": False}) if arguments.json else f"nobody is running {arguments.target}")
        return 0
    _end(running, lambda: driver_of(path) != running)
    print(json.dumps({"stopped": True}) if arguments.json else f"stopped: {running.who}")
    return 0


def _end(running: Holder, gone: Callable[[], bool], timeout: float = 120.0) -> None:
    if not running.is_here():
        raise UserError(
            f"the driver is {running.who}, on another machine; stop it there, or its Ray job with --address"
        )
    try:
        os.kill(running.process, signal.SIGTERM)
    except ProcessLookupError:
        pass  # it has ended just now
    except PermissionError:
        raise UserError(f"the driver is {running.who}; that user alone may stop it") from None
    deadline = time.monotonic() + timeout
    while not gone():
        if time.monotonic() > deadline:
            raise LongtailError(f"{running.who} has not ended {timeout:.0f} s after it was asked to")
        time.sleep(0.2)


def _options(arguments: argparse.Namespace) -> JobOptions:
    if arguments.image is not None and arguments.ship_code:
        raise UserError(
            "--image and --ship-code do not go together: Ray sends no files into a container; build lt_train and "
            "sweeps into the image"
        )
    environment = checked_environment(arguments.env) | secret_files(arguments.secret_file)
    if arguments.allow_import:  # workers read it too, so it is no flag of the driver's; a resume keeps it
        environment[ALLOWED_VARIABLE] = ",".join(arguments.allow_import)
    # The whole of a package, where a part of one is named.
    packages = [allowed_package(name.partition(".")[0]) for name in arguments.allow_import if arguments.ship_code]
    return JobOptions(
        environment=environment,
        ship_code=arguments.ship_code,
        packages=packages,
        image=arguments.image,
        cpus=arguments.cpus or 0,
        gpus=arguments.gpus or 0,
    )


def _as_before(options: JobOptions, last: Job, arguments: argparse.Namespace) -> JobOptions:
    """`options`, with what was not said this time as the last job had it."""
    before = last.options
    kept = {name: value for name, value in before.environment.items() if not name.startswith(OF_ONE_JOB)}
    packages = [name for name in kept.get(ALLOWED_VARIABLE, "").split(",") if name]
    said_again = options.ship_code and (arguments.allow_import or not packages)
    if before.ship_code and options.image is None and not said_again:
        flags = " ".join(["--ship-code", *(f"--allow-import {name}" for name in packages)])
        raise UserError(
            f"job {last.id} ran code that was sent along from another command; give {flags} again, where that code is"
        )
    return replace(
        options,
        environment={**kept, **options.environment},
        image=options.image or (None if options.ship_code else before.image),
        cpus=before.cpus if arguments.cpus is None else options.cpus,
        gpus=before.gpus if arguments.gpus is None else options.gpus,
    )


def _shown(name: str, value: object) -> str:
    if name == "started_ms":
        return shown_moment(value) if isinstance(value, int) else ""
    return str(value)
