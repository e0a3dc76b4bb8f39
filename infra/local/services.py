"""What a team runs for its sweeps, as processes on one machine: Ray nodes, PostgreSQL, an S3 store, MLflow with auth.

Everything listens on 127.0.0.1 alone, with a password or a token made for the occasion, and leaves nothing outside its
directory. `cluster.py` brings all of it up; tests start what they need, kill it and start it again. Knows processes and
ports; knows nothing of sweeps.
"""

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
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

__all__ = ["Mlflow", "Postgres", "RayHead", "RayWorker", "S3Store", "Service", "free_port", "secret"]

HOST = "127.0.0.1"
BIN = Path(sys.executable).parent


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
                env={**_plain_environment(), **self.environment()},
                cwd=self.place,
                start_new_session=True,
            )
        born = psutil.Process(process.pid).create_time()
        scratch = [str(path) for path in self.scratch()]
        self.state.write_text(json.dumps({"pid": process.pid, "born": born, "scratch": scratch}))
        if wait:
            self.wait(lambda: process.poll() is None)

    def wait(self, lives: Callable[[], bool] = lambda: True) -> None:
        """Return when it is up.

        Raises:
            NotUp: it ended, or took too long.
        """
        deadline = time.monotonic() + self.seconds
        while not self.is_up():
            if not lives() or time.monotonic() > deadline:
                tail = self.log.read_text(errors="replace")[-2000:]
                raise NotUp(f"{self.name} did not come up; the end of {self.log}:\n{tail}")
            time.sleep(0.1)

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


@dataclass(kw_only=True, eq=False)
class Postgres(Service):
    """PostgreSQL with one database and one user, whose password is in `postgres.password`."""

    name: str = "postgres"

    @property
    def data(self) -> Path:
        return self.place / "postgres"

    @property
    def password(self) -> str:
        return secret(self.place / "postgres.password")

    @property
    def uri(self) -> str:
        """For SQLAlchemy; it holds the password."""
        return f"postgresql://mlflow:{self.password}@{HOST}:{self.port}/mlflow"

    def prepare(self) -> None:
        if (self.data / "PG_VERSION").exists():
            return
        self.data.mkdir(parents=True)
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            shutil.chown(self.data, "postgres", "postgres")
        with tempfile.NamedTemporaryFile("w", suffix=".password") as file:
            file.write(self.password)
            file.flush()
            os.chmod(file.name, 0o644 if os.geteuid() == 0 else 0o600)
            options = ["-U", "mlflow", "--auth=scram-sha-256", "--encoding=UTF8", f"--pwfile={file.name}"]
            self._run([_postgres_bin("initdb"), "-D", str(self.data), *options])

    def command(self) -> Sequence[str]:
        options = ["-c", f"listen_addresses={HOST}", "-c", "unix_socket_directories=", "-p", str(self.port)]
        return [*_as_postgres(), _postgres_bin("postgres"), "-D", str(self.data), *options]

    def wait(self, lives: Callable[[], bool] = lambda: True) -> None:
        super().wait(lives)
        self._run_sql("SELECT 1 FROM pg_database WHERE datname='mlflow'", "CREATE DATABASE mlflow")

    def kill(self) -> None:
        """As a crash: its children would else go on with the files."""
        super().kill()
        (self.data / "postmaster.pid").unlink(missing_ok=True)

    def _run_sql(self, asked: str, otherwise: str) -> None:
        """Do `otherwise` where `asked` finds nothing; the server may still be recovering."""
        deadline = time.monotonic() + self.seconds
        while True:
            found = self._psql(asked)
            if found.returncode == 0:
                break
            if time.monotonic() > deadline:
                raise NotUp(f"{self.name} takes no commands: {found.stderr}")
            time.sleep(0.2)
        if not found.stdout.strip():
            made = self._psql(otherwise)
            if made.returncode:
                raise NotUp(f"{self.name}: {made.stderr}")

    def _psql(self, statement: str) -> subprocess.CompletedProcess[str]:
        options = ["-h", HOST, "-p", str(self.port), "-U", "mlflow", "-d", "postgres", "-tAc", statement]
        environment = {**_plain_environment(), "PGPASSWORD": self.password}
        return subprocess.run(
            [_postgres_bin("psql"), *options], env=environment, capture_output=True, text=True, check=False
        )

    @staticmethod
    def _run(command: Sequence[str]) -> None:
        done = subprocess.run([*_as_postgres(), *command], capture_output=True, text=True, check=False, cwd="/")
        if done.returncode:
            raise NotUp(f"{command[0]}: {done.stderr}")


