"""The commands about running sweeps: submit, resume, status, logs, list and stop. Each returns its exit code.

With `--address`, or an address in `RAY_API_SERVER_ADDRESS`, a target is the name of a sweep or the id of a job on that
cluster. Otherwise, and whenever such a directory exists, it is the local directory of a sweep or a matrix.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lt_train.cli.program import AsJson, command
from lt_train.core.errors import LongtailError, UserError, first_line
from lt_train.core.plugins import ALLOWED_VARIABLE, module_path
from lt_train.core.text import format_time
from sweeps.cli.options import Address, Cpus, Env, Fresh, Gpus, Image, SecretFile, ShipCode, Target, app
from sweeps.cli.status import (
    cluster_of,
    directory_progress,
    driver_of,
    follow_progress,
    job_progress,
    matrix_members,
    progress_of,
    stopped_following,
)
from sweeps.cluster.environment import checked_environment, secret_files
from sweeps.cluster.jobs import GRACE_SECONDS, Cluster, Job, JobOptions
from sweeps.reporting.progress import as_line, as_table
from sweeps.store.layout import existing_sweep, is_matrix, is_sweep, sweep_directory
from sweeps.store.lease import LeaseOwner
from sweeps.store.progress import Progress, strip_progress

PER_JOB_PREFIXES = ("RAY_", "LT_SWEEP_JOB")
"""Prefixes of environment variables that belong to one job and are not passed on to the job that resumes it."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class JobFlags:
    """How a driver is run on a cluster, as given on the command line.

    Attributes:
        env: `NAME=VALUE` pairs.
        secret_file: `NAME=/PATH` pairs.
        ship_code: upload this machine's `lt_train` and `sweeps`.
        image: container image of driver and workers.
        cpus, gpus: of the driver; None if not given.
        allow_import: modules and packages whose components may be used.
    """

    env: Sequence[str]
    secret_file: Sequence[str]
    ship_code: bool
    image: str | None
    cpus: float | None
    gpus: float | None
    allow_import: Sequence[str]

    def options(self) -> JobOptions:
        """The options of a new job.

        Raises:
            UserError: the flags contradict each other, or one has an invalid value.
        """
        if self.image is not None and self.ship_code:
            raise UserError(
                "--image and --ship-code cannot be used together: Ray sends no files into a container; build lt_train "
                "and sweeps into the image"
            )
        environment = checked_environment(list(self.env)) | secret_files(list(self.secret_file))
        if self.allow_import:  # a variable and not a flag of the driver, because workers and a resume need it too
            environment[ALLOWED_VARIABLE] = ",".join(self.allow_import)
        # For a subpackage, the whole top-level package is uploaded.
        packages = [module_path(name) for name in self.allow_import if self.ship_code]
        return JobOptions(
            environment=environment,
            ship_code=self.ship_code,
            packages=packages,
            image=self.image,
            cpus=self.cpus or 0,
            gpus=self.gpus or 0,
        )

    def options_after(self, last: Job) -> JobOptions:
        """The options of a job that resumes `last`: its options, except for those given here.

        Raises:
            UserError: the code that `last` ran was uploaded, and is not uploaded again.
        """
        options, before = self.options(), last.options
        kept = {name: value for name, value in before.environment.items() if not name.startswith(PER_JOB_PREFIXES)}
        packages = [name for name in kept.get(ALLOWED_VARIABLE, "").split(",") if name]
        ships_same = options.ship_code and (self.allow_import or not packages)
        if before.ship_code and options.image is None and not ships_same:
            flags = " ".join(["--ship-code", *(f"--allow-import {name}" for name in packages)])
            raise UserError(
                f"job {last.id} ran code shipped by an earlier command; give {flags} again, on a machine that has that "
                "code"
            )
        return replace(
            options,
            environment={**kept, **options.environment},
            image=options.image or (None if options.ship_code else before.image),
            cpus=before.cpus if self.cpus is None else options.cpus,
            gpus=before.gpus if self.gpus is None else options.gpus,
        )


