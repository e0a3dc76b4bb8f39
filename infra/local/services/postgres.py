"""PostgreSQL, the database of MLflow's runs and users."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from services.process import HOST, Service, ServiceError, plain_environment, secret

__all__ = ["Postgres"]


@dataclass(kw_only=True, eq=False)
class Postgres(Service):
    """PostgreSQL with one database and one user; the password is in `postgres.password`."""

    name: str = "postgres"

    @property
    def data(self) -> Path:
        return self.place / "postgres"

    @property
    def password(self) -> str:
        return secret(self.place / "postgres.password")

    @property
    def uri(self) -> str:
        """URI for SQLAlchemy, with the password."""
        return f"postgresql://mlflow:{self.password}@{HOST}:{self.port}/mlflow"

    def prepare(self) -> None:
        if (self.data / "PG_VERSION").exists():
            return
        self.data.mkdir(parents=True, exist_ok=True)
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            shutil.chown(self.data, "postgres", "postgres")
        with tempfile.NamedTemporaryFile("w", suffix=".password") as file:
            file.write(self.password)
            file.flush()
            if os.geteuid() == 0:  # the file is readable by its owner only
                shutil.chown(file.name, "postgres")
            options = ["-U", "mlflow", "--auth=scram-sha-256", "--encoding=UTF8", f"--pwfile={file.name}"]
            self._run([_postgres_bin("initdb"), "-D", str(self.data), *options])

    def command(self) -> Sequence[str]:
        options = ["-c", f"listen_addresses={HOST}", "-c", "unix_socket_directories=", "-p", str(self.port)]
        return [*_as_postgres(), _postgres_bin("postgres"), "-D", str(self.data), *options]

    def wait(self) -> None:
        super().wait()
        self._run_sql("SELECT 1 FROM pg_database WHERE datname='mlflow'", "CREATE DATABASE mlflow")

    def kill(self) -> None:
        """Kill it as in a crash, including its child processes, which would otherwise keep using the files."""
        super().kill()
        (self.data / "postmaster.pid").unlink(missing_ok=True)

    def _run_sql(self, query: str, command: str) -> None:
        """Run `command` if `query` returns nothing; waits for a server that is still recovering."""
        deadline = time.monotonic() + self.seconds
        while True:
            found = self._psql(query)
            if found.returncode == 0:
                break
            if time.monotonic() > deadline:
                raise ServiceError(f"{self.name} does not accept commands: {found.stderr}")
            time.sleep(0.2)
        if not found.stdout.strip():
            done = self._psql(command)
            if done.returncode:
                raise ServiceError(f"{self.name}: {done.stderr}")

    def _psql(self, statement: str) -> subprocess.CompletedProcess[str]:
        options = ["-h", HOST, "-p", str(self.port), "-U", "mlflow", "-d", "postgres", "-tAc", statement]
        environment = {**plain_environment(), "PGPASSWORD": self.password}
        return subprocess.run(
            [_postgres_bin("psql"), *options], env=environment, capture_output=True, text=True, check=False
        )

    @staticmethod
    def _run(command: Sequence[str]) -> None:
        done = subprocess.run([*_as_postgres(), *command], capture_output=True, text=True, check=False, cwd="/")
        if done.returncode:
            raise ServiceError(f"{command[0]}: {done.stderr}")


def _postgres_bin(name: str) -> str:
    """Path of a PostgreSQL program; on Debian, server programs are not on the PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}")) if Path("/usr/lib/postgresql").exists() else []
    program = shutil.which(name) or (str(found[-1]) if found else None)
    if program is None:
        raise ServiceError(f"PostgreSQL's {name} is not installed; on Debian, run: apt-get install postgresql")
    return program


def _as_postgres() -> list[str]:
    """Command prefix that switches from root, which PostgreSQL refuses, to its user."""
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"] if os.geteuid() == 0 else []
