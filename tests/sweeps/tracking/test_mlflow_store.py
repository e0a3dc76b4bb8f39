"""SQLite stores are created atomically, also if the driver is killed meanwhile."""

from __future__ import annotations

import json
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
from sweeps.tracking.mlflow.store import create_store, open_client

pytestmark = pytest.mark.slow

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

from sweeps.tracking.mlflow.store import open_client
open_client(f"sqlite:///{sys.argv[1]}").search_experiments()
"""


def create_and_kill(store: Path, indices: int) -> None:
    """Start a process that creates a store and kills itself after some of the store's hundred indices."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(store), str(indices)], check=False, timeout=300)
    assert done.returncode == -signal.SIGKILL, "the store was created before the process was killed"


@pytest.mark.parametrize("indices", [1, 20, 100])
def test_a_sweep_runs_after_the_creation_of_its_store_was_killed(
    indices: int, small_sweep: Callable[..., SweepSpec], tmp_path: Path
):
    spec = small_sweep(search={"trials": 2}, tracking={"kind": "mlflow", "flush_timeout": 0.0})
    store = tmp_path / "runs" / "mlflow.db"
    store.parent.mkdir()
    create_and_kill(store, indices)
    assert not store.exists(), "a store must exist only once it is complete"
    sweeps.run(spec)
    assert store.exists()


def test_an_incomplete_store_is_an_error_with_the_remedy(small_sweep: Callable[..., SweepSpec], tmp_path: Path):
    store = tmp_path / "runs" / "mlflow.db"
    store.parent.mkdir()
    create_and_kill(store, 20)
    (left,) = store.parent.glob(".mlflow.db.*.tmp/mlflow.db")
    left.rename(store)  # where MLflow itself would create it
    with pytest.raises(LongtailError, match=r"mlflow\.db is incomplete.*mv .* `lt-sweep resume`"):
        open_client(f"sqlite:///{store}")


def test_the_first_of_two_concurrent_creations_stays(tmp_path: Path):
    file, made, waiting = tmp_path / "store.db", threading.Barrier(2, timeout=30), []

    def make(name: str) -> None:
        def contents(place: Path) -> None:
            place.write_text(name)
            made.wait()

        create_store(file, contents)
        waiting.append(file.read_text())

    threads = [threading.Thread(target=make, args=(name,)) for name in ("one", "other")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert waiting in (["one", "one"], ["other", "other"]), "both see the same store"
    assert [path.name for path in tmp_path.iterdir()] == ["store.db"]


def test_an_existing_store_is_not_changed(tmp_path: Path):
    file = tmp_path / "store.db"
    with sqlite3.connect(file) as store:
        store.execute("create table mine (x)")
    create_store(file, lambda made: pytest.fail("the store exists"))


def test_an_unwritable_place_is_a_storage_error(tmp_path: Path):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a directory should be")
    with pytest.raises(StorageError, match=r"cannot write .*store\.db"):
        create_store(blocked / "store.db", lambda made: made.touch())


@pytest.mark.parametrize("exists", [False, True])
def test_abandoned_temporary_stores_are_removed_after_an_hour(exists: bool, tmp_path: Path):
    file = tmp_path / "store.db"
    if exists:
        file.touch()
    for name, age in ((".store.db.old.tmp", 3700.0), (".store.db.new.tmp", 60.0), (".other.db.old.tmp", 3700.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "store.db").touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    create_store(file, lambda made: made.touch())
    assert {path.name for path in tmp_path.iterdir()} == {"store.db", ".store.db.new.tmp", ".other.db.old.tmp"}


ENVIRONMENT = """
import os, sys, threading, time
import sweeps
from sweeps.config.spec import load_sweep
from sweeps.experiment.events import PhaseFinished, SweepStarted

changed = []

def record(change):
    def recorded(*arguments):
        if threading.current_thread() is not threading.main_thread():
            changed.append(arguments)
        change(*arguments)
    return recorded

os.putenv, os.unsetenv = record(os.putenv), record(os.unsetenv)
os.environ["MLFLOW_RUN_ID"] = "of a parent process"
while_training = []

def listen(event):
    if isinstance(event, SweepStarted):
        store, deadline = event.directory.path.with_name("mlflow.db"), time.monotonic() + 60
        while not store.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
    if isinstance(event, PhaseFinished):  # the champion is registered later, when nothing is trained
        while_training.extend(changed)

sweeps.run(load_sweep(sys.argv[1]), callbacks=[listen])
assert os.environ.get("MLFLOW_HTTP_REQUEST_MAX_RETRIES") == "0"
assert not while_training, while_training
"""


def test_no_other_thread_changes_the_environment_while_a_sweep_trains(
    small_sweep: Callable[..., SweepSpec], tmp_path: Path
) -> None:
    """C libraries such as those of Ray and the AWS SDK read it without a lock, and crash if it changes."""
    file = tmp_path / "sweep.json"
    file.write_text(json.dumps(small_sweep(tracking={"kind": "mlflow"}).resolved()))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    subprocess.run([sys.executable, "-c", ENVIRONMENT, str(file)], check=True, env=environment)
