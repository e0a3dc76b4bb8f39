"""What the commands about running sweeps do: submit, status, logs, list, stop, resume; on a cluster, or on this disk.

With `--address`, or `RAY_API_SERVER_ADDRESS` in its place, a target is a sweep's name or a job's id on that cluster;
else, and wherever it is one, a directory of a sweep or a family here. Each function takes the parsed command line and
returns the exit code.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lt_train.errors import LongtailError, UserError, first_line
from lt_train.registry import ALLOWED_VARIABLE, allowed_package
from sweeps.family_progress import as_one
from sweeps.jobs import ADDRESS_VARIABLE, GRACE_SECONDS, Cluster, Job, JobOptions
from sweeps.layout import IDENTITY, is_family, known_members, leases, sweep_directory
from sweeps.lease import Holder, holder
from sweeps.moments import shown_moment
from sweeps.reporting.progress import as_line, as_table
from sweeps.secret_files import checked_environment, secret_files
from sweeps.status import Progress, last_printed, read_progress, without_progress

__all__ = ["list_sweeps", "logs", "resume", "status", "stop", "submit"]

POLL_SECONDS = 2.0

PATIENCE_SECONDS = 60.0
"""How long a watch goes on while the cluster cannot be asked; the sweep does not mind."""

RAYS_OWN = re.compile(r"Running entrypoint for job|Runtime env is setting up")
"""Lines that Ray puts at the head of a job's log."""

OF_ONE_JOB = ("RAY_", "LT_SWEEP_JOB")
"""How variables begin that a job has and its resume has anew."""


def submit(arguments: argparse.Namespace) -> int:
    """Send a sweep to a cluster, and follow it if asked to."""
    from sweeps.bundle import bundled  # reads the spec, which takes torch; nothing else here does

    cluster = Cluster(arguments.address)
    with bundled(arguments.spec, arguments.working_dir) as bundle:
        job = cluster.submit(
            ["run", bundle.file, *(["--fresh"] if arguments.fresh else [])],
            sweep=bundle.name,
            storage=bundle.storage,
            options=_options(arguments),
            working_dir=bundle.directory,
            place=bundle.place,
        )
    if arguments.json:
        print(json.dumps({"job": job.id, "sweep": job.sweep, "address": cluster.address}))
    else:
        _print_started(f"submitted as job {job.id}", cluster, job)
    if arguments.watch:
        return _watch(lambda: _job_progress(cluster, cluster.find(job.id)), as_json=arguments.json)
    return 0


def resume(arguments: argparse.Namespace) -> int:
    """Go on with a sweep from what its storage holds, here or on a cluster."""
    cluster = _cluster(arguments, or_file=True)
    if cluster is None:
        from sweeps import commands

        return commands.resume(arguments)
    options = _options(arguments)
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
    ask = _progress_of(arguments)
    if arguments.watch:
        return _watch(ask, as_json=arguments.json)
    progress, where = ask()
    if arguments.json:
        print(progress.model_dump_json())
        return 0
    Console().print(as_table(progress, where=where))
    if _cluster(arguments) is None and is_family(Path(arguments.target)):
        for member in _members(Path(arguments.target)):
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
        return _not_followed()
    sys.stdout.write(without_progress(rest))
    return 0 if cluster.find(job.id).state == "succeeded" else 1


def list_sweeps(arguments: argparse.Namespace) -> int:
    """Every sweep of a cluster, or of a storage here, newest first."""
    cluster = None if arguments.storage is not None and not arguments.address else _cluster(arguments)
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
        progress, where = _directory_progress(directory)
    except (LongtailError, OSError) as error:
        return {"sweep": directory.name, "state": "unreadable", "started_ms": None, "where": first_line(error)}
    return {"sweep": progress.sweep, "state": progress.state, "started_ms": progress.started_ms, "where": where}


