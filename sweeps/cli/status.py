"""Progress of a sweep in a local directory, of a matrix, or of a job on a cluster; and following it until it ends.

The progress of a directory is what its driver last wrote, corrected by the owner of the lease. The progress of a job is
what its driver last printed, corrected by the state of the job. Nothing here changes a sweep.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.live import Live

from lt_train.core.errors import LongtailError, UserError
from sweeps.cluster.jobs import ADDRESS_VARIABLE, Cluster, Job
from sweeps.reporting.progress import as_line, as_table, sum_progress
from sweeps.store.layout import existing_sweep, is_matrix, is_sweep, leases, matrix_sweeps, sweep_directory
from sweeps.store.lease import LeaseOwner, lease_owner
from sweeps.store.progress import PROGRESS, Progress, last_progress, read_progress, strip_progress

Ask = Callable[[], tuple[Progress, str]]
"""Returns the current progress, and where the sweep runs."""

POLL_SECONDS = 2.0

UNREACHABLE_SECONDS = 60.0
"""How long following retries while the cluster cannot be reached."""

RAY_LINES = re.compile(r"Running entrypoint for job|Runtime env is setting up")
"""Lines that Ray writes at the start of a job's log."""

_log = logging.getLogger(__name__)


def cluster_of(target: str, address: str | None, *, or_file: bool = False) -> Cluster | None:
    """The cluster that a command refers to; None if `target` is a local sweep or matrix.

    Without `address`, the address in the environment is used unless `target` is a directory of a sweep or a matrix or,
    with `or_file`, a file.
    """
    path = Path(target).expanduser()
    is_local = is_sweep(path) or is_matrix(path) or (or_file and path.is_file())
    if address or (ADDRESS_VARIABLE in os.environ and not is_local):
        return Cluster(address)
    return None


def driver_of(path: Path) -> LeaseOwner | None:
    """The process that runs the sweep of a directory."""
    return lease_owner(leases(path.parent), path.name)


def progress_of(target: str, address: str | None) -> Ask:
    """A function that returns the progress of a sweep, matrix or job.

    Raises:
        UserError: there is no such sweep, matrix or job.
    """
    cluster = cluster_of(target, address)
    if cluster is not None:
        job_id = cluster.find(target).id
        return lambda: job_progress(cluster, cluster.find(job_id))
    directory = Path(target)
    if is_matrix(directory):
        return lambda: matrix_progress(directory)
    sweep_directory(directory)  # raises for any other directory; following does not read the identity again
    return lambda: directory_progress(directory)


def job_progress(cluster: Cluster, job: Job) -> tuple[Progress, str]:
    """The last progress that a job printed, corrected by the state of the job."""
    log = cluster.log(job) if job.state != "pending" else ""
    printed = last_progress(log)
    if printed is None:
        note = _last_line(log) or ("waiting for the cluster to start it" if not job.ended else "")
        printed = Progress(sweep=job.sweep, state="preparing", note=note, started_ms=job.started_ms or 0)
    if printed.sweep != job.sweep and printed.ended and not job.ended:  # a sweep of a matrix; the next one follows
        note = f"{printed.sweep} has {'failed' if printed.state == 'failed' else 'ended'}, starting the next sweep"
        printed = printed.model_copy(update={"state": "running", "note": note, "seconds_left": None})
    where = f"{job.sweep} --address {cluster.address}"
    state, note = printed.state, printed.note
    if job.state == "stopped":
        state, note = "stopped", f"continue with `lt-sweep resume {where}`"
    elif job.state == "succeeded":
        state, note = "finished", f"`lt-sweep logs {where}` prints its results"
        if printed.sweep == job.sweep:  # the results of a matrix are in the directories of its sweeps
            note += f"; the results are in {job.storage}/{job.sweep}/result.json"
        else:
            printed = printed.model_copy(update={"winner": ""})
    elif job.state == "failed":
        last_line = _last_line(job.message) or _last_line(log)
        if printed.at_ms and not printed.ended:  # the driver ran and did not report how it ended
            note = f"its driver was killed ({last_line}); continue with `lt-sweep resume {where}`"
        state, note = "failed", note or last_line
    elif printed.state == "finished":  # the driver is about to print its table
        state = "running"
    printed = printed.model_copy(update={"state": state, "note": note})
    return printed, f"job {job.id} on {cluster.address}, storage {job.storage}"


