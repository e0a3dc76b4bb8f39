"""A script that measures the memory of fits, and runs fits with too little of it; writes JSON to standard output.

Peaks are meaningful only in a fresh process with one thread and a malloc that returns freed memory
(MALLOC_MMAP_THRESHOLD_). Linux only: it uses /proc and limits the address space, so that allocations fail.
"""

import gc
import json
import logging
import resource
import sys
from pathlib import Path

import numpy as np
import torch
from support.banks import make_bank
from support.compositions import ALLOWED, DEFAULTS
from support.engines import make_runs

from lt_train.core.errors import OutOfMemory
from lt_train.features.bank import FeatureBank
from lt_train.methods.base import MethodSpec
from lt_train.retrain import fused, memory, stack
from lt_train.retrain.base import EpochSelection, Halving, Run, RunResult
from lt_train.retrain.memory import lane_bytes

FEW, MANY = 4, 16


def bytes_of(which: str) -> int:
    """Current and peak address space (`VmSize`, `VmPeak`) or resident memory (`VmRSS`, `VmHWM`)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{which}:"))


# Bytes per lane


def peak(bank: FeatureBank, method: MethodSpec, lanes: int, batch_size: int) -> int:
    """Peak memory of a fit in bytes, above what was used before."""
    runs = make_runs(method, epochs=1, batch_size=batch_size, seeds=(0,) * lanes)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = bytes_of("VmRSS")
    fused.fit(bank, runs, rule=EpochSelection("best"))
    return bytes_of("VmHWM") - before


def lanes_of_every_method() -> list[dict[str, object]]:
    """Measured and estimated bytes per lane: where weights dominate, for every head, and where logits dominate."""
    heads = {name: method for name, method in ALLOWED.items() if name.startswith("ce-")}
    untrained = {name: method for name, method in DEFAULTS.items() if not method.trains}
    answers: list[dict[str, object]] = []
    stack.LOGIT_BYTES = {"cpu": 2**17}  # shared by all lanes, so not part of the cost of one more
    for shape, methods, counts, dim, batch_size in (
        ("weights", {**heads, **untrained, "maxnorm": DEFAULTS["maxnorm"]}, (1,) * 100, 500, 16),
        ("logits", DEFAULTS, (1,) * 250, 8, 250),
    ):
        bank = make_bank(counts, dim=dim, views=1, test_views=1, val_per_class=1, test_images=len(counts))
        peak(bank, DEFAULTS["los"], MANY, batch_size)
        for name, method in methods.items():
            few, many = (peak(bank, method, lanes, batch_size) for lanes in (FEW, MANY))
            training = make_runs(method, batch_size=batch_size, seeds=(0,))[0].training
            estimated = lane_bytes(method, training, num_classes=len(counts), feature_dim=dim)
            answers.append({"case": f"{name}, {shape}", "took": (many - few) / (MANY - FEW), "estimated": estimated})
    return answers


# Too little memory


def limited(
    bank: FeatureBank, runs: list[Run], expected: list[RunResult], extra: int, halving: Halving | None = None
) -> dict[str, object]:
    """Results or error of `fused.fit` with at most `extra` more bytes of address space, and the log."""
    logged: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("lt_train").addHandler(handler)
    resource.setrlimit(resource.RLIMIT_AS, (bytes_of("VmSize") + extra, resource.RLIM_INFINITY))
    results, error = [], ""
    try:
        results = fused.fit(bank, runs, halving=halving)
    except OutOfMemory as short:
        error = str(short)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        logging.getLogger("lt_train").removeHandler(handler)
    apart = [
        float(np.abs(found.kept.state["weight"] - wanted.kept.state["weight"]).max())
        for found, wanted in zip(results, expected, strict=False)
        if found.kept is not None and wanted.kept is not None
    ]
    return {"results": len(apart), "apart": max(apart, default=0.0), "error": error, "logged": logged}


def less_and_less() -> dict[str, object]:
    """32 runs with memory for 32, about 24, about 12 and less than one of them."""
    bank = make_bank((2,) * 100, dim=1500, views=1, test_views=1, val_per_class=1, test_images=100)
    runs = make_runs("los", epochs=2, seeds=(0,) * 32, alike=("momentum", "weight_decay"))
    fused.fit(bank, runs[:2])
    start, peaks = bytes_of("VmSize"), {}
    expected: list[RunResult] = []
    for lanes in (1, 8, 16, 32):
        expected = fused.fit(bank, runs[:lanes])
        peaks[lanes] = bytes_of("VmPeak") - start
    half, quarter = (peaks[16] + peaks[32]) // 2, (peaks[8] + peaks[16]) // 2
    return {
        "enough": limited(bank, runs, expected, 2 * peaks[32]),
        "half": limited(bank, runs, expected, half),
        "quarter": limited(bank, runs, expected, quarter),
        "nothing": limited(bank, runs, expected, peaks[1] // 4),
        "halving": limited(bank, runs, expected, half, Halving((1,))),
    }


def refused_by_torch() -> dict[str, str]:
    """Errors of failed allocations; some of torch's are plain RuntimeErrors."""
    wanted = {
        "a tensor": lambda: torch.empty(2**30),
        "a tensor larger than any memory": lambda: torch.empty(2**60),
        "many small pieces": lambda: torch.zeros(1).expand(10**8).split(1),
        "a list": lambda: torch.zeros(1).expand(10**9).tolist(),
        "an array": lambda: np.zeros(2**31),
    }
    found = {}
    resource.setrlimit(resource.RLIMIT_AS, (bytes_of("VmSize") + 60 * 2**20, resource.RLIM_INFINITY))
    for name, ask in wanted.items():
        try:
            ask()
        except (MemoryError, RuntimeError) as error:
            found[name] = f"{memory.is_out_of_memory(error)}: {type(error).__name__}: {error}"
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    fused.STACK_BYTES = {"cpu": 2**40}
    gc.freeze()  # makes collections fast
    answers = {"less": less_and_less(), "refused": refused_by_torch(), "lanes": lanes_of_every_method()}
    print(json.dumps({**answers, "sympy": "sympy" in sys.modules}))