def stop(arguments: argparse.Namespace) -> int:
    """End a sweep's driver in good order: finished runs are kept, what is open in tracking is closed."""
    cluster = _cluster(arguments)
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
    path = target.expanduser().resolve() if is_family(target) else sweep_directory(target).path
    running = _driver(path)
    if running is None:
        print(json.dumps({"stopped": False}) if arguments.json else f"nobody is running {arguments.target}")
        return 0
    _end(running, lambda: _driver(path) != running)
    print(json.dumps({"stopped": True}) if arguments.json else f"stopped: {running.who}")
    return 0


def _cluster(arguments: argparse.Namespace, *, or_file: bool = False) -> Cluster | None:
    """The cluster that is meant; None for this machine's disk, with a sweep's or a family's directory, `or_file`."""
    target = Path(getattr(arguments, "target", "")).expanduser()
    here = (target / IDENTITY).exists() or is_family(target) or (or_file and target.is_file())
    if arguments.address or (ADDRESS_VARIABLE in os.environ and not here):
        return Cluster(arguments.address)
    return None


def _driver(path: Path) -> Holder | None:
    """Who runs the sweep of a directory."""
    return holder(leases(path.parent), path.name)


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


def _progress_of(arguments: argparse.Namespace) -> Callable[[], tuple[Progress, str]]:
    cluster = _cluster(arguments)
    if cluster is not None:
        job_id = cluster.find(arguments.target).id
        return lambda: _job_progress(cluster, cluster.find(job_id))
    directory = Path(arguments.target)
    if is_family(directory):
        return lambda: _family_progress(directory)
    sweep_directory(directory)  # says what is wrong with a directory that is none
    return lambda: _directory_progress(directory)


def _job_progress(cluster: Cluster, job: Job) -> tuple[Progress, str]:
    """What the driver last said, corrected by what became of its job."""
    log = cluster.log(job) if job.state != "pending" else ""
    said = last_printed(log)
    if said is None:
        note = _last_words(log) or ("waiting for the cluster to start it" if not job.ended else "")
        said = Progress(sweep=job.sweep, state="preparing", note=note, started_ms=job.started_ms or 0)
    if said.sweep != job.sweep and said.ended and not job.ended:  # one of a family's, and the next begins
        note = f"{said.sweep} has {'failed' if said.state == 'failed' else 'ended'}, the next begins"
        said = said.model_copy(update={"state": "running", "note": note, "seconds_left": None})
    where = f"{job.sweep} --address {cluster.address}"
    state, note = said.state, said.note
    if job.state == "stopped":
        state, note = "stopped", f"`lt-sweep resume {where}` goes on"
    elif job.state == "succeeded":
        state, note = "finished", f"`lt-sweep logs {where}` prints its table"
        if said.sweep == job.sweep:  # and it is no family, whose results lie beside it
            note += f"; {job.storage}/{job.sweep}/result.json holds all of it"
        else:
            said = said.model_copy(update={"winner": ""})
    elif job.state == "failed":
        last_words = _last_words(job.message) or _last_words(log)
        if said.at_ms and not said.ended:  # it ran, and never said how it ended
            note = f"its driver was ended by force ({last_words}); `lt-sweep resume {where}` goes on"
        state, note = "failed", note or last_words
    elif said.state == "finished":  # and about to print its table
        state = "running"
    said = said.model_copy(update={"state": state, "note": note})
    return said, f"job {job.id} on {cluster.address}, storage {job.storage}"


def _directory_progress(directory: Path) -> tuple[Progress, str]:
    path = sweep_directory(directory).path
    running = _driver(path)
    said = read_progress(path) or Progress(sweep=path.name, state="preparing", note="it has not said anything yet")
    said = said.model_copy(update={"sweep": path.name})
    if running is not None and said.ended and not _is_of(said, running):
        note = f"the last driver ended: {said.state}"
        said = Progress(sweep=path.name, state="preparing", note=note, driver=running.who, started_ms=running.since_ms)
    if running is None and said.state in ("running", "preparing"):
        note = f"its driver is gone; `lt-sweep resume {directory}` goes on"
        said = said.model_copy(update={"state": "stopped", "note": note, "seconds_left": None})
    return said, f"{directory}" + (f", run by {running.who}" if running is not None else "")


