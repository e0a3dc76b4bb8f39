"""A local cluster for tests: Ray nodes, PostgreSQL, S3 and MLflow of `infra/local`, and a proxy that can be cut."""

from __future__ import annotations

import base64
import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "infra" / "local"))

from services import Mlflow, Postgres, RayHead, RayWorker, S3Store, Service, free_port  # noqa: E402
from services.process import plain_environment  # noqa: E402

__all__ = [
    "ROOT",
    "LocalCluster",
    "RayHead",
    "RayWorker",
    "Service",
    "SmallDisk",
    "basic_auth",
    "local_cluster",
]


def basic_auth(user: str, password: str) -> str:
    """The value of the header `Authorization`."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


class Proxy:
    """Forwards a port to another. Once it is cut, it drops all data, like a broken network."""

    def __init__(self, target: int) -> None:
        self.target, self.port = target, free_port()
        self._open = threading.Event()
        self._open.set()
        self._server = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Drop all data from now on; connections stay open."""
        self._open.clear()

    def restore(self) -> None:
        """Forward new connections again; connections that were cut stay dead."""
        self._open.set()

    def close(self) -> None:
        """Stop listening."""
        self._server.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        if not self._open.is_set():
            with contextlib.suppress(OSError), client:
                while client.recv(65536):
                    pass
            return
        try:
            server = socket.create_connection(("127.0.0.1", self.target), timeout=30)
        except OSError:
            client.close()
            return
        for source, target in ((client, server), (server, client)):
            threading.Thread(target=self._copy, args=(source, target), daemon=True).start()

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        dead = False
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                dead = dead or not self._open.is_set()
                if not dead:
                    target.sendall(data)
        if not dead:
            for end in (source, target):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)


class SmallDisk:
    """A mounted file system of a few megabytes that can be filled; needs root."""

    def __init__(self, place: Path, size: str) -> None:
        self.place = place
        place.mkdir(parents=True, exist_ok=True)  # hides a directory that the cluster has created
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=777", "tmpfs", str(place)], check=True)

    def fill(self) -> None:
        """Use all free bytes."""
        block = b"\0" * 4096
        with (self.place / "filler").open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(block)

    def free(self) -> None:
        """Release them."""
        (self.place / "filler").unlink(missing_ok=True)

    def close(self) -> None:
        """Unmount it."""
        subprocess.run(["umount", "-l", str(self.place)], check=False)


class LocalCluster:
    """A Ray head and workers, PostgreSQL, an S3 store and MLflow.

    Attributes:
        plugins: directory on the import path of every node.
    """

    def __init__(self, place: Path, workers: int = 2) -> None:
        self.place = place
        self.postgres, self.s3, self.head = Postgres(place=place), S3Store(place=place), RayHead(place=place)
        self.mlflow = Mlflow(place=place)
        self.proxy = Proxy(self.mlflow.port)
        self.mlflow.hosts = (f"127.0.0.1:{self.proxy.port}",)
        self.mlflow.backend, self.mlflow.artifacts = self.postgres.uri, f"s3://{self.s3.bucket}/mlflow"
        self.mlflow.store_environment = self.s3.client_environment()
        self.plugins = place / "plugins"
        self.workers = [self.worker(number) for number in range(workers)]

    def worker(self, number: int) -> RayWorker:
        """A new node with one CPU, not started."""
        environment = {
            "LT_SWEEP_CACHE": str(self.place / f"cache-{number}"),
            "PYTHONPATH": f"{ROOT}{os.pathsep}{self.plugins}",
            **self.s3.client_environment(),
        }
        return RayWorker(
            name=f"ray-worker-{number}", place=self.place, head=self.head, cpus=1, extra_environment=environment
        )

    @property
    def services(self) -> list[Service]:
        """All services, in the order of their dependencies."""
        return [self.postgres, self.s3, self.mlflow, self.head, *self.workers]

    def restore(self) -> None:
        """Start all services that are not running, and wait until all nodes have joined."""
        self.proxy.restore()
        slow = [service for service in self.services if not service.processes()]
        if self.head in slow:  # nodes end soon after their head
            for worker in self.workers:
                worker.kill()
            slow = [*dict.fromkeys([*slow, *self.workers])]
        for service in slow:
            service.start(wait=service in (self.postgres, self.s3, self.head))
        for service in slow:
            service.wait()
        if slow:
            self.wait_for_nodes()

    def wait_for_nodes(self, timeout: float = 90.0) -> None:
        """Return when all started nodes have joined."""
        wanted, deadline = 1 + sum(bool(worker.processes()) for worker in self.workers), time.monotonic() + timeout
        while self.alive_nodes() != wanted:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.alive_nodes()} nodes have joined after {timeout:.0f} s, expected {wanted}")
            time.sleep(0.5)

    def alive_nodes(self) -> int:
        """Number of nodes that the head considers alive."""
        script = (
            "import ray; ray.init(address='auto', logging_level='ERROR'); print(sum(n['Alive'] for n in ray.nodes()))"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], env=self.environment(), capture_output=True, text=True, check=False
        )
        return int(done.stdout.split()[-1]) if done.returncode == 0 else -1

    def environment(self) -> dict[str, str]:
        """Environment of a driver on this cluster."""
        return {
            **plain_environment(),
            "RAY_ADDRESS": self.head.address,
            **self.head.client_environment(),
            **self.mlflow.client_environment(),
            **self.s3.client_environment(),
            "MLFLOW_TRACKING_URI": self.tracking_uri,
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "3",
            # A driver without its head ends within seconds, instead of a minute.
            "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
            "PYTHONPATH": f"{ROOT}{os.pathsep}{self.plugins}",
        }

    @property
    def tracking_uri(self) -> str:
        """URI of MLflow through the proxy."""
        return f"http://127.0.0.1:{self.proxy.port}"

    def down(self) -> None:
        """Stop all services."""
        for service in reversed(self.services):
            service.stop(grace=5)
        self.proxy.close()


@contextlib.contextmanager
def local_cluster(place: Path, workers: int = 2) -> Iterator[LocalCluster]:
    """A running cluster, stopped at the end of the block."""
    cluster = LocalCluster(place, workers)
    try:
        cluster.restore()
        yield cluster
    finally:
        cluster.down()
