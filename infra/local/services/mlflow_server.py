"""MLflow's server."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from services.process import BIN, HOST, Service, ServiceError, plain_environment, secret

__all__ = ["Mlflow"]

ADD_USER = Path(__file__).resolve().parents[2] / "mlflow" / "add_user.py"


@dataclass(kw_only=True, eq=False)
class Mlflow(Service):
    """MLflow's server with a database, an artifact store, logins and a list of allowed hosts.

    Attributes:
        user: a user without administrator rights, for drivers, in addition to `admin`.
    """

    name: str = "mlflow"
    backend: str = ""
    artifacts: str = ""
    store_environment: Mapping[str, str] = field(default_factory=dict)
    hosts: Sequence[str] = ()
    workers: int = 1
    user: str = "sweeps"

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def password(self) -> str:
        """Password of the user `admin`."""
        return secret(self.place / "mlflow.password")

    @property
    def user_password(self) -> str:
        """Password of `user`."""
        return secret(self.place / f"{self.user}.password")

    def client_environment(self) -> dict[str, str]:
        """Environment variables for drivers."""
        return {
            "MLFLOW_TRACKING_URI": self.url,
            "MLFLOW_TRACKING_USERNAME": self.user,
            "MLFLOW_TRACKING_PASSWORD": self.user_password,
        }

    def prepare(self) -> None:
        handle = os.open(self.place / "mlflow.auth.ini", os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(
                "[mlflow]\n"
                "default_permission = READ\n"
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
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # saves five processes that sweeps do not use
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

    def wait(self) -> None:
        super().wait()
        secret(file := self.place / f"{self.user}.password")
        options = ["--server", self.url, "--admin-password-file", str(self.place / "mlflow.password")]
        done = subprocess.run(
            [sys.executable, str(ADD_USER), self.user, str(file), *options],
            env=plain_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ServiceError(f"{self.name}: cannot create user {self.user}: {done.stderr}")
