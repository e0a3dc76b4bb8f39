"""`check_backend`: trains small packs and compares the results with those of the inline backend."""

from __future__ import annotations

import tempfile
import threading
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lt_train.core.errors import BankError, LongtailError
from lt_train.core.imports import require
from lt_train.features.bank import FeatureBank
from lt_train.methods.base import TrainingSpec
from lt_train.methods.cross_entropy import CE, LOS
from lt_train.methods.post_hoc import LogitAdjust
from lt_train.retrain.base import EpochSelection, Halving, Pack, Run, RunResult
from lt_train.testing import check_kind
from sweeps.analysis.result import Result
from sweeps.backends.inline import InlineBackend
from sweeps.config.interfaces import BackendSpec
from sweeps.experiment.prepare import prepare
from sweeps.experiment.runner import run
from sweeps.testing.sweep import small_sweep

__all__ = ["check_backend"]


def check_backend(backend: BackendSpec | type[BackendSpec]) -> None:
    """Check a backend on the CPU.

    - `lt_train.testing.check_kind`.
    - All packs are trained, also if the next one depends on results of packs in flight, and results equal those of the
      inline backend to the last bit. The source is called from one thread, and not after it is exhausted.
    - A pack that fails is reported with the reason, and the others are trained; or its error is raised.
    - An error of the source, and an error in the input, are raised unchanged.
    - A sweep with this backend has the trials, runs and winner of one with the inline backend.

    Args:
        backend: an instance, or a class whose fields have defaults.

    Raises:
        AssertionError: a requirement is not met.
    """
    checked = check_kind(backend, BackendSpec)
    require(*checked.libraries)
    with tempfile.TemporaryDirectory(prefix="lt-conformance-") as place:
        bank = prepare(small_sweep(Path(place)))
        _check_results(checked, bank)
        _check_failures(checked, bank)
        _check_errors(checked, bank)
        results: list[Result] = []
        for number, one in enumerate((InlineBackend(), checked)):
            folder = Path(place) / str(number)  # a storage of its own, so that no run is taken from the other sweep
            folder.mkdir()
            results.append(run(small_sweep(folder, backend=one)))
        expected, found = results
        for part in ("trials", "runs", "winner"):
            assert getattr(found, part) == getattr(expected, part), (
                f"{type(checked).__name__}: the {part} of a sweep differ from those with the inline backend"
            )


class _Packs:
    """A source whose second batch of packs is available once the first is complete. Notes what is wrong."""

    def __init__(self, *batches: list[Pack], why_stop: LongtailError | None = None) -> None:
        self.batches = [list(batch) for batch in batches]
        self.why_stop = why_stop
        self.in_flight: dict[str, Pack] = {}
        self.results: dict[str, list[RunResult]] = {}
        self.failures: dict[str, tuple[str, bool]] = {}
        self.problems: list[str] = []
        self._threads: set[int] = set()

    def next_pack(self) -> Pack | None:
        """See `PackSource`."""
        self._note(self.exhausted(), "next_pack is called although exhausted() is true")
        if not self.batches or not self.batches[0]:
            return None
        pack = self.batches[0].pop(0)
        self.in_flight[pack.name] = pack
        return pack

    def complete(self, pack: Pack, results: list[RunResult], seconds: float) -> None:
        """See `PackSource`."""
        self._note(len(results) != len(pack.runs), f"complete has {len(results)} results for {len(pack.runs)} runs")
        self._note(not seconds >= 0, f"complete has a training time of {seconds} seconds")
        self._end(pack)
        self.results[pack.name] = results

    def failed(self, pack: Pack, why: str, *, own: bool) -> None:
        """See `PackSource`."""
        self._end(pack)
        self.failures[pack.name] = why, own
        if self.why_stop is not None:
            raise self.why_stop

    def exhausted(self) -> bool:
        """See `PackSource`."""
        self._threads.add(threading.get_ident())
        return not self.in_flight and not any(self.batches)

    def _end(self, pack: Pack) -> None:
        self._threads.add(threading.get_ident())
        known = self.in_flight.pop(pack.name, None) is not None
        self._note(not known, f"pack {pack.name} is completed or failed twice, or was never handed out")
        if self.batches and not self.batches[0] and not self.in_flight:
            self.batches.pop(0)

    def _note(self, is_wrong: bool, problem: str) -> None:
        self._threads.add(threading.get_ident())
        if is_wrong:
            self.problems.append(problem)

    def check(self, name: str) -> None:
        """Raise what is wrong, after `train` has returned."""
        assert not self.problems, f"{name}: {self.problems[0]}"
        assert len(self._threads) == 1, f"{name} must call the source from one thread, got {len(self._threads)}"
        assert self.exhausted(), (
            f"{name}.train returned before the source was exhausted; in flight: {', '.join(self.in_flight) or 'none'}"
        )


