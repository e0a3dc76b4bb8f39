"""Runs the parts of the suite one after another and combines their results into one document."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import Any

from measure import OtherProcesses
from piece import run_piece
from report import goals
from settings import Settings

__all__ = ["PARTS", "measure"]

PARTS = ("a", "b", "c", "d", "e", "f")


def measure(settings: Settings, parts: Iterable[str]) -> dict[str, Any]:
    """Values by name (`gemm_fraction`, `growth.N`, ...), their raw times under `timings`, and the goals."""
    document: dict[str, Any] = {
        "schema": 1,
        "level": settings.level,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": run_piece("machine", settings),
        "seconds": {},
        "others_cpu_share": {},
    }
    timings: dict[str, Any] = {}
    begin = time.perf_counter()
    for part in parts:
        print(f"part {part}", file=sys.stderr, flush=True)
        start, others = time.perf_counter(), OtherProcesses()
        found = run_piece(part, settings)
        document |= found["values"]
        timings |= found["timings"]
        document["seconds"][part] = round(time.perf_counter() - start, 1)
        if part != "c":  # servers of Ray are not children of this process and would count as others
            document["others_cpu_share"][part] = others.cpu_share()
    document["seconds"]["total"] = round(time.perf_counter() - begin, 1)
    return document | {"timings": timings, "goals": goals(document | {"timings": timings})}
