"""Sweeps as Ray jobs: submitted, found again, followed, stopped. The only file that speaks to Ray's job API.

What a job is of which sweep is said in its metadata, so that any machine that reaches the cluster can ask. A job is one
attempt at a sweep: its entry point starts the sweep or goes on with it, so a job may be repeated at any time.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import os
import shlex
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

import lt_train
from lt_train.core.errors import LongtailError, UserError, first_line
from sweeps.cluster.inline_files import packed
from sweeps.store.status import JOB_VARIABLE

__all__ = ["ADDRESS_VARIABLE", "GRACE_SECONDS", "Cluster", "Job", "JobOptions"]

ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
"""Environment variable with the address that counts where none is given; Ray's own."""

SWEEP, STORAGE, OPTIONS = "lt.sweep", "lt.storage", "lt.options"
"""Keys of a job's metadata; the last holds, as JSON, how it was run where that was said."""

ANSWER_SECONDS = 60
"""How long the job API may be silent before it counts as gone."""

GRACE_SECONDS = 60
"""How long a job that is asked to stop may take to close what it has open; Ray's own 3 s are too few."""

ENDED = ("succeeded", "failed", "stopped")


@dataclass(frozen=True)
class JobOptions:
    """How a sweep's driver is run on a cluster.

    Attributes:
        environment: variables that everybody who may list jobs can see.
        ship_code: send this machine's `lt_train` and `sweeps` along, instead of using what the cluster has installed.
        packages: directories of other packages to send along.
        image: container image to run in, for clusters that have a runtime for it. Ray sends nothing into it but
            variables, so no code is shipped.
        cpus, gpus: of the driver itself, which trains stage 1 and extracts features where that was not done; 0 runs it
            on the head.
    """

    environment: Mapping[str, str]
    ship_code: bool = False
    packages: Sequence[Path] = ()
    image: str | None = None
    cpus: float = 0
    gpus: float = 0


@dataclass(frozen=True)
class Job:
    """One attempt at a sweep on a cluster; `options` as it was run, but for `packages`."""

    id: str
    sweep: str
    storage: str
    state: Literal["pending", "running", "succeeded", "failed", "stopped"]
    started_ms: int | None
    message: str
    options: JobOptions

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state in ENDED


