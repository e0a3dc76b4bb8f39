"""Memory that runs out, for real, and what a lane is said to take of it against what it takes."""

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

from lt_train.core.errors import BankError, MemoryShort
from lt_train.methods.base import TrainingSpec
from lt_train.retrain import fused
from lt_train.retrain.base import EpochSelection, Halving, Run, RunResult
from lt_train.retrain.memory import lane_bytes

TESTS = Path(__file__).parents[2]


# For real, in a process of its own


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
    return f"memory ran out with {runs} runs side by side: training them in halves, one after the other"


def test_with_enough_memory_nothing_is_said(measured: dict[str, Any]) -> None:
    assert measured["less"]["enough"] == {"results": 32, "apart": 0.0, "error": "", "logged": []}


@pytest.mark.parametrize(("limit", "logged"), [("half", [32]), ("quarter", [32, 16, 16])])
def test_with_less_the_halves_give_the_same(measured: dict[str, Any], limit: str, logged: list[int]) -> None:
    found = measured["less"][limit]
    assert (found["results"], found["error"]) == (32, "")
    assert found["apart"] < 1e-5
    # What the first half leaves behind may cost the second another cut.
    assert found["logged"][: len(logged)] == [halves(runs) for runs in logged]
    assert len(found["logged"]) <= 2 * len(logged)


def test_one_run_that_is_too_large_is_given_up(measured: dict[str, Any]) -> None:
    found = measured["less"]["nothing"]
    assert found["error"] == (
        "memory ran out with a single run; use a smaller batch_size or a machine with more memory"
    )
    assert found["logged"] == [halves(runs) for runs in (32, 16, 8, 4, 2)]


def test_runs_that_are_compared_side_by_side_are_not_cut(measured: dict[str, Any]) -> None:
    found = measured["less"]["halving"]
    assert found["error"] == (
        "memory ran out with 32 runs that successive halving has to compare side by side; "
        "set resources.memory_per_pack or lanes_per_pack lower"
    )
    assert found["logged"] == []


def test_whatever_torch_says_is_understood(measured: dict[str, Any]) -> None:
    refused = measured["refused"]
    assert refused.keys() == {"a tensor", "a tensor of no machine", "many small pieces", "a list", "an array"}
    assert all(answer.startswith("True: ") for answer in refused.values()), refused
    assert "RuntimeError" in refused["many small pieces"], "or the text need not be looked for any more"


def test_a_lane_takes_no_more_than_is_said(measured: dict[str, Any]) -> None:
    """Some bytes more are what a page is rounded up by."""
    cases = {case["case"]: (case["took"], case["said"]) for case in measured["lanes"]}
    assert {name.partition(",")[0] for name in cases} >= DEFAULTS.keys()
    too_low = {name: sizes for name, sizes in cases.items() if sizes[0] > 1.05 * sizes[1]}
    assert too_low == {}


def test_what_is_said_is_near_for_the_head_of_most_methods(measured: dict[str, Any]) -> None:
    """Were it far too much, packs would be far too small."""
    near = [case for case in measured["lanes"] if case["case"] == "ce-head:linear-sampler:instance, weights"]
    assert len(near) == 1
    assert near[0]["took"] > 0.7 * near[0]["said"]


def test_a_worker_need_not_import_sympy(measured: dict[str, Any]) -> None:
    """Four seconds at the start of every process, for a head's module that torch can make without."""
    assert not measured["sympy"]


# The parts of it


class Scarce:
    """Trains as many runs at once as there is room for, and fails as torch does with more."""

    def __init__(self, room: int, error: Exception) -> None:
        self.room, self.error = room, error
        self.trained: list[int] = []

    def __call__(self, runs: Sequence[Run]) -> list[RunResult]:
        self.trained.append(len(runs))
        if len(runs) > self.room:
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
        results = fused._fit_in_memory(train, runs, None)
    assert train.trained == [8, 4, 2, 2, 4, 2, 2]
    assert caplog.messages == [halves(8), halves(4), halves(4)]
    for run, found, expected in zip(runs, results, fused.fit(BANK, runs), strict=True):
        assert_same(BANK, run, found, expected, 1e-5, EpochSelection())


@pytest.mark.parametrize("number", [1, 3, 5, 8])
def test_in_the_end_one_run_is_left(number: int) -> None:
    runs, train = make_runs("los", epochs=1)[:number], Scarce(1, ERRORS[0])
    assert len(fused._fit_in_memory(train, runs, None)) == number
    assert train.trained.count(1) == number
    with pytest.raises(MemoryShort, match=r"^memory ran out with a single run; use a smaller batch_size or a machine"):
        fused._fit_in_memory(Scarce(0, ERRORS[0]), runs, None)


def test_halving_is_not_cut() -> None:
    train = Scarce(3, ERRORS[1])
    with pytest.raises(MemoryShort, match=r"with 8 runs that successive halving has to compare .*lanes_per_pack lower"):
        fused._fit_in_memory(train, make_runs("los"), Halving((1,)))
    with pytest.raises(MemoryShort, match="with a single run"):
        fused._fit_in_memory(Scarce(0, ERRORS[1]), make_runs("los")[:1], Halving((1,)))
    assert train.trained == [8]


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("no"), BankError("no")], ids=repr
)
def test_other_errors_are_not_tried_again(error: Exception) -> None:
    train = Scarce(3, error)
    with pytest.raises(type(error), match=str(error)):
        fused._fit_in_memory(train, make_runs("los"), None)
    assert train.trained == [8]


def test_lane_bytes_by_hand() -> None:
    """Heads of 10 x (20 + 1), 5 times the logits of a batch of 8, statistics of 10 classes; 4 bytes each."""
    sizes = {"num_classes": 10, "feature_dim": 20}
    training = TrainingSpec(batch_size=8)
    assert lane_bytes(DEFAULTS["los"], training, **sizes) == 4 * (4 * 210 + 5 * 80 + 160)
    assert lane_bytes(DEFAULTS["vanilla"], training, **sizes) == 4 * (2 * 210 + 5 * 80 + 160)
    assert lane_bytes(DEFAULTS["los"], TrainingSpec(batch_size=16, epochs=99), **sizes) == 4 * (4 * 210 + 800 + 160)
    # Half of the lanes go on in new stacks while the old ones are still there.
    assert lane_bytes(DEFAULTS["los"], training, **sizes, halving_factor=2.0) == 4 * (5.5 * 210 + 5 * 80 + 160)
    # 10 factors are trained; what is handed out has the frozen head too.
    assert lane_bytes(DEFAULTS["lws"], training, **sizes) == 4 * (3 * 10 + 10 + 210 + 5 * 80 + 160)