@command(app, "submit", "lt-sweep submit sweep.yaml --address http://127.0.0.1:8265 --watch")
def submit(
    spec: Annotated[
        Path,
        typer.Argument(metavar="SPEC", help="Sweep file. It is uploaded with the files it names by relative paths."),
    ],
    *,
    working_dir: Annotated[
        Path | None, typer.Option("--working-dir", metavar="DIR", help="Upload this directory instead.")
    ] = None,
    fresh: Fresh = False,
    watch: Annotated[bool, typer.Option("--watch", help="Follow the progress until the sweep ends.")] = False,
    address: Address = None,
    env: Env = None,
    secret_file: SecretFile = None,
    ship_code: ShipCode = False,
    image: Image = None,
    cpus: Cpus = None,
    gpus: Gpus = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print one JSON document; with --watch, also one per line whenever progress changes."
        ),
    ] = False,
    allow_import: Sequence[str] = (),
) -> int:
    """Run or resume a sweep as a job of a Ray cluster."""
    from sweeps.cluster.upload import prepare_upload

    flags = JobFlags(env or (), secret_file or (), ship_code, image, cpus, gpus, allow_import)
    options = flags.options()
    cluster = Cluster(address)
    with prepare_upload(spec, working_dir) as bundle:
        job = cluster.submit(
            ["run", bundle.file, *(["--fresh"] if fresh else [])],
            sweep=bundle.name,
            storage=bundle.storage,
            options=options,
            working_dir=bundle.directory,
            place=bundle.place,
        )
    if as_json:
        print(json.dumps({"job": job.id, "sweep": job.sweep, "address": cluster.address}))
    else:
        _print_started(f"submitted as job {job.id}", cluster, job)
    if watch:
        return follow_progress(lambda: job_progress(cluster, cluster.find(job.id)), as_json=as_json)
    return 0


@command(app, "resume", "lt-sweep resume runs/demo")
def resume(
    target: Target,
    *,
    address: Address = None,
    env: Env = None,
    secret_file: SecretFile = None,
    ship_code: ShipCode = False,
    image: Image = None,
    cpus: Cpus = None,
    gpus: Gpus = None,
    as_json: AsJson = False,
    allow_import: Sequence[str] = (),
) -> int:
    """Resume an interrupted sweep.

    TARGET may also be the sweep file of a matrix. A job on a cluster is resumed with the options it was submitted with,
    except for those given here.
    """
    flags = JobFlags(env or (), secret_file or (), ship_code, image, cpus, gpus, allow_import)
    flags.options()  # checks them before the cluster is contacted
    cluster = cluster_of(target, address, or_file=True)
    if cluster is None:
        from sweeps.cli.local import resume_here

        return resume_here(Path(target), as_json=as_json)
    last = cluster.find(target)
    job = cluster.submit(
        ["resume", f"{last.storage}/{last.sweep}"],
        sweep=last.sweep,
        storage=last.storage,
        options=flags.options_after(last),
    )
    if as_json:
        print(json.dumps({"job": job.id}))
    else:
        _print_started(f"resumed as job {job.id}", cluster, job)
    return 0


def _print_started(how: str, cluster: Cluster, job: Job) -> None:
    where = f"{job.sweep} --address {cluster.address}"
    print(f"{how}; the job does not need this terminal")
    print(f"  lt-sweep status {where} --watch     follow its progress")
    print(f"  lt-sweep logs {where} --follow      follow its output")
    print(f"  lt-sweep stop {where}               stop it; finished runs are kept", flush=True)


@command(app, "status", "lt-sweep status demo --address http://127.0.0.1:8265 --watch", imports=False)
def status(
    target: Target,
    *,
    address: Address = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Follow until the sweep ends. Exits with 0 if it has finished.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document; with --watch, one per line on every change.")
    ] = False,
) -> int:
    """Print the progress of a sweep.

    Shows finished trials, the best trial so far, the rate and the time left.
    """
    ask = progress_of(target, address)
    if watch:
        return follow_progress(ask, as_json=as_json)
    progress, where = ask()
    if as_json:
        print(progress.model_dump_json())
        return 0
    Console().print(as_table(progress, where=where))
    if cluster_of(target, address) is None and is_matrix(Path(target)):
        for member in matrix_members(Path(target)):
            print(as_line(member) if isinstance(member, Progress) else f"sweep {member}: not started")
    return 0