def _is_of(said: Progress, running: Holder) -> bool:
    """Whether this driver said it, and not one before: while it prepares it has nowhere to write."""
    return said.driver == running.who and said.started_ms >= running.since_ms


def _family_progress(directory: Path) -> tuple[Progress, str]:
    """That of a family, as if it were one sweep."""
    path = directory.expanduser().resolve()
    running = _driver(path)
    members = [member if isinstance(member, Progress) else None for member in _members(path)]
    said = as_one(path.name, members, led=running is not None)
    return said, f"{directory}" + (f", run by {running.who}" if running is not None else "")


def _members(directory: Path) -> list[Progress | str]:
    """What the sweeps of a family say; one that was not begun by its name."""
    said: list[Progress | str] = []
    for name, failure in known_members(directory).items():
        place = directory.expanduser().resolve().with_name(name)
        if (place / IDENTITY).exists():
            said.append(_directory_progress(place)[0])
        else:
            said.append(Progress(sweep=name, state="failed", note=failure) if failure else name)
    return said


def _watch(ask: Callable[[], tuple[Progress, str]], *, as_json: bool) -> int:
    """Show progress until the sweep has ended, or nobody wants to see more of it; the sweep does not mind."""
    try:
        ended = _shown_until_it_ends(ask, as_json=as_json)
    except KeyboardInterrupt:
        return _not_followed()
    return 0 if ended.state == "finished" else 1


def _not_followed() -> int:
    print("lt-sweep: no longer followed; the sweep goes on", file=sys.stderr)
    return 130


def _shown_until_it_ends(ask: Callable[[], tuple[Progress, str]], *, as_json: bool) -> Progress:
    """A table that changes on a terminal, a line at every change elsewhere; returns the last."""
    console = Console()
    progress, where = last = ask()
    ask = _patient(ask, last)
    if as_json or not console.is_terminal:
        seen: Progress | None = None
        while True:
            if seen is None or progress.model_dump(exclude={"at_ms"}) != seen.model_dump(exclude={"at_ms"}):
                print(progress.model_dump_json() if as_json else as_line(progress), flush=True)
            if progress.ended:
                break
            time.sleep(POLL_SECONDS)
            seen, (progress, where) = progress, ask()
    else:
        with Live(as_table(progress, where=where), console=console, auto_refresh=False) as live:
            while not progress.ended:
                time.sleep(POLL_SECONDS)
                progress, where = ask()
                live.update(as_table(progress, where=where), refresh=True)
    return progress


def _patient(ask: Callable[[], tuple[Progress, str]], last: tuple[Progress, str]) -> Callable[[], tuple[Progress, str]]:
    """`ask`, but while a cluster that has answered cannot be reached for a moment its last answer stands."""
    since: float | None = None

    def again() -> tuple[Progress, str]:
        nonlocal last, since
        try:
            last, since = ask(), None
        except UserError:
            raise
        except LongtailError as error:
            if since is None:
                since = time.monotonic()
                print(f"lt-sweep: {error}; asking again for {PATIENCE_SECONDS:.0f} s", file=sys.stderr, flush=True)
            elif time.monotonic() - since > PATIENCE_SECONDS:
                raise
        return last

    return again


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


def _last_words(text: str) -> str:
    printed = without_progress(text).splitlines()
    lines = [line.strip() for line in printed if line.strip() and not RAYS_OWN.search(line)]
    return lines[-1] if lines else ""


def _shown(name: str, value: object) -> str:
    if name == "started_ms":
        return shown_moment(value) if isinstance(value, int) else ""
    return str(value)
