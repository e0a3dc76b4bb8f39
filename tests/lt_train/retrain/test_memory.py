"""Running out of memory, simulated and real, and the memory estimate per lane against measurements."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support.banks import make_bank
from support.compositions import DEFAULTS
from support.engines import assert_same, make_runs

from lt_train.core.errors import BankError, OutOfMemory
from lt_train.methods.base import METHODS, TrainingSpec
from lt_train.retrain import fused
from lt_train.retrain.base import EpochSelection, Run, RunResult
from lt_train.retrain.memory import fit_in_memory, lane_bytes

TESTS = Path(__file__).parents[2]


# Measured, in a separate process


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("memory is measured by Linux' /proc")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "OMP_NUM_THREADS": "1",
    }
    script = TESTS / "support" / "measure_memory.py"
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answers: dict[str, Any] = json.loads(done.stdout)
    return answers


def halves(runs: int) -> str:
    return f"memory ran out with {runs} runs in one pack; training two halves one after the other"


def test_with_enough_memory_nothing_is_logged(measured: dict[str, Any]) -> None:
    assert measured["less"]["enough"] == {"results": 32, "apart": 0.0, "error": "", "logged": []}


@pytest.mark.parametrize(("limit", "logged"), [("half", [32]), ("quarter", [32, 16, 16])])
def test_halves_give_the_same_results(measured: dict[str, Any], limit: str, logged: list[int]) -> None:
    found = measured["less"][limit]
    assert (found["results"], found["error"]) == (32, "")
    assert found["apart"] < 1e-5
    # Memory that the first half did not release may cause another split of the second.
    assert found["logged"][: len(logged)] == [halves(runs) for runs in logged]
    assert len(found["logged"]) <= 2 * len(logged)


def test_a_single_run_that_is_too_large_is_an_error(measured: dict[str, Any]) -> None:
    found = measured["less"]["nothing"]
    assert "single run; use a smaller batch_size" in found["error"]
    assert found["logged"] == [halves(runs) for runs in (32, 16, 8, 4, 2)]


def test_runs_that_halving_compares_are_not_split(measured: dict[str, Any]) -> None:
    found = measured["less"]["halving"]
    assert "32 runs that successive halving must compare" in found["error"]
    assert found["logged"] == []


def test_every_failed_allocation_is_recognised(measured: dict[str, Any]) -> None:
    refused = measured["refused"]
    assert refused.keys() == {"a tensor", "a tensor larger than any memory", "many small pieces", "a list", "an array"}
    assert all(answer.startswith("True: ") for answer in refused.values()), refused
    assert "RuntimeError" in refused["many small pieces"], "the texts of OUT_OF_MEMORY are no longer needed"


def test_a_lane_takes_no_more_than_estimated(measured: dict[str, Any]) -> None:
    """5 % allow for rounding up to pages."""
    cases = {case["case"]: (case["took"], case["estimated"]) for case in measured["lanes"]}
    assert {name.partition(",")[0] for name in cases} >= DEFAULTS.keys()
    too_low = {name: sizes for name, sizes in cases.items() if sizes[0] > 1.05 * sizes[1]}
    assert too_low == {}


def test_the_estimate_is_close_for_a_linear_head(measured: dict[str, Any]) -> None:
    """An estimate that is far too high would make packs far too small."""
    near = [case for case in measured["lanes"] if case["case"] == "ce-head:linear-sampler:instance, weights"]
    assert len(near) == 1
    assert near[0]["took"] > 0.7 * near[0]["estimated"]


def test_a_worker_need_not_import_sympy(measured: dict[str, Any]) -> None:
    """Importing it would add four seconds to the start of every process."""
    assert not measured["sympy"]


# Simulated


class Scarce:
    """Trains at most `capacity` runs at once, and fails with `error` for more."""

    def __init__(self, capacity: int, error: Exception) -> None:
        self.capacity, self.error = capacity, error
        self.trained: list[int] = []

    def __call__(self, runs: Sequence[Run]) -> list[RunResult]:
        self.trained.append(len(runs))
        if len(runs) > self.capacity:
            raise self.error
        return fused.fit(BANK, runs)


BANK = make_bank()
ERRORS = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


@pytest.mark.parametrize("error", ERRORS, ids=[str(error)[:40] or "MemoryError" for error in ERRORS])
def test_runs_are_halved_until_they_fit(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    runs, train = make_runs("los", epochs=1), Scarce(3, error)
    with caplog.at_level(logging.WARNING):
        results = fit_in_memory(train, runs, splittable=True)
    assert train.trained == [8, 4, 2, 2, 4, 2, 2]
    assert caplog.messages == [halves(8), halves(4), halves(4)]
    for run, found, expected in zip(runs, results, fused.fit(BANK, runs), strict=True):
        assert_same(BANK, run, found, expected, 1e-5, EpochSelection())


@pytest.mark.parametrize("number", [1, 3, 5, 8])
def test_runs_are_split_down_to_single_runs(number: int) -> None:
    runs, train = make_runs("los", epochs=1)[:number], Scarce(1, ERRORS[0])
    assert len(fit_in_memory(train, runs, splittable=True)) == number
    assert train.trained.count(1) == number
    with pytest.raises(OutOfMemory, match=r"single run; use a smaller batch_size"):
        fit_in_memory(Scarce(0, ERRORS[0]), runs, splittable=True)


def test_halving_is_not_split() -> None:
    train = Scarce(3, ERRORS[1])
    with pytest.raises(OutOfMemory, match=r"8 runs that successive halving must compare.*lanes_per_pack"):
        fit_in_memory(train, make_runs("los"), splittable=False)
    with pytest.raises(OutOfMemory, match="with a single run"):
        fit_in_memory(Scarce(0, ERRORS[1]), make_runs("los")[:1], splittable=False)
    assert train.trained == [8]


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("no"), BankError("no")], ids=repr
)
def test_other_errors_are_raised(error: Exception) -> None:
    train = Scarce(3, error)
    with pytest.raises(type(error), match=str(error)):
        fit_in_memory(train, make_runs("los"), splittable=True)
    assert train.trained == [8]


def test_lane_bytes_by_hand() -> None:
    """Heads of 10 x (20 + 1), 5 times the logits of a batch of 8, statistics of 10 classes; 4 bytes each."""
    sizes = {"num_classes": 10, "feature_dim": 20}
    training = TrainingSpec(batch_size=8)
    assert lane_bytes(DEFAULTS["los"], training, **sizes) == 4 * (4 * 210 + 5 * 80 + 160)
    assert lane_bytes(DEFAULTS["vanilla"], training, **sizes) == 4 * (2 * 210 + 5 * 80 + 160)
    assert lane_bytes(DEFAULTS["los"], TrainingSpec(batch_size=16, epochs=99), **sizes) == 4 * (4 * 210 + 800 + 160)
    # Half of the lanes move to new stacks while the old ones still exist.
    assert lane_bytes(DEFAULTS["los"], training, **sizes, halving_factor=2.0) == 4 * (5.5 * 210 + 5 * 80 + 160)
    # A hidden layer of 7: more weights in every copy, and more values per image.
    mlp = METHODS.parse({"kind": "ce", "head": {"kind": "mlp", "hidden": 7}})
    assert lane_bytes(mlp, training, **sizes) == 4 * (4 * (210 + 7 * 21 + 70) + 5 * 8 * 34 + 160)
    # 10 factors are trained; the returned head includes the frozen classifier.
    assert lane_bytes(DEFAULTS["lws"], training, **sizes) == 4 * (3 * 10 + 10 + 210 + 5 * 80 + 160)
