"""Base of all services: a process with its child processes, its log, and a readiness check."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

__all__ = ["BIN", "HOST", "Service", "ServiceError", "free_port", "plain_environment", "secret"]

HOST = "127.0.0.1"
"""The address that services listen on, except Ray's ports between nodes."""

BIN = Path(sys.executable).parent
"""Directory of this environment's programs."""


class ServiceError(RuntimeError):
    """A service did not start; the message contains the last lines of its log."""


def free_port() -> int:
    """An unused port."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def secret(path: Path) -> str:
    """Read a secret from a file, or create one that only this user can read."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_urlsafe(24))
    return path.read_text().strip()


@dataclass(kw_only=True, eq=False)
class Service:
    """One process with its child processes, its log, and a readiness check.

    Attributes:
        name: name of the log and of the state file.
        place: directory of all files.
        port: the port that it listens on.
        seconds: timeout of its start.
    """

    name: str
    place: Path
    port: int = field(default_factory=free_port)
    seconds: float = 240.0

    def command(self) -> Sequence[str]:
        """The command line. It must not contain secrets, because all users can read it."""
        raise NotImplementedError

    def environment(self) -> Mapping[str, str]:
        """Environment variables in addition to those of this process."""
        return {}

    def prepare(self) -> None:
        """Prepare files; called before every start."""

    def scratch(self) -> list[Path]:
        """Directories outside `place`, removed when the service is stopped."""
        return []

    def is_up(self) -> bool:
        """Whether it is ready."""
        with contextlib.suppress(OSError), socket.create_connection((HOST, self.port), timeout=1):
            return True
        return False

    @property
    def log(self) -> Path:
        """Output of all its starts."""
        return self.place / "logs" / f"{self.name}.log"

    @property
    def state(self) -> Path:
        """File that identifies the process, for stopping it later."""
        return self.place / "processes" / f"{self.name}.json"

    def start(self, *, wait: bool = True) -> None:
        """Start it, and with `wait` return when it is ready.

        Raises:
            ServiceError: it ended or was not ready in time.
        """
        for directory in (self.log.parent, self.state.parent):
            directory.mkdir(parents=True, exist_ok=True)
        self.prepare()
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                list(self.command()),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**plain_environment(), **self.environment()},
                cwd=self.place,
                start_new_session=True,
            )
        started = psutil.Process(process.pid).create_time()
        scratch = [str(path) for path in self.scratch()]
        self.state.write_text(json.dumps({"pid": process.pid, "started": started, "scratch": scratch}))
        if wait:
            self.wait()

    def wait(self) -> None:
        """Return when it is ready, after `start`.

        Raises:
            ServiceError: it ended or was not ready in time.
        """
        deadline = time.monotonic() + self.seconds
        while not self.is_up():
            if not self._is_alive() or time.monotonic() > deadline:
                tail = self.log.read_text(errors="replace")[-2000:]
                raise ServiceError(f"{self.name} did not start; the end of {self.log}:\n{tail}")
            time.sleep(0.1)

    def _is_alive(self) -> bool:
        """Whether a process exists that is not a zombie."""
        return any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in self.processes())

    def processes(self) -> list[psutil.Process]:
        """Its process, last, after the child processes that still exist."""
        try:
            known = json.loads(self.state.read_text())
            first = psutil.Process(known["pid"])
            if abs(first.create_time() - known["started"]) > 1:
                return []
            return [*first.children(recursive=True), first]
        except (OSError, ValueError, psutil.NoSuchProcess):
            return []

    def kill(self) -> None:
        """Kill all its processes at once, like a machine that dies."""
        _send(self.processes(), signal.SIGKILL)
        self.state.unlink(missing_ok=True)

    def stop(self, grace: float = 15.0) -> None:
        """Stop it, and kill what is left after `grace` seconds."""
        processes = self.processes()
        _send(processes[-1:], signal.SIGTERM)
        _, left = psutil.wait_procs(processes, timeout=grace)
        _send(left, signal.SIGKILL)
        with contextlib.suppress(OSError, ValueError):
            for path in json.loads(self.state.read_text())["scratch"]:
                shutil.rmtree(path, ignore_errors=True)
        self.state.unlink(missing_ok=True)


def _send(processes: Sequence[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
    if number == signal.SIGKILL:
        psutil.wait_procs(processes, timeout=10)


def plain_environment() -> dict[str, str]:
    """This process's environment without variables that configure services."""
    prefixes = ("RAY_", "MLFLOW_", "AWS_", "PG", "TUNE_")
    return {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