@command(app, "logs", "lt-sweep logs demo --address http://127.0.0.1:8265 --follow", imports=False)
def logs(
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Name of a sweep, or id of a job, on the cluster.")],
    *,
    address: Address = None,
    follow: Annotated[bool, typer.Option("--follow", help="Print new lines until the job ends.")] = False,
    as_json: AsJson = False,
) -> int:
    """Print the output of the job of a sweep."""
    if follow and as_json:
        raise typer.BadParameter("--follow and --json cannot be used together")
    cluster = Cluster(address)
    job = cluster.find(target)
    if not follow:
        log = strip_progress(cluster.log(job))
        document = {"job": job.id, "sweep": job.sweep, "state": job.state, "log": log}
        sys.stdout.write(json.dumps(document) + "\n" if as_json else log)
        return 0
    rest = ""
    try:
        for piece in cluster.follow(job):
            *lines, rest = (rest + piece).split("\n")
            sys.stdout.write(strip_progress("".join(f"{line}\n" for line in lines)))
            sys.stdout.flush()
    except KeyboardInterrupt:
        return stopped_following()
    sys.stdout.write(strip_progress(rest))
    return 0 if cluster.find(job.id).state == "succeeded" else 1


@command(app, "list", "lt-sweep list --address http://127.0.0.1:8265", imports=False)
def list_sweeps(
    *,
    address: Address = None,
    storage: Annotated[
        Path | None,
        typer.Option("--storage", metavar="DIR", help="List this directory. Default without a cluster: runs."),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """List the sweeps of a cluster or a storage directory."""
    cluster = None if storage is not None and not address else cluster_of("", address)
    directory = Path("runs") if storage is None else storage.expanduser()
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
        rows = [_row(place) for place in sorted(directory.glob("*")) if is_sweep(place)]
        rows.sort(key=lambda row: -int(str(row["started_ms"] or 0)))
    if as_json:
        print(json.dumps(rows))
        return 0
    if not rows:
        print(f"no sweeps {f'on {cluster.address}' if cluster is not None else f'in {directory}'}")
        return 0
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in rows[0]:
        title = name.removesuffix("_ms")
        min_width = len("2026-11-25") if title == "started" else len(title)
        # Ids are not wrapped, so that they can be copied into the next command.
        table.add_column(title, overflow="fold", min_width=min_width, no_wrap=name in ("job", "state"))
    for row in rows:
        table.add_row(*(Text(_cell(name, value)) for name, value in row.items()))
    Console().print(table)
    return 0


def _row(directory: Path) -> dict[str, str | int | None]:
    """A sweep of a storage directory; for one that cannot be read, the reason."""
    try:
        sweep = sweep_directory(directory)
        progress, where = directory_progress(sweep.path)
    except (LongtailError, OSError) as error:
        return {"sweep": directory.name, "state": "unreadable", "started_ms": None, "where": first_line(error)}
    return {"sweep": progress.sweep, "state": progress.state, "started_ms": sweep.started_ms, "where": where}


def _cell(name: str, value: object) -> str:
    if name == "started_ms":
        return format_time(value) if isinstance(value, int) else ""
    return str(value)


@command(app, "stop", "lt-sweep stop demo --address http://127.0.0.1:8265", imports=False)
def stop(target: Target, *, address: Address = None, as_json: AsJson = False) -> int:
    """Stop a sweep. Finished runs are kept."""
    cluster = cluster_of(target, address)
    if cluster is not None:
        job = cluster.find(target)
        if not job.ended:
            _log.info("stopping job %s; it first closes its runs in the tracker, within %d s", job.id, GRACE_SECONDS)
        ended = job if job.ended else cluster.stop(job)
        outcome = "had already ended" if job.ended else "is stopped"
        print(json.dumps({"job": ended.id, "state": ended.state}) if as_json else f"job {ended.id} {outcome}")
        return 0
    directory = Path(target)
    path = directory.expanduser().resolve() if is_matrix(directory) else existing_sweep(directory)
    driver = driver_of(path)
    if driver is None:
        print(json.dumps({"stopped": False}) if as_json else f"no driver is running {target}")
        return 0
    _terminate(driver, lambda: driver_of(path) != driver)
    print(json.dumps({"stopped": True}) if as_json else f"stopped: {driver.who}")
    return 0


def _terminate(driver: LeaseOwner, ended: Callable[[], bool], timeout: float = 120.0) -> None:
    if not driver.is_local():
        raise UserError(
            f"the driver is {driver.who}, on another machine; stop it there, or stop its Ray job with --address"
        )
    try:
        os.kill(driver.process, signal.SIGTERM)
    except ProcessLookupError:
        pass  # it has just ended
    except PermissionError:
        raise UserError(f"the driver is {driver.who}; only that user can stop it") from None
    deadline = time.monotonic() + timeout
    while not ended():
        if time.monotonic() > deadline:
            raise LongtailError(f"{driver.who} has not ended {timeout:.0f} s after SIGTERM")
        time.sleep(0.2)