@dataclass(kw_only=True, eq=False)
class S3Store(Service):
    """An S3-compatible store in memory (moto), with one bucket. What it holds is gone when it ends."""

    name: str = "s3"
    bucket: str = "sweeps"

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def client_environment(self) -> dict[str, str]:
        """What a client needs to be led here; the store takes any key."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "MLFLOW_S3_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "local",
            "AWS_SECRET_ACCESS_KEY": "local",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def command(self) -> Sequence[str]:
        return [str(BIN / "moto_server"), "-H", HOST, "-p", str(self.port)]

    def wait(self, lives: Callable[[], bool] = lambda: True) -> None:
        super().wait(lives)
        request = urllib.request.Request(
            f"{self.url}/{self.bucket}",
            method="PUT",
            headers={"Authorization": "AWS4-HMAC-SHA256 Credential=local/20260101/us-east-1/s3/aws4_request"},
        )
        with urllib.request.urlopen(request, timeout=10):
            return


@dataclass(kw_only=True, eq=False)
class Mlflow(Service):
    """MLflow's server on a database and an artifact store, with passwords and a list of hosts it answers to."""

    name: str = "mlflow"
    backend: str = ""
    artifacts: str = ""
    store_environment: Mapping[str, str] = field(default_factory=dict)
    hosts: Sequence[str] = ()
    workers: int = 1

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def password(self) -> str:
        """Of the user `admin`."""
        return secret(self.place / "mlflow.password")

    def client_environment(self) -> dict[str, str]:
        """What a client needs to be let in."""
        return {
            "MLFLOW_TRACKING_URI": self.url,
            "MLFLOW_TRACKING_USERNAME": "admin",
            "MLFLOW_TRACKING_PASSWORD": self.password,
        }

    def prepare(self) -> None:
        handle = os.open(self.place / "mlflow.auth.ini", os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(
                "[mlflow]\n"
                "default_permission = NO_PERMISSIONS\n"
                f"database_uri = {self.backend}\n"
                "admin_username = admin\n"
                "auth_cache_ttl_seconds = 60\n"
                "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
            )

    def environment(self) -> Mapping[str, str]:
        return {
            **self.store_environment,
            "MLFLOW_BACKEND_STORE_URI": self.backend,
            "MLFLOW_AUTH_CONFIG_PATH": str(self.place / "mlflow.auth.ini"),
            "MLFLOW_AUTH_ADMIN_PASSWORD": self.password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secret(self.place / "mlflow.session-key"),
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # five processes more, for what no sweep asks
        }

    def command(self) -> Sequence[str]:
        allowed = ",".join([f"{HOST}:{self.port}", f"localhost:{self.port}", *self.hosts])
        options = ["--host", HOST, "--port", str(self.port), "--workers", str(self.workers)]
        options += ["--artifacts-destination", self.artifacts, "--allowed-hosts", allowed]
        return [str(BIN / "python"), "-m", "mlflow", "server", "--app-name", "basic-auth", *options]

    def is_up(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


@dataclass(kw_only=True, eq=False)
class _RayNode(Service):
    """A Ray node in the foreground, so that it dies with its process."""

    cpus: int = 0
    extra_environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def session(self) -> Path:
        """A node's own, as on a machine of its own; short, because Unix sockets lie in it, whose paths are."""
        return Path(tempfile.gettempdir()) / f"lt-ray-{os.getuid()}-{self.port}"

    def scratch(self) -> list[Path]:
        return [self.session]

    @property
    def token(self) -> Path:
        return self.place / "ray.token"

    def client_environment(self) -> dict[str, str]:
        """What a driver or a job client needs to be let in."""
        secret(self.token)
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token)}

    def environment(self) -> Mapping[str, str]:
        return {
            **self.client_environment(),
            # A job's `python` is this one.
            "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
            "RAY_raylet_start_wait_time_s": "300",  # on a busy machine
            # A machine that is gone is noticed in seconds, not in half a minute.
            "RAY_health_check_initial_delay_ms": "2000",
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_timeout_ms": "2000",
            "RAY_health_check_failure_threshold": "3",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
            **self.extra_environment,
        }

    def _options(self) -> list[str]:
        return ["--node-ip-address", HOST, "--num-cpus", str(self.cpus), "--disable-usage-stats", "--block"]


