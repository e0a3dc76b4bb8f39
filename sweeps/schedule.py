"""The order of a sweep: baselines, generations of trials, finalists. A pure state machine; it starts nothing.

Trials are asked in generations of fixed size, generation g + 1 as soon as generation g - 1 is complete, and told in
trial order. So which trials are tried depends on the sweep file alone: not on workers, timing or interruptions. A
resume replays the same questions against the ledger and finds the same answers. Knows search, packing, selection
and the ledger; knows no backend and no tracking.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from lt_train.methods.base import MethodSpec, TrainedMethod, TrainingSpec
from lt_train.retrain.base import Pack, Run, RunResult
from sweeps import selection
from sweeps.ledger import Ledger, Record, run_key
from sweeps.packing import pack_runs
from sweeps.spec import SweepSpec

__all__ = ["Schedule", "SearchSize", "Trial", "search_size"]

Phase = Literal["baseline", "search", "finalist"]


@dataclass(frozen=True)
class Trial:
    """One setting in one phase, to be run with several seeds.

    Attributes:
        name: unique within the sweep and the same after a resume.
        number: the trial's number in the search; a finalist has that of the trial it repeats.
        params: the searched values by path.
    """

    name: str
    phase: Phase
    number: int
    params: dict[str, Any]
    method: MethodSpec
    training: TrainingSpec
    seeds: tuple[int, ...]

    def runs(self) -> list[Run]:
        """One run a seed."""
        return [Run(self.method, self.training, seed) for seed in self.seeds]


class Schedule:
    """What to train next, and what follows from what is finished. Implements `backends.base.PackSource`.

    Attributes:
        finished: records of every complete trial by name, in seed order.
        trials: every trial asked so far, by name, in the order asked.
        on_trial: called once for every trial that completes, replayed ones included.
        cached: runs that were wanted and found finished already.
        seconds: time spent asking and telling.
    """

    def __init__(
        self,
        spec: SweepSpec,
        bank_fingerprint: str,
        ledger: Ledger,
        on_trial: Callable[[Trial, list[Record]], None] = lambda trial, records: None,
    ) -> None:
        self.spec, self.bank_fingerprint, self.ledger, self.on_trial = spec, bank_fingerprint, ledger, on_trial
        self.rule = spec.selection.epoch_rule()
        self.search = spec.search.sampler.start(spec.search.space, spec.search.seed)
        self.trials: dict[str, Trial] = {}
        self.finished: dict[str, list[Record]] = {}
        self.cached = 0
        self.seconds = 0.0
        self._ready: deque[Pack] = deque()
        self._in_flight: set[str] = set()
        self._wanted: set[str] = set()
        self._generations: list[list[Trial]] = []
        self._told = 0
        self._asked_all = False
        self._finalists: list[Trial] | None = None
        self._advance()

    def next_pack(self) -> Pack | None:
        """The next pack to train, or None while results in flight are awaited."""
        if not self._ready:
            return None
        pack = self._ready.popleft()
        self._in_flight.add(pack.name)
        return pack

    def complete(self, pack: Pack, results: list[RunResult], seconds: float) -> None:
        """Record a trained pack: the ledger first, then whatever follows from it."""
        keys = [self._key(run) for run in pack.runs]
        self.ledger.append(pack, keys, results, seconds)
        self._in_flight.discard(pack.name)
        self._advance()

    def exhausted(self) -> bool:
        """True when everything the sweep wants is finished."""
        return not self._ready and not self._in_flight and self._finalists is not None

    def objective(self, trial: Trial) -> float | None:
        """What a finished trial is judged by; None when it failed."""
        chosen = self.spec.selection
        return selection.objective(self.finished[trial.name], metric=chosen.metric, on=chosen.on, how=chosen.objective)

    def ranking(self, phase: Phase) -> list[Trial]:
        """Finished trials of a phase that did not fail, best first; ties: the lower number."""
        scored = [
            (-score, trial.number, trial)
            for trial in self.trials.values()
            if trial.phase == phase and trial.name in self.finished and (score := self.objective(trial)) is not None
        ]
        return [trial for _, _, trial in sorted(scored, key=lambda entry: entry[:2])]

    def winner(self) -> Trial | None:
        """The best finalist, or where there are none the best trial; None when every trial failed."""
        ranking = self.ranking("finalist" if self.spec.selection.finalists else "search")
        return ranking[0] if ranking else None

    def _advance(self) -> None:
        """Take note of complete trials and ask for whatever may be asked now, until nothing changes."""
        if not self.trials:
            self._schedule("baseline", baseline_trials(self.spec))
        while True:
            self._note_complete()
            # Asking comes first: generation g + 1 is always asked before generation g is told, also in a replay,
            # where g is complete at once. The sampler's answers depend on that order.
            if not (self._ask() or self._tell() or self._start_finalists()):
                return

    def _note_complete(self) -> None:
        for name, trial in self.trials.items():
            if name in self.finished:
                continue
            keys = [self._key(run) for run in trial.runs()]
            if all(key in self.ledger.finished for key in keys):
                self.finished[name] = [self.ledger.finished[key] for key in keys]
                self.on_trial(trial, self.finished[name])

    def _tell(self) -> bool:
        if self._told == len(self._generations) or not self._complete(self._generations[self._told]):
            return False
        start = time.perf_counter()
        for trial in self._generations[self._told]:
            self.search.tell(trial.number, self.objective(trial))
        self.seconds += time.perf_counter() - start
        self._told += 1
        self._drop_heads()
        return True

    def _drop_heads(self) -> None:
        """Forget the heads of told trials that cannot be the champion (finalists bring heads of their own)."""
        told = [trial for generation in self._generations[: self._told] for trial in generation]
        best = {self._key(run) for trial in self.ranking("search")[:1] for run in trial.runs()}
        # By key, not by trial: a duplicate of the best trial is not the best, but has its heads.
        self.ledger.drop_heads({self._key(run) for trial in told for run in trial.runs()} - best)

    def _ask(self) -> bool:
        if self._asked_all or len(self._generations) >= self._told + 2:
            return False
        start = time.perf_counter()
        first = sum(map(len, self._generations))
        generation: list[Trial] = []
        for number in range(first, min(first + self.spec.search.generation, self.spec.search.trials)):
            values = self.search.ask(number)
            if values is None:
                break
            values = {path: values[path] for path in self.spec.search.space}
            method, training = self.spec.with_values(values)
            name, seeds = f"search-{number:04d}", search_seeds(self.spec)
            generation.append(Trial(name, "search", number, values, method, training, seeds))
        self.seconds += time.perf_counter() - start
        if not generation:
            self._asked_all = True
            return True
        self._generations.append(generation)
        self._schedule(f"search-{len(self._generations) - 1:04d}", generation)
        return True

    def _start_finalists(self) -> bool:
        if self._finalists is not None or not self._asked_all or self._told < len(self._generations):
            return False
        best = self.ranking("search")[: self.spec.selection.finalists]
        self._finalists = [
            replace(trial, name=f"finalist-{trial.number:04d}", phase="finalist", seeds=reported_seeds(self.spec))
            for trial in best
        ]
        self._schedule("finalist", self._finalists)
        return True

    def _schedule(self, name: str, trials: Sequence[Trial]) -> None:
        """Make packs of the runs nobody asked for before; what the ledger holds already is not trained again."""
        runs: list[Run] = []
        for trial in trials:
            self.trials[trial.name] = trial
            for run in trial.runs():
                key = self._key(run)
                if key in self._wanted:
                    self.cached += 1
                    continue
                self._wanted.add(key)
                runs.append(run)
        for pack in pack_runs(name, runs, self.rule, self.spec.resources.lanes_per_pack):
            missing = [run for run in pack.runs if self._key(run) not in self.ledger.finished]
            self.cached += len(pack.runs) - len(missing)
            if missing:
                self._ready.append(Pack(pack.name, tuple(missing), pack.rule))

    def _complete(self, trials: Sequence[Trial]) -> bool:
        return all(trial.name in self.finished for trial in trials)

    def _key(self, run: Run) -> str:
        return run_key(self.bank_fingerprint, run, self.rule)


@dataclass(frozen=True)
class SearchSize:
    """How much a sweep will ask for."""

    trials: int
    search_runs: int
    baseline_runs: int
    finalist_runs: int

    @property
    def runs(self) -> int:
        """Runs in all, duplicates counted."""
        return self.search_runs + self.baseline_runs + self.finalist_runs


def search_size(spec: SweepSpec) -> SearchSize:
    """Trials and runs that a spec asks for, before anything is asked."""
    points = spec.search.sampler.size(spec.search.space)
    trials = spec.search.trials if points is None else min(spec.search.trials, points)
    return SearchSize(
        trials=trials,
        search_runs=trials * spec.selection.seeds,
        baseline_runs=sum(len(trial.seeds) for trial in baseline_trials(spec)),
        finalist_runs=min(spec.selection.finalists, trials) * spec.selection.seeds,
    )


def search_seeds(spec: SweepSpec) -> tuple[int, ...]:
    """The seeds every trial of the search is run with."""
    return tuple(range(spec.selection.seeds))


def reported_seeds(spec: SweepSpec) -> tuple[int, ...]:
    """The seeds of the reported numbers: fresh ones where there are finalists, else those of the search."""
    first = spec.selection.seeds if spec.selection.finalists else 0
    return tuple(range(first, first + spec.selection.seeds))


def baseline_trials(spec: SweepSpec) -> list[Trial]:
    """Each baseline as given; one that trains nothing has no use for more than one seed."""
    trials: list[Trial] = []
    seeds = reported_seeds(spec)
    for number, method in enumerate(spec.baselines):
        again = sum(earlier.kind == method.kind for earlier in spec.baselines[:number])
        name = f"baseline-{method.kind}" + (f"-{again + 1}" if again else "")
        own = seeds if isinstance(method, TrainedMethod) else seeds[:1]
        trials.append(Trial(name, "baseline", number, {}, method, spec.training, own))
    return trials
