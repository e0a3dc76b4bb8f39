"""A sweep's ledger, read as JSON and independently of the code under test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sweeps.config.spec import SweepSpec

__all__ = ["pack_lines", "runs_by_key", "runs_of"]


def pack_lines(directory: Path) -> list[dict[str, Any]]:
    """The valid pack lines of a sweep directory: complete, and not written by a driver that had been replaced."""
    file = directory / "ledger.jsonl"
    term, found = 0, []
    for text in file.read_bytes().splitlines(keepends=True) if file.exists() else ():
        if not text.endswith(b"\n"):
            break
        line = json.loads(text)
        if line.get("term", 0) >= term:
            term = line.get("term", 0)
            found += [line] if "pack" in line else []
    return found


def runs_of(spec: SweepSpec) -> list[dict[str, Any]]:
    """Every run of a sweep, in the order of the ledger."""
    return [run for line in pack_lines(Path(spec.storage) / spec.name) for run in line["runs"]]


def runs_by_key(spec: SweepSpec) -> dict[str, dict[str, Any]]:
    """Every run of a sweep by its key."""
    return {run["key"]: run for run in runs_of(spec)}