@dataclass(kw_only=True, eq=False)
class RayHead(_RayNode):
    """The head: GCS, job API and dashboard; takes no packs (`cpus` 0)."""

    name: str = "ray-head"
    dashboard_port: int = field(default_factory=free_port)
    object_store_bytes: int = 256 * 2**20

    @property
    def address(self) -> str:
        """Of the cluster, for nodes and drivers."""
        return f"{HOST}:{self.port}"

    @property
    def url(self) -> str:
        """Of the job API."""
        return f"http://{HOST}:{self.dashboard_port}"

    def command(self) -> Sequence[str]:
        options = ["--head", "--port", str(self.port), "--object-store-memory", str(self.object_store_bytes)]
        options += ["--dashboard-host", HOST, "--dashboard-port", str(self.dashboard_port)]
        options += ["--temp-dir", str(self.session), "--ray-client-server-port", str(free_port())]
        return [str(BIN / "ray"), "start", *options, *self._options()]

    def is_up(self) -> bool:
        """Whether the job API answers, be it only that it wants a token."""
        try:
            request = urllib.request.Request(f"{self.url}/api/jobs/")
            request.add_header("Authorization", f"Bearer {secret(self.token)}")
            with urllib.request.urlopen(request, timeout=2):
                return True
        except urllib.error.HTTPError as answer:
            return answer.code in (401, 403)
        except OSError:
            return False


@dataclass(kw_only=True, eq=False)
class RayWorker(_RayNode):
    """A node that takes packs."""

    head: RayHead | None = None
    object_store_bytes: int = 256 * 2**20

    def command(self) -> Sequence[str]:
        assert self.head is not None, "a worker joins a head"
        options = ["--address", self.head.address, "--object-store-memory", str(self.object_store_bytes)]
        options += ["--temp-dir", str(self.session)]
        return [str(BIN / "ray"), "start", *options, *self._options()]

    def is_up(self) -> bool:
        """Whether its raylet runs; that the head knows it is seen when it is given work."""
        return any("raylet" in " ".join(_command_line(process)) for process in self.processes())


def _command_line(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return list(process.cmdline()[:1])
    return []


def _send(processes: Sequence[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
    if number == signal.SIGKILL:
        psutil.wait_procs(processes, timeout=10)


def _plain_environment() -> dict[str, str]:
    """This process's environment without what would lead a service elsewhere."""
    led = ("RAY_", "MLFLOW_", "AWS_", "PG", "TUNE_")
    return {name: value for name, value in os.environ.items() if not name.startswith(led)}


def _postgres_bin(name: str) -> str:
    """A PostgreSQL program: Debian keeps the server's off the PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}")) if Path("/usr/lib/postgresql").exists() else []
    program = shutil.which(name) or (str(found[-1]) if found else None)
    if program is None:
        raise NotUp(f"PostgreSQL's {name} is not on this machine; on Debian: apt-get install postgresql")
    return program


def _as_postgres() -> list[str]:
    """What puts a command under a user that PostgreSQL runs as."""
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"] if os.geteuid() == 0 else []
