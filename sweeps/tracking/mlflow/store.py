"""Connecting to an MLflow store, and creating SQLite stores atomically.

MLflow creates its tables with about a thousand statements outside any transaction, and cannot repair a store whose
creation was killed. A new store is therefore created under a temporary name and then renamed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lt_train.core.errors import LongtailError
from lt_train.core.io import sync, writing

__all__ = ["create_store", "open_client", "set_environment", "sqlite_file"]


ABANDONED_SECONDS = 3600.0
"""Age after which a store under a temporary name is considered abandoned by a killed process."""


def set_environment() -> None:
    """Configure MLflow by environment variables, which is the only way; changes nothing if they are set already.

    A process that starts threads calls this before: C libraries such as Ray's and the AWS SDK read the environment
    without a lock, and crash if it changes at that moment.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    # MLflow's own retries repeat requests whose answer was lost, which creates runs twice, and block for minutes.
    # `BackgroundTracker` retries instead, after looking up what exists.
    if os.environ.get("MLFLOW_HTTP_REQUEST_MAX_RETRIES") != "0":
        os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    # Do not write to the run of a parent process.
    os.environ.pop("MLFLOW_RUN_ID", None)


def open_client(uri: str) -> Any:
    """An `mlflow.MlflowClient`; creates a SQLite store that does not exist.

    Raises:
        LongtailError: the SQLite store is incomplete.
        StorageError: the disk is full or not writable.
    """
    set_environment()
    import mlflow

    # After the import, which sets levels.
    for name in ("mlflow", "mlflow.store.db.utils", "mlflow.utils.environment", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)

    store = sqlite_file(uri)
    if store is None:
        return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
    file, options = store
    create_store(file, lambda temporary: _connect(f"sqlite:///{temporary}{options}"))
    try:
        return _connect(uri)
    except Exception as error:  # of SQLAlchemy or of MLflow
        if not _is_incomplete(error):
            raise
        raise LongtailError(
            f"the MLflow store {file} is incomplete: a process was killed while MLflow created or upgraded its tables. "
            f"Move it away (mv {file} {file}.broken) and run `lt-sweep resume` on each sweep in it: that writes the "
            "sweeps to a new store from their ledgers and trains nothing"
        ) from error


def _connect(uri: str) -> Any:
    """A client that has made one request, at which MLflow creates missing tables."""
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
    client.search_experiments(max_results=1)
    return client


def _is_incomplete(error: Exception) -> bool:
    """Whether an error means that the tables of a store were created in part."""
    texts = ("already exists", "duplicate column name", "out-of-date database schema")
    return any(text in str(error) for text in texts)


def sqlite_file(uri: str) -> tuple[Path, str] | None:
    """The file and the options, such as `?timeout=30`, of a SQLite URI.

    None for other URIs, and for names with a meaning in SQLite (`file:...`, `:memory:`).
    """
    name, mark, options = uri.removeprefix("sqlite:///").partition("?")
    if not uri.startswith("sqlite:///") or name in ("", ":memory:") or name.startswith("file:"):
        return None
    return Path(name), mark + options


def create_store(file: Path, create: Callable[[Path], object]) -> None:
    """Create a store with `create`, unless `file` exists. Of several concurrent calls, the first one's store stays.

    Raises:
        StorageError: the disk is full or not writable.
    """
    _remove_abandoned(file)
    if file.exists():
        return
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        directory = Path(tempfile.mkdtemp(prefix=f".{file.name}.", suffix=".tmp", dir=file.parent))
        try:
            temporary = directory / file.name
            create(temporary)
            sync(temporary)
            _rename(temporary, file)
            sync(file.parent)
        finally:
            shutil.rmtree(directory, ignore_errors=True)


def _remove_abandoned(file: Path) -> None:
    """Remove temporary stores of killed processes."""
    for directory in file.parent.glob(f".{file.name}.*.tmp"):
        with contextlib.suppress(OSError):  # another process may remove it, too
            if time.time() - directory.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(directory)


def _rename(temporary: Path, file: Path) -> None:
    """Rename a store, without replacing one that another process has created meanwhile."""
    try:
        os.link(temporary, file)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links; there, two concurrent calls are not detected
        if not file.exists():
            temporary.rename(file)
