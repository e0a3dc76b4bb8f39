"""What a sweep's ledger holds, read as JSON and not by the code under test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sweeps.spec import SweepSpec

__all__ = ["pack_lines", "runs_by_key", "runs_of"]


def pack_lines(directory: Path) -> list[dict[str, Any]]:
    """The lines of packs in a sweep directory, whole ones alone; there are others, of drivers."""
    file = directory / "ledger.jsonl"
    lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
    whole = [json.loads(line) for line in lines if line.endswith(b"\n")]
    return [line for line in whole if "pack" in line]


def runs_of(spec: SweepSpec) -> list[dict[str, Any]]:
    """Every run of a sweep, in the order in which they were finished."""
    return [run for line in pack_lines(Path(spec.storage) / spec.name) for run in line["runs"]]


def runs_by_key(spec: SweepSpec) -> dict[str, dict[str, Any]]:
    """Every run of a sweep by its key."""
    return {run["key"]: run for run in runs_of(spec)}
