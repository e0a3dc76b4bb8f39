"""A driver killed while MLflow makes its tables leaves nothing that a later start trips over."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import sweeps
from lt_train.core.errors import LongtailError, StorageError
from sweeps.config.spec import SweepSpec
from sweeps.tracking.mlflow import _client
from sweeps.tracking.new_store import make_store

KILLED = """
import os, signal, sys
from sqlalchemy import event
from sqlalchemy.engine import Engine

left = int(sys.argv[2])

@event.listens_for(Engine, "after_cursor_execute")
def count(connection, cursor, statement, *others):
    global left
    left -= statement.lstrip().upper().startswith("CREATE INDEX")
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

from sweeps.tracking.mlflow import _client
_client(f"sqlite:///{sys.argv[1]}").search_experiments()
"""


def killed(store: Path, indices: int) -> None:
    """By its own hand, once it has made so many of the store's hundred indices."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(store), str(indices)], check=False, timeout=300)
    assert done.returncode == -signal.SIGKILL, "the store was made before the process was killed"


@pytest.mark.parametrize("indices", [1, 20, 100])
def test_a_driver_killed_while_the_store_is_made_is_resumed(
    indices: int, small_sweep: Callable[..., SweepSpec], tmp_path: Path
):
    spec = small_sweep(search={"trials": 2}, tracking={"kind": "mlflow", "flush_timeout": 0.0})
    store = tmp_path / "runs" / "mlflow.db"
    store.parent.mkdir()
    killed(store, indices)
    assert not store.exists(), "a store is there once it is whole"
    sweeps.run(spec)
    assert store.exists()


def test_a_half_made_store_of_before_is_told_with_what_to_do(small_sweep: Callable[..., SweepSpec], tmp_path: Path):
    store = tmp_path / "runs" / "mlflow.db"
    store.parent.mkdir()
    killed(store, 20)
    (left,) = store.parent.glob(".mlflow.db.*.tmp/mlflow.db")
    left.rename(store)  # where MLflow makes it by itself
    with pytest.raises(LongtailError, match=r"mlflow\.db is not whole.*Move it away \(mv .* `lt-sweep resume`"):
        _client(f"sqlite:///{store}")


def test_of_two_that_make_it_at_once_the_first_stays(tmp_path: Path):
    file, made, waiting = tmp_path / "store.db", threading.Barrier(2, timeout=30), []

    def make(name: str) -> None:
        def contents(place: Path) -> None:
            place.write_text(name)
            made.wait()

        make_store(file, contents)
        waiting.append(file.read_text())

    threads = [threading.Thread(target=make, args=(name,)) for name in ("one", "other")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert waiting in (["one", "one"], ["other", "other"]), "both see the same store"
    assert [path.name for path in tmp_path.iterdir()] == ["store.db"]


def test_a_store_that_is_there_is_left_alone(tmp_path: Path):
    file = tmp_path / "store.db"
    with sqlite3.connect(file) as store:
        store.execute("create table mine (x)")
    make_store(file, lambda made: pytest.fail("it is there"))


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a directory should be")
    with pytest.raises(StorageError, match=r"cannot write .*store\.db"):
        make_store(blocked / "store.db", lambda made: made.touch())


@pytest.mark.parametrize("there", [False, True])
def test_what_killed_processes_left_is_removed_after_an_hour(there: bool, tmp_path: Path):
    file = tmp_path / "store.db"
    if there:
        file.touch()
    for name, age in ((".store.db.old.tmp", 3700.0), (".store.db.new.tmp", 60.0), (".other.db.old.tmp", 3700.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "store.db").touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    make_store(file, lambda made: made.touch())
    assert {path.name for path in tmp_path.iterdir()} == {"store.db", ".store.db.new.tmp", ".other.db.old.tmp"}