def directory_progress(directory: Path) -> tuple[Progress, str]:
    """The last progress that the driver of a local sweep wrote, corrected by whether the driver still runs."""
    path = existing_sweep(directory)
    driver = driver_of(path)
    written = read_progress(path)
    if written is None and driver is None:
        return _recorded_progress(path), f"{directory}"
    written = written or Progress(sweep=path.name, state="preparing", note="no progress reported yet")
    written = written.model_copy(update={"sweep": path.name})
    if driver is not None and written.ended and not _is_from(written, driver):
        note = f"the last driver ended: {written.state}"
        written = Progress(sweep=path.name, state="preparing", note=note, driver=driver.who, started_ms=driver.since_ms)
    if driver is None and written.state in ("running", "preparing"):
        note = f"its driver no longer runs; continue with `lt-sweep resume {directory}`"
        written = written.model_copy(update={"state": "stopped", "note": note, "seconds_left": None})
    return written, f"{directory}" + (f", run by {driver.who}" if driver is not None else "")


def _recorded_progress(path: Path) -> Progress:
    """The progress of a sweep without a driver whose `progress.json` cannot be read, from its ledger."""
    from sweeps.store.ledger import LedgerReader

    directory = sweep_directory(path)
    ledger = LedgerReader(path, directory.sweep_id)
    finished = ledger.end is not None and not ledger.damage
    what = "damaged" if (path / PROGRESS).exists() else "missing"
    return Progress(
        sweep=path.name,
        state="finished" if finished else "stopped",
        note=f"{PROGRESS} is {what}; `lt-sweep resume {path}` " + ("writes it again" if finished else "continues"),
        trials_finished=sum(all(key in ledger.runs for key in trial.keys) for trial in ledger.trials.values()),
        runs_finished=len(ledger.runs),
        started_ms=directory.started_ms,
    )


def _is_from(progress: Progress, driver: LeaseOwner) -> bool:
    """Whether `driver` wrote the progress, not an earlier driver: while it prepares, a driver writes none."""
    return progress.driver == driver.who and progress.started_ms >= driver.since_ms


def matrix_progress(directory: Path) -> tuple[Progress, str]:
    """The progress of a matrix, summed over its sweeps."""
    path = directory.expanduser().resolve()
    driver = driver_of(path)
    members = [member if isinstance(member, Progress) else None for member in matrix_members(path)]
    total = sum_progress(path.name, members, led=driver is not None)
    return total, f"{directory}" + (f", run by {driver.who}" if driver is not None else "")


def matrix_members(directory: Path) -> list[Progress | str]:
    """The progress of each sweep of a matrix, or its name if it was not started."""
    members: list[Progress | str] = []
    for name, failure in matrix_sweeps(directory).items():
        place = directory.expanduser().resolve().with_name(name)
        if is_sweep(place):
            members.append(directory_progress(place)[0])
        else:
            members.append(Progress(sweep=name, state="failed", note=failure) if failure else name)
    return members


def follow_progress(ask: Ask, *, as_json: bool) -> int:
    """Show progress until the sweep ends or Ctrl-C, which does not affect the sweep. Returns the exit code."""
    try:
        ended = _show_until_the_end(ask, as_json=as_json)
    except KeyboardInterrupt:
        return stopped_following()
    return 0 if ended.state == "finished" else 1


def stopped_following() -> int:
    """Report that following was interrupted and the sweep was not. Returns the exit code."""
    _log.info("lt-sweep: stopped following; the sweep continues")
    return 130


def _show_until_the_end(ask: Ask, *, as_json: bool) -> Progress:
    """Show a live table on a terminal, and one line per change elsewhere. Returns the last progress."""
    console = Console()
    progress, where = last = ask()
    ask = _with_retries(ask, last)
    if as_json or not console.is_terminal:
        shown: Progress | None = None
        while True:
            if shown is None or progress.model_dump(exclude={"at_ms"}) != shown.model_dump(exclude={"at_ms"}):
                print(progress.model_dump_json() if as_json else as_line(progress), flush=True)
            if progress.ended:
                break
            time.sleep(POLL_SECONDS)
            shown, (progress, where) = progress, ask()
    else:
        with Live(as_table(progress, where=where), console=console, auto_refresh=False) as live:
            while not progress.ended:
                time.sleep(POLL_SECONDS)
                progress, where = ask()
                live.update(as_table(progress, where=where), refresh=True)
    return progress


def _with_retries(ask: Ask, last: tuple[Progress, str]) -> Ask:
    """`ask`, but returning the last progress while the cluster cannot be reached for up to `UNREACHABLE_SECONDS`."""
    since: float | None = None

    def ask_or_last() -> tuple[Progress, str]:
        nonlocal last, since
        try:
            last, since = ask(), None
        except UserError:
            raise
        except LongtailError as error:
            if since is None:
                since = time.monotonic()
                _log.warning("%s; retrying for %.0f s", error, UNREACHABLE_SECONDS)
            elif time.monotonic() - since > UNREACHABLE_SECONDS:
                raise
        return last

    return ask_or_last


def _last_line(text: str) -> str:
    lines = [line.strip() for line in strip_progress(text).splitlines()]
    return next((line for line in reversed(lines) if line and not RAY_LINES.search(line)), "")