class Cluster:
    """The job API of a Ray cluster, by the address of its dashboard.

    Raises:
        UserError: the address is none, or the cluster does not take our token.
        LongtailError: nobody answers there.
    """

    def __init__(self, address: str | None) -> None:
        given = address or os.environ.get(ADDRESS_VARIABLE) or os.environ.get("RAY_ADDRESS") or ""
        if not given.startswith(("http://", "https://")):
            raise UserError(
                f"--address must be the http:// address of the cluster's job API, such as http://127.0.0.1:8265, got "
                f"{given or 'none'}; without it {ADDRESS_VARIABLE} counts"
            )
        self.address = given.rstrip("/")
        # Ray lets these override what it is given.
        for name in (ADDRESS_VARIABLE, "RAY_ADDRESS"):
            os.environ.pop(name, None)
        with self._asked("; is a Ray head's job API there, and the way to it open (a tunnel, a port-forward)?"):
            for name in ("ray", "ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk"):
                logging.getLogger(name).setLevel(logging.ERROR)
            self._client = _client(self.address)

    def submit(
        self,
        arguments: Sequence[str],
        *,
        sweep: str,
        storage: str,
        options: JobOptions,
        working_dir: Path | None = None,
        place: str = ".",
    ) -> Job:
        """Start `lt-sweep ARGUMENTS` as a job; an attempt that is already under way is refused.

        Args:
            arguments: of the driver.
            sweep: what it runs.
            storage: where its results go; a sweep is its name and its storage.
            options: how it is run.
            working_dir: a directory to send along.
            place: the directory in it that the driver starts in.

        Raises:
            UserError: this sweep has a job that has not ended, or too much was to go into a container.
        """
        for job in self.jobs():
            if (job.sweep, job.storage) == (sweep, storage) and not job.ended:
                raise UserError(
                    f"sweep {sweep} is already {job.state} on {self.address}, as job {job.id}; follow it with "
                    f"`lt-sweep status {sweep} --address {self.address} --watch`"
                )
        job_id = f"lt-{sweep}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{os.getpid()}"
        environment = {
            **options.environment,
            JOB_VARIABLE: job_id,
            "RAY_JOB_STOP_WAIT_TIME_S": str(GRACE_SECONDS),
        }
        modules = [*(_own_packages() if options.ship_code else []), *map(str, options.packages)]
        runtime_env: dict[str, Any] = {"env_vars": environment}
        if options.image is not None:
            assert not modules, "the command line refuses code for a container"
            runtime_env["image_uri"] = options.image
            environment |= packed(working_dir / place) if working_dir is not None else {}
            place = "."
        elif working_dir is not None:
            runtime_env["working_dir"] = str(working_dir)
        if modules:
            runtime_env |= {"py_modules": modules, "excludes": ["__pycache__"]}
        # -P: a file of the directory it starts in is no module.
        command = [*(["cd", place, "&&"] if place != "." else []), "python", "-P", "-m", "sweeps.cli.main"]
        with self._asked():
            self._client.submit_job(
                entrypoint=" ".join([*command, *map(shlex.quote, arguments)]),
                submission_id=job_id,
                metadata={SWEEP: sweep, STORAGE: storage, OPTIONS: _said(options)},
                runtime_env=runtime_env,
                entrypoint_num_cpus=options.cpus or None,
                entrypoint_num_gpus=options.gpus or None,
            )
        return self.find(job_id)

    def jobs(self) -> list[Job]:
        """The cluster's sweeps, newest first; other people's jobs are left out."""
        with self._asked():
            details = self._client.list_jobs()
        found = [_job(one) for one in details if SWEEP in (one.metadata or {})]
        return sorted(found, key=lambda job: -(job.started_ms or 0))

    def find(self, target: str) -> Job:
        """A job by its id, or that of a sweep by its name: the one that has not ended, else the latest.

        Raises:
            UserError: there is none, or sweeps of this name in several storages.
        """
        everyone = self.jobs()
        for job in everyone:
            if job.id == target:
                return job
        named = sorted((job for job in everyone if job.sweep == target), key=lambda job: job.ended)
        if len({job.storage for job in named}) > 1:
            latest = {job.storage: job for job in reversed(named)}
            which = "".join(f"\n  {job.id} ({job.state}) in {storage}" for storage, job in latest.items())
            raise UserError(f"{self.address} knows several sweeps {target!r}; say which by the id of its job:{which}")
        if named:
            return named[0]
        names = ", ".join(dict.fromkeys(job.sweep for job in everyone)) or "none"
        raise UserError(f"{self.address} knows no sweep or job {target!r}; its sweeps: {names}")

    def log(self, job: Job) -> str:
        """All that a job has printed; empty before its driver runs."""
        with self._asked():
            return str(self._client.get_job_logs(job.id) or "")

    def follow(self, job: Job) -> Iterator[str]:
        """What a job has printed and prints, a few lines at a time, until it ends."""
        pieces: SimpleQueue[str | BaseException | None] = SimpleQueue()

        async def read() -> None:
            lines: AsyncIterator[str] = self._client.tail_job_logs(job.id)
            async for piece in lines:
                pieces.put(piece)

        def work() -> None:
            try:
                asyncio.run(read())
                pieces.put(None)
            except BaseException as error:
                pieces.put(error)

        threading.Thread(target=work, daemon=True, name="job-log").start()
        with self._asked():
            while (piece := pieces.get()) is not None:
                if isinstance(piece, BaseException):
                    raise piece
                yield piece

    def stop(self, job: Job, timeout: float = GRACE_SECONDS + 10) -> Job:
        """Ask a job to end, and wait until it has.

        Raises:
            LongtailError: it has not ended in time.
        """
        with self._asked():
            self._client.stop_job(job.id)
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            now = self.find(job.id)
            if now.ended:
                return now
            time.sleep(0.5)
        raise LongtailError(f"job {job.id} has not ended {timeout:.0f} s after it was asked to")

    @contextlib.contextmanager
    def _asked(self, hint: str = "") -> Iterator[None]:
        """What the API answers as errors of ours, with what may be behind them."""
        try:
            yield
        except LongtailError:
            raise
        except Exception as error:
            if type(error).__name__ == "AuthenticationError":
                raise UserError(
                    f"the cluster at {self.address} wants a token, and did not take ours; set RAY_AUTH_MODE=token and "
                    "RAY_AUTH_TOKEN_PATH to the file that holds it (or RAY_AUTH_TOKEN)"
                ) from None
            raise LongtailError(f"the job API at {self.address} failed: {first_line(error)}{hint}") from error


def _client(address: str) -> Any:
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):  # type: ignore[misc]
        """Ray waits for an answer for ever, and a tunnel whose other end is gone gives none."""

        def _do_request(self, *arguments: Any, data: bytes | None = None, **named: Any) -> Any:
            # As a file it goes in pieces, each of which may take so long; bytes would have to be sent in that time.
            body = None if data is None else io.BytesIO(data)
            return super()._do_request(*arguments, data=body, **{"timeout": ANSWER_SECONDS, **named})

    return Client(address)


def _job(details: Any) -> Job:
    return Job(
        id=str(details.submission_id),
        sweep=details.metadata[SWEEP],
        storage=details.metadata.get(STORAGE, ""),
        state=str(details.status.value).lower(),  # type: ignore[arg-type]
        started_ms=details.start_time,
        message=details.message or "",
        options=JobOptions(
            environment=dict((details.runtime_env or {}).get("env_vars") or {}),
            **json.loads(details.metadata.get(OPTIONS, "{}")),
        ),
    )


def _said(options: JobOptions) -> str:
    return json.dumps({name: getattr(options, name) for name in ("ship_code", "image", "cpus", "gpus")})


def _own_packages() -> list[str]:
    return [str(Path(module).parent) for module in (lt_train.__file__, __file__) if module]
