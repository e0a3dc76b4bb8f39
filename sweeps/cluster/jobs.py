"""Sweeps as Ray jobs: submit, find, follow and stop them through Ray's job API.

A job's metadata name its sweep, so that every machine that reaches the cluster can find it. A job is one attempt: its
entry point starts the sweep or resumes it, so that a job may be repeated at any time.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import os
import shlex
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

import lt_train
from lt_train.core.errors import LongtailError, UserError, first_line
from lt_train.core.imports import require
from sweeps.cluster.environment import inline_environment
from sweeps.store.progress import JOB_VARIABLE

__all__ = ["ADDRESS_VARIABLE", "GRACE_SECONDS", "Cluster", "Job", "JobOptions"]

ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
"""Environment variable with the default address; Ray's own."""

SWEEP, STORAGE, OPTIONS = "lt.sweep", "lt.storage", "lt.options"
"""Keys of a job's metadata: the sweep's name, its storage, and the job's options as JSON."""

ANSWER_SECONDS = 60
"""Timeout of requests to the job API."""

GRACE_SECONDS = 60
"""How long a stopped job may take to shut down. Ray's default of 3 s is too short."""

ENDED = ("succeeded", "failed", "stopped")


@dataclass(frozen=True)
class JobOptions:
    """How a cluster runs a sweep's driver.

    Attributes:
        environment: environment variables, which everyone who may list jobs can read.
        ship_code: upload this machine's `lt_train` and `sweeps`, instead of using those installed on the cluster.
        packages: directories of further packages to upload, or files of modules.
        image: container image to run in, on clusters with a container runtime. Ray sends only environment variables
            into a container, so no code can be uploaded.
        cpus, gpus: resources of the driver, which trains stage 1 and extracts features where these are missing; 0 runs
            it on the head node.
    """

    environment: Mapping[str, str]
    ship_code: bool = False
    packages: Sequence[Path] = ()
    image: str | None = None
    cpus: float = 0
    gpus: float = 0


@dataclass(frozen=True)
class Job:
    """One attempt at a sweep on a cluster; `options` lacks `packages`."""

    id: str
    sweep: str
    storage: str
    state: Literal["pending", "running", "succeeded", "failed", "stopped"]
    started_ms: int | None
    message: str
    options: JobOptions

    @property
    def ended(self) -> bool:
        """Whether it has succeeded, failed or been stopped."""
        return self.state in ENDED


