"""MLflow's server."""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from services.process import BIN, HOST, Service, secret

__all__ = ["Mlflow"]


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
