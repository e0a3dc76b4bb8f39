"""The faults: each interrupts a sweep at a random moment; some need a repair afterwards (`restore`).

A fault is a function that is called while packs are trained. It may leave the cluster damaged until
`LocalCluster.restore`. A driver that ends because of a fault is restarted, like a job with retries.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from faults.attempt import Attempt
from support.cluster import SmallDisk
from support.workers import given_a_pack, in_a_pack

__all__ = ["ROWS", "Row"]

Row = Callable[[Attempt], None]


def worker_process_killed(attempt: Attempt) -> None:
    """Kill a worker process while it trains a pack."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for process in in_a_pack(process for node in attempt.cluster.workers for process in node.processes()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
                return
        time.sleep(0.02)
    raise RuntimeError("no worker trained a pack for 30 s")


def node_killed(attempt: Attempt) -> None:
    """Kill a node with all of its processes; the other node continues alone."""
    attempt.rng.choice(attempt.cluster.workers).kill()


def node_added(attempt: Attempt) -> None:
    """Add a node, which then receives packs."""
    cluster = attempt.cluster
    cluster.workers.append(cluster.worker(len(cluster.workers)))
    cluster.workers[-1].start()
    attempt.felt = given_a_pack(cluster.workers[-1], cluster.workers[:-1])


def driver_killed(attempt: Attempt) -> None:
    """Kill the driver with SIGKILL."""
    attempt.kill_driver()


def head_killed(attempt: Attempt) -> None:
    """Kill the head node with the GCS and restart the cluster; the driver is restarted too."""
    cluster = attempt.cluster
    cluster.head.kill()
    time.sleep(3 * attempt.rng.random())
    cluster.restore()


def mlflow_killed(attempt: Attempt) -> None:
    """Kill the MLflow server and restart it after a few seconds."""
    attempt.cluster.mlflow.kill()
    time.sleep(5 * attempt.rng.random())
    attempt.cluster.mlflow.start(wait=False)


def postgres_restarted(attempt: Attempt) -> None:
    """Kill the database server and restart it."""
    attempt.cluster.postgres.kill()
    time.sleep(3 * attempt.rng.random())
    attempt.cluster.postgres.start()


def artifact_store_refusing(attempt: Attempt) -> None:
    """Stop the artifact store for a few seconds, so that it refuses connections."""
    attempt.cluster.s3.kill()
    time.sleep(2 + 5 * attempt.rng.random())
    attempt.cluster.s3.start()


def disk_full_on_driver(attempt: Attempt) -> None:
    """Fill the disk with the ledger, and free it after the driver has ended."""
    disk = DISKS[attempt.storage]
    disk.fill()
    assert attempt.driver is not None
    with contextlib.suppress(Exception):
        attempt.driver.wait(60)
    attempt.record_finished()
    disk.free()


def disk_full_on_worker(attempt: Attempt) -> None:
    """Free the disk with the feature cache of a node, which was full from the start."""
    DISKS[attempt.cluster.place / "cache-0"].free()


def network_cut(attempt: Attempt) -> None:
    """Drop all data between driver and MLflow for a few seconds."""
    attempt.cluster.proxy.cut()
    time.sleep(2 + 8 * attempt.rng.random())
    attempt.cluster.proxy.restore()


ROWS: dict[str, Row] = {
    "worker process killed": worker_process_killed,
    "node killed": node_killed,
    "node added": node_added,
    "driver killed": driver_killed,
    "GCS/head killed and restarted": head_killed,
    "MLflow server killed and restarted": mlflow_killed,
    "PostgreSQL restarted": postgres_restarted,
    "artifact store refusing": artifact_store_refusing,
    "disk full on driver": disk_full_on_driver,
    "disk full on worker": disk_full_on_worker,
    "network cut between driver and MLflow": network_cut,
}

DISKS: dict[Path, SmallDisk] = {}
"""Small file systems by mount point."""