class Cluster:
    """The job API of a Ray cluster, by the address of its dashboard.

    Raises:
        UserError: the address is invalid, the cluster refuses the token, or Ray is not installed.
        LongtailError: there is no answer.
    """

    def __init__(self, address: str | None) -> None:
        given = address or os.environ.get(ADDRESS_VARIABLE) or os.environ.get("RAY_ADDRESS") or ""
        if not given.startswith(("http://", "https://")):
            raise UserError(
                f"--address must be the http:// address of the cluster's job API, such as http://127.0.0.1:8265, got "
                f"{given or 'none'}; its default is {ADDRESS_VARIABLE}"
            )
        require("ray")
        self.address = given.rstrip("/")
        # In Ray these override an address that is passed as an argument.
        for name in (ADDRESS_VARIABLE, "RAY_ADDRESS"):
            os.environ.pop(name, None)
        with self._translate_errors("; check that a Ray head runs there and that the tunnel or port-forward is open"):
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
        """Start `lt-sweep ARGUMENTS` as a job.

        Args:
            arguments: of the driver.
            sweep: the sweep's name.
            storage: directory of its results; name and storage identify a sweep.
            options: how the cluster runs the driver.
            working_dir: a directory to upload.
            place: the driver's working directory, relative to `working_dir`.

        Raises:
            UserError: this sweep has a job that has not ended, or the files are too large for a container.
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
        runtime_env: dict[str, Any] = {"env_vars": environment}
        if options.image is not None:
            assert not options.packages, "the command line refuses to ship code into a container"
            runtime_env["image_uri"] = options.image
            environment |= inline_environment(working_dir / place) if working_dir is not None else {}
            place = "."
        elif working_dir is not None:
            runtime_env["working_dir"] = str(working_dir)
        # -P: files of the working directory cannot be imported.
        command = [*(["cd", place, "&&"] if place != "." else []), "python", "-P", "-m", "sweeps"]
        with self._translate_errors(), tempfile.TemporaryDirectory() as staging:
            modules = _own_packages() if options.ship_code else []
            modules += [_as_package(path, Path(staging)) for path in dict.fromkeys(options.packages)]
            if modules:
                runtime_env |= {"py_modules": modules, "excludes": ["__pycache__"]}
            self._client.submit_job(
                entrypoint=" ".join([*command, *map(shlex.quote, arguments)]),
                submission_id=job_id,
                metadata={SWEEP: sweep, STORAGE: storage, OPTIONS: _options_json(options)},
                runtime_env=runtime_env,
                entrypoint_num_cpus=options.cpus or None,
                entrypoint_num_gpus=options.gpus or None,
            )
        return self.find(job_id)

    def jobs(self) -> list[Job]:
        """The jobs that run sweeps, newest first."""
        with self._translate_errors():
            details = self._client.list_jobs()
        found = [_job(one) for one in details if SWEEP in (one.metadata or {})]
        return sorted(found, key=lambda job: -(job.started_ms or 0))

    def find(self, target: str) -> Job:
        """A job by its id or by its sweep's name; of several, the one that has not ended, else the latest.

        Raises:
            UserError: there is none, or there are sweeps of this name in several storages.
        """
        jobs = self.jobs()
        for job in jobs:
            if job.id == target:
                return job
        named = sorted((job for job in jobs if job.sweep == target), key=lambda job: job.ended)
        if len({job.storage for job in named}) > 1:
            latest = {job.storage: job for job in reversed(named)}
            which = "".join(f"\n  {job.id} ({job.state}) in {storage}" for storage, job in latest.items())
            raise UserError(f"{self.address} has several sweeps named {target!r}; give the id of a job instead:{which}")
        if named:
            return named[0]
        names = ", ".join(dict.fromkeys(job.sweep for job in jobs)) or "none"
        raise UserError(f"{self.address} has no sweep or job {target!r}; its sweeps: {names}")

    def log(self, job: Job) -> str:
        """The output of a job so far; empty before its driver runs."""
        with self._translate_errors():
            return str(self._client.get_job_logs(job.id) or "")

    def follow(self, job: Job) -> Iterator[str]:
        """The output of a job, a few lines at a time, until the job ends."""
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
        with self._translate_errors():
            while (piece := pieces.get()) is not None:
                if isinstance(piece, BaseException):
                    raise piece
                yield piece

    def stop(self, job: Job, timeout: float = GRACE_SECONDS + 10) -> Job:
        """Stop a job, and wait until it has ended.

        Raises:
            LongtailError: it has not ended after `timeout` seconds.
        """
        with self._translate_errors():
            self._client.stop_job(job.id)
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            now = self.find(job.id)
            if now.ended:
                return now
            time.sleep(0.5)
        raise LongtailError(f"job {job.id} has not ended {timeout:.0f} s after the request to stop")

    @contextlib.contextmanager
    def _translate_errors(self, hint: str = "") -> Iterator[None]:
        """Raise errors of the API as `LongtailError`, with a hint at their cause."""
        try:
            yield
        except LongtailError:
            raise
        except Exception as error:
            if type(error).__name__ == "AuthenticationError":
                raise UserError(
                    f"the cluster at {self.address} requires a token and refused ours; set RAY_AUTH_MODE=token and "
                    "RAY_AUTH_TOKEN_PATH to the file that contains it (or RAY_AUTH_TOKEN)"
                ) from None
            raise LongtailError(f"the job API at {self.address} failed: {first_line(error)}{hint}") from error


def _client(address: str) -> Any:
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):  # type: ignore[misc]
        """A client with a timeout: Ray's own waits forever, for example on a tunnel whose other end is closed."""

        def _do_request(self, *arguments: Any, data: bytes | None = None, **named: Any) -> Any:
            # A file is sent in pieces, each of which may take up to the timeout; bytes would share one timeout.
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


def _options_json(options: JobOptions) -> str:
    return json.dumps({name: getattr(options, name) for name in ("ship_code", "image", "cpus", "gpus")})


def _as_package(path: Path, staging: Path) -> str:
    """The directory of a package; for a module in one file, that of a package with the same content.

    Ray's job API uploads directories only.
    """
    if path.is_dir():
        return str(path)
    place = staging / path.stem
    place.mkdir()
    shutil.copyfile(path, place / "__init__.py")
    return str(place)


def _own_packages() -> list[str]:
    return [str(Path(module).parent) for module in (lt_train.__file__, __file__) if module]
