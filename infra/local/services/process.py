"""A process with all that it has started, its log, and how to see that it is up: what every service here is."""

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

__all__ = ["BIN", "HOST", "NotUp", "Service", "free_port", "plain_environment", "secret"]

HOST = "127.0.0.1"
"""The only address that anything listens on, but for Ray's ports for its own nodes."""

BIN = Path(sys.executable).parent
"""Where this environment's programs are."""


class NotUp(RuntimeError):
    """A service did not come up; the end of its log is in the message."""


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def secret(path: Path) -> str:
    """A secret in a file that only this user may read, made if it is not there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_urlsafe(24))
    return path.read_text().strip()


@dataclass(kw_only=True, eq=False)
class Service:
    """One process with all it has started, its log, and how to see that it is up.

    Attributes:
        name: of its log and its state file.
        place: the directory that everything lies in.
        port: that it listens on.
        seconds: how long it may take to come up.
    """

    name: str
    place: Path
    port: int = field(default_factory=free_port)
    seconds: float = 240.0

    def command(self) -> Sequence[str]:
        """The command line; secrets do not belong in it, as everybody may read it."""
        raise NotImplementedError

    def environment(self) -> Mapping[str, str]:
        """What its environment has beside that of this process."""
        return {}

    def prepare(self) -> None:
        """What must be there before the first start; done again before every start."""

    def scratch(self) -> list[Path]:
        """Directories outside its place, which are removed when it is stopped."""
        return []

    def is_up(self) -> bool:
        """Whether it answers."""
        with contextlib.suppress(OSError), socket.create_connection((HOST, self.port), timeout=1):
            return True
        return False

    @property
    def log(self) -> Path:
        """Everything it has printed, over all its starts."""
        return self.place / "logs" / f"{self.name}.log"

    @property
    def state(self) -> Path:
        """Its process, for those who come later to stop it."""
        return self.place / "processes" / f"{self.name}.json"

    def start(self, *, wait: bool = True) -> None:
        """Start it, and wait until it is up.

        Raises:
            NotUp: it ended, or took too long.
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
        born = psutil.Process(process.pid).create_time()
        scratch = [str(path) for path in self.scratch()]
        self.state.write_text(json.dumps({"pid": process.pid, "born": born, "scratch": scratch}))
        if wait:
            self.wait()

    def wait(self) -> None:
        """Return when it is up, after `start`.

        Raises:
            NotUp: it ended, or took too long.
        """
        deadline = time.monotonic() + self.seconds
        while not self.is_up():
            if not self._lives() or time.monotonic() > deadline:
                tail = self.log.read_text(errors="replace")[-2000:]
                raise NotUp(f"{self.name} did not come up; the end of {self.log}:\n{tail}")
            time.sleep(0.1)

    def _lives(self) -> bool:
        """Whether its process is there, and not only its end that nobody has asked for."""
        return any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in self.processes())

    def processes(self) -> list[psutil.Process]:
        """Its process and all that it has started, those that are there; itself last."""
        try:
            known = json.loads(self.state.read_text())
            first = psutil.Process(known["pid"])
            if abs(first.create_time() - known["born"]) > 1:
                return []
            return [*first.children(recursive=True), first]
        except (OSError, ValueError, psutil.NoSuchProcess):
            return []

    def kill(self) -> None:
        """All of it at once, as a machine dies."""
        _send(self.processes(), signal.SIGKILL)
        self.state.unlink(missing_ok=True)

    def stop(self, grace: float = 15.0) -> None:
        """Ask it to end, and end what has not after `grace` seconds."""
        everyone = self.processes()
        _send(everyone[-1:], signal.SIGTERM)
        _, left = psutil.wait_procs(everyone, timeout=grace)
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
    """This process's environment without what would lead a service elsewhere."""
    led = ("RAY_", "MLFLOW_", "AWS_", "PG", "TUNE_")
    return {name: value for name, value in os.environ.items() if not name.startswith(led)}
