"""A cluster for faults: Ray nodes, PostgreSQL, S3 and MLflow of `infra/local`, and a proxy that can be cut.

Whatever a row of the table breaks is whole again before the next. Knows services; knows no row.
"""

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

__all__ = ["ROOT", "Proxy", "RayHead", "RayWorker", "Service", "SmallDisk", "World", "a_world", "basic_auth"]


def basic_auth(user: str, password: str) -> str:
    """The header `Authorization` of a user with a password."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


class Proxy:
    """A port that leads to another, until it is cut: what is sent is then swallowed, as by a broken network."""

    def __init__(self, target: int) -> None:
        self.target, self.port = target, free_port()
        self._open = threading.Event()
        self._open.set()
        self._server = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """From now on nothing comes through; connections stay as they are."""
        self._open.clear()

    def mend(self) -> None:
        """New connections come through again; those of the cut stay dead."""
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
        for here, there in ((client, server), (server, client)):
            threading.Thread(target=self._copy, args=(here, there), daemon=True).start()

    def _copy(self, here: socket.socket, there: socket.socket) -> None:
        dead = False
        with contextlib.suppress(OSError):
            while data := here.recv(65536):
                dead = dead or not self._open.is_set()
                if not dead:
                    there.sendall(data)
        if not dead:
            for end in (here, there):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)


class SmallDisk:
    """A real file system of a few megabytes that can be filled; needs root."""

    def __init__(self, place: Path, size: str) -> None:
        self.place = place
        place.mkdir(parents=True, exist_ok=True)  # a cluster that has been at work has made its own; it is hidden
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=777", "tmpfs", str(place)], check=True)

    def fill(self) -> None:
        """Take every byte that is left."""
        block = b"\0" * 4096
        with (self.place / "filler").open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(block)

    def free(self) -> None:
        """Give them back."""
        (self.place / "filler").unlink(missing_ok=True)

    def close(self) -> None:
        """Unmount it."""
        subprocess.run(["umount", "-l", str(self.place)], check=False)


class World:
    """Three Ray nodes, of which two take packs, and everything a team has beside them.

    Attributes:
        plugins: where a package lies that is installed on every node.
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
        """A node that takes one pack at a time; it is not started yet."""
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
        """All of them, in the order in which they need one another."""
        return [self.postgres, self.s3, self.mlflow, self.head, *self.workers]

    def mend(self) -> None:
        """Start whatever does not run, and bring the cluster to its nodes."""
        self.proxy.mend()
        slow = [service for service in self.services if not service.processes()]
        if self.head in slow:  # nodes do not outlive it for long
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
        """Return when the cluster has as many nodes as were started."""
        wanted, deadline = 1 + sum(bool(worker.processes()) for worker in self.workers), time.monotonic() + timeout
        while self.alive_nodes() != wanted:
            if time.monotonic() > deadline:
                raise RuntimeError(f"the cluster has {self.alive_nodes()} nodes {timeout:.0f} s later, not {wanted}")
            time.sleep(0.5)

    def alive_nodes(self) -> int:
        """Nodes that the head takes to be alive."""
        script = (
            "import ray; ray.init(address='auto', logging_level='ERROR'); print(sum(n['Alive'] for n in ray.nodes()))"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], env=self.environment(), capture_output=True, text=True, check=False
        )
        return int(done.stdout.split()[-1]) if done.returncode == 0 else -1

    def environment(self) -> dict[str, str]:
        """Of a driver on this cluster."""
        return {
            **plain_environment(),
            "RAY_ADDRESS": self.head.address,
            **self.head.client_environment(),
            **self.mlflow.client_environment(),
            **self.s3.client_environment(),
            "MLFLOW_TRACKING_URI": self.tracking_uri,
            "MLFLOW_HTTP_REQUEST_TIMEOUT": "3",
            # A driver whose head is gone ends in seconds, not in a minute.
            "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
            "PYTHONPATH": f"{ROOT}{os.pathsep}{self.plugins}",
        }

    @property
    def tracking_uri(self) -> str:
        """MLflow through the proxy."""
        return f"http://127.0.0.1:{self.proxy.port}"

    def down(self) -> None:
        """End everything."""
        for service in reversed(self.services):
            service.stop(grace=5)
        self.proxy.close()


@contextlib.contextmanager
def a_world(place: Path, workers: int = 2) -> Iterator[World]:
    """A whole world, taken down afterwards."""
    world = World(place, workers)
    try:
        world.mend()
        yield world
    finally:
        world.down()
