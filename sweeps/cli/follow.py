"""How far a sweep is, wherever it runs: of a directory here, a matrix's, or a job of a cluster; and following it.

A job's progress is what its driver last printed, corrected by what became of the job; a directory's is what the driver
last wrote, corrected by who holds the lease. Changes nothing.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.live import Live

from lt_train.core.errors import LongtailError, UserError
from sweeps.analysis.matrix_progress import as_one
from sweeps.cluster.jobs import ADDRESS_VARIABLE, Cluster, Job
from sweeps.reporting.progress import as_line, as_table
from sweeps.store.layout import IDENTITY, is_matrix, known_members, leases, sweep_directory
from sweeps.store.lease import Holder, holder
from sweeps.store.status import Progress, last_printed, read_progress, without_progress

__all__ = [
    "cluster_of",
    "directory_progress",
    "driver_of",
    "job_progress",
    "matrix_members",
    "not_followed",
    "progress_of",
    "watch",
]

POLL_SECONDS = 2.0

PATIENCE_SECONDS = 60.0
"""How long a watch goes on while the cluster cannot be asked; the sweep does not mind."""

RAYS_OWN = re.compile(r"Running entrypoint for job|Runtime env is setting up")
"""Lines that Ray puts at the head of a job's log."""


def cluster_of(arguments: argparse.Namespace, *, or_file: bool = False) -> Cluster | None:
    """The cluster that is meant; None for this machine's disk, with a sweep's or a matrix's directory, `or_file`."""
    target = Path(getattr(arguments, "target", "")).expanduser()
    here = (target / IDENTITY).exists() or is_matrix(target) or (or_file and target.is_file())
    if arguments.address or (ADDRESS_VARIABLE in os.environ and not here):
        return Cluster(arguments.address)
    return None


def driver_of(path: Path) -> Holder | None:
    """Who runs the sweep of a directory."""
    return holder(leases(path.parent), path.name)


def progress_of(arguments: argparse.Namespace) -> Callable[[], tuple[Progress, str]]:
    """What tells how far the sweep, or matrix, of a command line is, and where it runs, whenever it is called."""
    cluster = cluster_of(arguments)
    if cluster is not None:
        job_id = cluster.find(arguments.target).id
        return lambda: job_progress(cluster, cluster.find(job_id))
    directory = Path(arguments.target)
    if is_matrix(directory):
        return lambda: matrix_progress(directory)
    sweep_directory(directory)  # says what is wrong with a directory that is none
    return lambda: directory_progress(directory)


def job_progress(cluster: Cluster, job: Job) -> tuple[Progress, str]:
    """What the driver last said, corrected by what became of its job."""
    log = cluster.log(job) if job.state != "pending" else ""
    said = last_printed(log)
    if said is None:
        note = _last_words(log) or ("waiting for the cluster to start it" if not job.ended else "")
        said = Progress(sweep=job.sweep, state="preparing", note=note, started_ms=job.started_ms or 0)
    if said.sweep != job.sweep and said.ended and not job.ended:  # one of a matrix's, and the next begins
        note = f"{said.sweep} has {'failed' if said.state == 'failed' else 'ended'}, the next begins"
        said = said.model_copy(update={"state": "running", "note": note, "seconds_left": None})
    where = f"{job.sweep} --address {cluster.address}"
    state, note = said.state, said.note
    if job.state == "stopped":
        state, note = "stopped", f"`lt-sweep resume {where}` goes on"
    elif job.state == "succeeded":
        state, note = "finished", f"`lt-sweep logs {where}` prints its table"
        if said.sweep == job.sweep:  # and it is no matrix, whose results lie beside it
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


def directory_progress(directory: Path) -> tuple[Progress, str]:
    """What the driver of a sweep here last wrote, corrected by whether there still is one."""
    path = sweep_directory(directory).path
    running = driver_of(path)
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


def matrix_progress(directory: Path) -> tuple[Progress, str]:
    """That of a matrix, as if it were one sweep."""
    path = directory.expanduser().resolve()
    running = driver_of(path)
    members = [member if isinstance(member, Progress) else None for member in matrix_members(path)]
    said = as_one(path.name, members, led=running is not None)
    return said, f"{directory}" + (f", run by {running.who}" if running is not None else "")


def matrix_members(directory: Path) -> list[Progress | str]:
    """What the sweeps of a matrix say; one that was not begun by its name."""
    said: list[Progress | str] = []
    for name, failure in known_members(directory).items():
        place = directory.expanduser().resolve().with_name(name)
        if (place / IDENTITY).exists():
            said.append(directory_progress(place)[0])
        else:
            said.append(Progress(sweep=name, state="failed", note=failure) if failure else name)
    return said


def watch(ask: Callable[[], tuple[Progress, str]], *, as_json: bool) -> int:
    """Show progress until the sweep has ended, or nobody wants to see more of it; the sweep does not mind."""
    try:
        ended = _shown_until_it_ends(ask, as_json=as_json)
    except KeyboardInterrupt:
        return not_followed()
    return 0 if ended.state == "finished" else 1


def not_followed() -> int:
    """Say that only the watching has ended; the exit code of that."""
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


def _last_words(text: str) -> str:
    printed = without_progress(text).splitlines()
    lines = [line.strip() for line in printed if line.strip() and not RAYS_OWN.search(line)]
    return lines[-1] if lines else ""
