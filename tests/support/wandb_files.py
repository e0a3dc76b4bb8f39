"""Runs that wandb wrote to a storage, read from their `.wandb` files independently of the code under test."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

__all__ = ["WandbRun", "wandb_runs"]

BLOCK, FILE_HEADER, RECORD_HEADER = 32768, 7, 7


@dataclass
class WandbRun:
    """The content of one file; `exit_code` is None if the run was not finished."""

    directory: Path
    info: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    history: dict[int, dict[str, Any]] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, dict[str, Path]] = field(default_factory=dict)
    kinds: list[str] = field(default_factory=list)
    exit_code: int | None = None

    @property
    def key(self) -> str:
        """The trial's key; `sweep` for the run of the sweep."""
        return str(self.config.get("key", "sweep"))


def wandb_runs(storage: Path) -> list[WandbRun]:
    """All runs below `<storage>/wandb`, in the order of their directories."""
    return [_read(file) for file in sorted((storage / "wandb").glob("*run-*/run-*.wandb"))]


def _read(file: Path) -> WandbRun:
    run = WandbRun(file.parent)
    for data in _records(file.read_bytes()):
        record = Record.FromString(data)
        kind = record.WhichOneof("record_type")
        run.kinds.append(kind)
        if kind == "run":
            run.info = record.run
            run.config |= _values(record.run.config.update)
        elif kind == "config":
            run.config |= _values(record.config.update)
        elif kind == "history":
            run.history.setdefault(record.history.step.num, {}).update(_values(record.history.item))
        elif kind == "summary":
            run.summary |= _values(record.summary.update)
        elif kind == "artifact":
            files = {entry.path: Path(entry.local_path) for entry in record.artifact.manifest.contents}
            run.artifacts[record.artifact.name] = files
        elif kind == "request" and record.request.HasField("log_artifact"):
            logged = record.request.log_artifact.artifact
            run.artifacts[logged.name] = {entry.path: Path(entry.local_path) for entry in logged.manifest.contents}
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


def _values(items: Any) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def _records(data: bytes) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format, which wandb's files have after a header of their own."""
    position, parts = FILE_HEADER, b""
    while position + RECORD_HEADER <= len(data):
        if BLOCK - position % BLOCK < RECORD_HEADER:
            position += BLOCK - position % BLOCK
            continue
        length = int.from_bytes(data[position + 4 : position + 6], "little")
        kind = data[position + 6]  # 1: a whole record; 2, 3, 4: its first, middle and last part
        position += RECORD_HEADER
        if position + length > len(data):
            return  # wandb is writing it
        parts += data[position : position + length]
        position += length
        if kind in (1, 4):
            yield parts
            parts = b""
