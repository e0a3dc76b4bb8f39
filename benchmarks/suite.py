"""The whole suite: one part after the other, one document. Knows which parts there are, not how they measure."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import Any

from measure import OthersShare
from piece import measured
from report import goals
from settings import Settings

__all__ = ["PARTS", "measure"]

PARTS = ("a", "b", "c", "d", "e", "f")


def measure(settings: Settings, parts: Iterable[str]) -> dict[str, Any]:
    """Numbers by name (`gemm_fraction`, `growth.N`, ...), under `timings` what they were made of, and the goals."""
    document: dict[str, Any] = {
        "schema": 1,
        "level": settings.level,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": measured("machine", settings),
        "seconds": {},
        "others_cpu_share": {},
    }
    timings: dict[str, Any] = {}
    begin = time.perf_counter()
    for part in parts:
        print(f"part {part} ...", file=sys.stderr, flush=True)
        start, others = time.perf_counter(), OthersShare()
        found = measured(part, settings)
        document |= found["values"]
        timings |= found["timings"]
        document["seconds"][part] = round(time.perf_counter() - start, 1)
        if part != "c":  # Ray's servers are nobody's children and would be taken for others
            document["others_cpu_share"][part] = others.share()
    document["seconds"]["total"] = round(time.perf_counter() - begin, 1)
    return document | {"timings": timings, "goals": goals(document | {"timings": timings})}