def _packs(prefix: str, *rates: float) -> list[Pack]:
    """One pack of four runs per learning rate, the last one with early stopping."""
    training = TrainingSpec(epochs=3, batch_size=32)
    packs = []
    for number, rate in enumerate(rates):
        methods = [LOS(lr=rate), LOS(lr=2 * rate)]
        runs = tuple(Run(method, training, seed) for method in methods for seed in (0, 1))
        halving = Halving((1,)) if number == len(rates) - 1 else None
        packs.append(Pack(f"{prefix}-{number}", runs, EpochSelection("best"), halving))
    return packs


def _check_results(backend: BackendSpec, bank: FeatureBank) -> None:
    name, batches = type(backend).__name__, (_packs("first", 0.01, 0.02, 0.03), _packs("second", 0.05, 1e38))
    expected, found = _Packs(*batches), _Packs(*batches)
    InlineBackend().train(bank, expected, cpus=1, gpus=0)
    backend.train(bank, found, cpus=1, gpus=0)
    found.check(name)
    assert not found.failures, f"{name}: packs failed: {found.failures}"
    for pack, results in expected.results.items():
        for one, other in zip(found.results[pack], results, strict=True):
            mine, theirs = _bits(one), _bits(other)
            differ = [part for part in mine.keys() | theirs.keys() if mine.get(part) != theirs.get(part)]
            assert not differ, f"{name}: {differ[0]} of a run of pack {pack} differs from that of the inline backend"


def _bits(result: Any) -> dict[str, Any]:
    """The parts of a result by name, equal if all bits are."""
    found: dict[str, Any] = {}
    parts = result if isinstance(result, dict) else {one.name: getattr(result, one.name) for one in fields(result)}
    for name, value in parts.items():
        if isinstance(value, np.ndarray):
            found[name] = value.dtype, value.shape, value.tobytes()
        elif isinstance(value, dict) or is_dataclass(value):
            found |= {f"{name}.{inner}": one for inner, one in _bits(value).items()}
        else:
            found[name] = value
    return found


def _check_failures(backend: BackendSpec, bank: FeatureBank) -> None:
    name = type(backend).__name__
    broken: Any = ("not a run",)
    bad, good = Pack("bad", broken, EpochSelection()), _packs("good", 0.01)
    source = _Packs([bad], good)
    raised = _raised(backend, bank, source)
    if raised is not None:
        problem = f"{name} reports a failed pack and then raises {type(raised).__name__}: {raised}"
        assert not source.failures, problem
        return
    source.check(name)
    assert "bad" not in source.results, f"{name} completes a pack that raised an error"
    why, own = source.failures["bad"]
    assert own, f"{name}: a pack whose training raises an error failed by its own fault: own=True"
    assert len(why.split("\n")) == 1, f"{name}: the reason of a failure must be one line, got {why!r}"
    assert why.strip(), f"{name}: a failure must have a reason"
    assert good[0].name in source.results, f"{name} must train the other packs after one has failed"
    stop = LongtailError("the pack has failed too often")
    raised = _raised(backend, bank, _Packs([bad], good, why_stop=stop))
    assert raised is stop, f"{name} must raise the error of the source unchanged, got {raised!r}"


def _raised(backend: BackendSpec, bank: FeatureBank, source: _Packs) -> Exception | None:
    try:
        backend.train(bank, source, cpus=1, gpus=0)
    except Exception as error:
        return error
    return None


def _check_errors(backend: BackendSpec, bank: FeatureBank) -> None:
    """An error in the input would occur again, so it ends the sweep."""
    name, unfit = type(backend).__name__, CE(post_hoc=LogitAdjust(prior=(0.5, 0.5)))
    raised = _raised(backend, bank, _Packs([Pack("unfit", (Run(unfit, TrainingSpec(), 0),), EpochSelection())]))
    assert isinstance(raised, BankError), f"{name} must raise errors in the input (UserError) unchanged, got {raised!r}"
