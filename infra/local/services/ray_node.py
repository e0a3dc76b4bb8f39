"""Ray nodes: the head, with the job API, and workers, which train packs."""

from __future__ import annotations

import contextlib
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from services.process import BIN, HOST, Service, ServiceError, free_port, secret

__all__ = ["RayHead", "RayWorker"]


@dataclass(kw_only=True, eq=False)
class _RayNode(Service):
    """A Ray node in the foreground, so that it dies with its process."""

    cpus: int = 0
    extra_environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def session(self) -> Path:
        """Session directory of this node only; a short path, because Unix sockets in it limit its length."""
        return Path(tempfile.gettempdir()) / f"lt-ray-{os.getuid()}-{self.port}"

    def scratch(self) -> list[Path]:
        return [self.session]

    @property
    def token(self) -> Path:
        return self.place / "ray.token"

    def client_environment(self) -> dict[str, str]:
        """Environment variables for drivers and job clients."""
        secret(self.token)
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token)}

    def environment(self) -> Mapping[str, str]:
        return {
            **self.client_environment(),
            # Jobs run this environment's `python`.
            "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', '')}",
            "RAY_raylet_start_wait_time_s": "300",  # for busy machines
            # Detect a dead node within seconds; the defaults take half a minute.
            "RAY_health_check_initial_delay_ms": "2000",
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_timeout_ms": "2000",
            "RAY_health_check_failure_threshold": "3",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
            # Ray serves metrics without authentication. Those of dashboard and autoscaler, on all interfaces, can only
            # be disabled by an invalid port.
            "RAY_enable_metrics_collection": "0",
            "DASHBOARD_METRIC_PORT": "-1",
            "AUTOSCALER_METRIC_PORT": "-1",
            **self.extra_environment,
        }

    def _options(self) -> list[str]:
        options = ["--node-ip-address", HOST, "--num-cpus", str(self.cpus), "--disable-usage-stats", "--block"]
        return [*options, "--dashboard-agent-listen-port", "0"]  # a head without an agent port accepts no jobs


@dataclass(kw_only=True, eq=False)
class RayHead(_RayNode):
    """The head: GCS, job API and dashboard; trains no packs (`cpus` is 0)."""

    name: str = "ray-head"
    dashboard_port: int = field(default_factory=free_port)
    object_store_bytes: int = 256 * 2**20

    @property
    def address(self) -> str:
        """Address of the cluster, for nodes and drivers."""
        return f"{HOST}:{self.port}"

    @property
    def url(self) -> str:
        """URL of the job API."""
        return f"http://{HOST}:{self.dashboard_port}"

    def command(self) -> Sequence[str]:
        options = ["--head", "--port", str(self.port), "--object-store-memory", str(self.object_store_bytes)]
        options += ["--dashboard-host", HOST, "--dashboard-port", str(self.dashboard_port)]
        options += ["--temp-dir", str(self.session), "--ray-client-server-port", str(free_port())]
        return [str(BIN / "ray"), "start", *options, *self._options()]

    def is_up(self) -> bool:
        """Whether the job API answers, if only with a request for a token."""
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
    """A node that trains packs."""

    head: RayHead | None = None
    object_store_bytes: int = 256 * 2**20

    def command(self) -> Sequence[str]:
        assert self.head is not None, "a worker joins a head"
        options = ["--address", self.head.address, "--object-store-memory", str(self.object_store_bytes)]
        options += ["--temp-dir", str(self.session)]
        return [str(BIN / "ray"), "start", *options, *self._options()]

    def wait(self) -> None:
        for _ in range(2):  # a head that has not registered its own node yet may already answer, but refuses others
            try:
                return super().wait()
            except ServiceError:
                self.kill()
                self.start(wait=False)
        return super().wait()

    def is_up(self) -> bool:
        """Whether its raylet runs; the head may not have registered it yet."""
        return any("raylet" in " ".join(_command_line(process)) for process in self.processes())


def _command_line(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return list(process.cmdline()[:1])
    return []
