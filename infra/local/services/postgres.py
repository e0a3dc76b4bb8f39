"""PostgreSQL, which MLflow keeps its runs and its users in."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from services.process import HOST, NotUp, Service, plain_environment, secret

__all__ = ["Postgres"]


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
        self.data.mkdir(parents=True, exist_ok=True)
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            shutil.chown(self.data, "postgres", "postgres")
        with tempfile.NamedTemporaryFile("w", suffix=".password") as file:
            file.write(self.password)
            file.flush()
            if os.geteuid() == 0:  # for its owner alone, as it was made
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
        environment = {**plain_environment(), "PGPASSWORD": self.password}
        return subprocess.run(
            [_postgres_bin("psql"), *options], env=environment, capture_output=True, text=True, check=False
        )

    @staticmethod
    def _run(command: Sequence[str]) -> None:
        done = subprocess.run([*_as_postgres(), *command], capture_output=True, text=True, check=False, cwd="/")
        if done.returncode:
            raise NotUp(f"{command[0]}: {done.stderr}")


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
