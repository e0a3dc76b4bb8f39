"""The fault table: what happens to a sweep, at a moment of chance, and what has to be mended by hand afterwards.

A row is a function that is called while packs are trained; when it returns the world may still be broken, and
`World.mend` makes it whole again. Whatever a driver cannot survive it is started again after, as a retried job is.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from faults.attempt import Attempt
from support.workers import given_a_pack, in_a_pack
from support.world import SmallDisk

__all__ = ["ROWS", "Row"]

Row = Callable[[Attempt], None]


def worker_process_killed(attempt: Attempt) -> None:
    """A worker process dies in a pack."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for process in in_a_pack(process for node in attempt.world.workers for process in node.processes()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
                return
        time.sleep(0.02)
    raise RuntimeError("no worker was in a pack for 30 s")


def node_killed(attempt: Attempt) -> None:
    """A node dies with everything on it; the other goes on alone."""
    attempt.chance.choice(attempt.world.workers).kill()


def node_added(attempt: Attempt) -> None:
    """A node joins, and takes packs."""
    world = attempt.world
    world.workers.append(world.worker(len(world.workers)))
    world.workers[-1].start()
    attempt.felt = given_a_pack(world.workers[-1], world.workers[:-1])


def driver_killed(attempt: Attempt) -> None:
    """The driver is killed with -9."""
    attempt.kill_driver()


def head_killed(attempt: Attempt) -> None:
    """The head dies with the GCS, and the cluster is brought up anew; the driver is started again."""
    world = attempt.world
    world.head.kill()
    time.sleep(3 * attempt.chance.random())
    world.mend()


def mlflow_killed(attempt: Attempt) -> None:
    """MLflow's server dies, and comes back after seconds."""
    attempt.world.mlflow.kill()
    time.sleep(5 * attempt.chance.random())
    attempt.world.mlflow.start(wait=False)


def postgres_restarted(attempt: Attempt) -> None:
    """The database crashes and recovers."""
    attempt.world.postgres.kill()
    time.sleep(3 * attempt.chance.random())
    attempt.world.postgres.start()


def artifact_store_refusing(attempt: Attempt) -> None:
    """The artifact store takes no connection for seconds."""
    attempt.world.s3.kill()
    time.sleep(2 + 5 * attempt.chance.random())
    attempt.world.s3.start()


def disk_full_on_driver(attempt: Attempt) -> None:
    """The disk that holds the ledger is full until somebody makes room."""
    disk = DISKS[attempt.storage]
    disk.fill()
    assert attempt.driver is not None
    with contextlib.suppress(Exception):
        attempt.driver.wait(60)
    attempt.look()
    disk.free()


def disk_full_on_worker(attempt: Attempt) -> None:
    """The disk that a node keeps fetched features on was full from the start; now there is room."""
    DISKS[attempt.world.place / "cache-0"].free()


def network_cut(attempt: Attempt) -> None:
    """Nothing comes through between driver and MLflow for seconds."""
    attempt.world.proxy.cut()
    time.sleep(2 + 8 * attempt.chance.random())
    attempt.world.proxy.mend()


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
"""Small file systems by where they are mounted."""
