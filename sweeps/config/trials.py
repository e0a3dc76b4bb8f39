"""One candidate's search: which trials are asked of it, when, and what they are called.

Trials are asked in proposal batches of fixed size, proposal batch g + 1 as soon as proposal batch g - 1 is complete, and told in
trial order; then the best of them run again as finalists. Knows specs and search algorithms; knows nothing of packs,
records or a ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from lt_train.methods.base import MethodSpec, TrainingSpec
from lt_train.retrain.base import Run
from sweeps.config.methods import Candidate
from sweeps.config.spec import SweepSpec
from sweeps.search.base import Search
from sweeps.search.grid import Grid

__all__ = ["Phase", "SearchSize", "Study", "Trial", "baseline_trials", "search_size", "search_sizes"]

Phase = Literal["baseline", "search", "finalist", "extended"]
"""`longer` is the winner's setting once more, trained several times as long; it decides nothing."""


@dataclass(frozen=True)
class Trial:
    """One setting in one phase, to be run with several seeds.

    Attributes:
        name: unique within the sweep and the same after a resume.
        number: the trial's number in its candidate's search; what repeats a trial has that of the trial.
        params: the searched values by path.
        candidate: whose it is, by name; empty for a baseline.
    """

    name: str
    phase: Phase
    number: int
    params: dict[str, Any]
    method: MethodSpec
    training: TrainingSpec
    seeds: tuple[int, ...]
    candidate: str = ""

    @property
    def called(self) -> str:
        """What people read: the candidate's name, or a baseline's kind."""
        return self.candidate or self.method.kind

    def runs(self) -> list[Run]:
        """One run a seed."""
        return [Run(self.method, self.training, seed) for seed in self.seeds]


class Study:
    """A candidate's search as it goes on.

    Args:
        spec: the sweep.
        candidate: whose search it is.
        search: what to ask, where it is not the spec's sampler: a `sweeps.search.base.Search`.

    Attributes:
        proposal batches: the trials asked so far.
        told: how many proposal batches the search algorithm has heard of.
        finalists: None until the search is over.
    """

    def __init__(self, spec: SweepSpec, candidate: Candidate, search: Search | None = None) -> None:
        self.spec, self.candidate = spec, candidate
        self.batches: list[list[Trial]] = []
        self.told = 0
        self.finalists: list[Trial] | None = None
        self._search = search or _start(spec, candidate)
        self._asked_all = False

    def ask(self) -> list[Trial] | None:
        """The next proposal batch, empty when there is none left; None when nothing may be asked now."""
        if self._asked_all or len(self.batches) >= self.told + 2:
            return None
        first = sum(map(len, self.batches))
        batch: list[Trial] = []
        for number in range(first, min(first + self.spec.search.proposal_batch, self.spec.search.trials)):
            values = self._search.ask(number)
            if values is None:
                break
            batch.append(self._trial(number, values))
        if batch:
            self.batches.append(batch)
        else:
            self._asked_all = True
        return batch

    def due(self) -> list[Trial]:
        """The proposal batch that is told next, once it is complete; empty when all are told."""
        return self.batches[self.told] if self.told < len(self.batches) else []

    def tell(self, objective: Callable[[Trial], float | None], stopped: Callable[[Trial], int | None]) -> None:
        """Hand the outcome of the proposal batch that is due to the search algorithm."""
        for trial in self.due():
            self._search.tell(trial.number, objective(trial), stopped(trial))
        self.told += 1

    def all_told(self) -> bool:
        """Whether the search is over."""
        return self._asked_all and not self.due()

    def finish(self, ranking: Sequence[Trial]) -> list[Trial]:
        """The finalists; `ranking` are this candidate's trials, best first."""
        seeds = reported_seeds(self.spec)
        self.finalists = [
            replace(
                trial,
                name=f"finalist-{self.candidate.prefix}{trial.number:04d}",
                phase="finalist",
                seeds=_enough(trial.method, seeds),
            )
            for trial in ranking[: self.spec.selection.finalists]
        ]
        return self.finalists

    def extended(self, winner: Trial) -> list[Trial]:
        """The winner once more, several times as long, on the seeds of its reported numbers; none if it has no epochs.

        All else stays: the schedule of the learning rate is stretched, and the bank's views are gone through again.
        """
        times = self.spec.selection.extended_training
        if times is None or not winner.method.trains:
            return []
        epochs = times * winner.training.epochs
        name, searched = f"longer-{self.candidate.prefix}{winner.number:04d}", "training.epochs"
        return [
            replace(
                winner,
                name=name,
                phase="extended",
                params=winner.params | ({searched: epochs} if searched in winner.params else {}),
                training=winner.training.model_copy(update={"epochs": epochs}),
            )
        ]

    def pack_name(self, phase: Phase) -> str:
        """Prefix of the names of the packs of the proposal batch asked last, or of another phase."""
        number = f"-{len(self.batches) - 1:04d}" if phase == "search" else ""
        own = self.candidate.prefix.removesuffix("-")
        return f"{phase}{'-' if own else ''}{own}{number}"

    def _trial(self, number: int, values: dict[str, Any]) -> Trial:
        candidate = self.candidate
        values = {path: values[path] for path in candidate.space}
        method, training = candidate.with_values(values)
        return Trial(
            name=f"search-{candidate.prefix}{number:04d}",
            phase="search",
            number=number,
            params=values,
            method=method,
            training=training,
            seeds=_enough(method, tuple(range(self.spec.selection.seeds))),
            candidate=candidate.name,
        )


def _start(spec: SweepSpec, candidate: Candidate) -> Search:
    """The candidate's search; a space without dimensions has one point, as a grid knows."""
    sampler = spec.search.algorithm if candidate.space else Grid()
    return sampler.start(candidate.space, candidate.seed)


@dataclass(frozen=True)
class SearchSize:
    """How much a sweep, or one candidate of it, will ask for. `extended_runs` are the winner's: one trial, or none."""

    trials: int
    search_runs: int
    finalist_runs: int
    baseline_runs: int = 0
    finalists: int = 0
    baselines: int = 0
    extended_runs: int = 0

    @property
    def all_trials(self) -> int:
        """Trials of every phase."""
        return self.trials + self.finalists + self.baselines + bool(self.extended_runs)

    @property
    def runs(self) -> int:
        """Runs in all, duplicates counted."""
        return self.search_runs + self.baseline_runs + self.finalist_runs + self.extended_runs


def search_sizes(spec: SweepSpec) -> list[tuple[Candidate, SearchSize]]:
    """What each candidate will ask for, before anything is asked."""
    sizes: list[tuple[Candidate, SearchSize]] = []
    for candidate in spec.candidates():
        points = spec.search.algorithm.size(candidate.space) if candidate.space else 1
        trials = spec.search.trials if points is None else min(spec.search.trials, points)
        seeds = len(_enough(candidate.method, tuple(range(spec.selection.seeds))))
        finalists = min(spec.selection.finalists, trials)
        size = SearchSize(trials, search_runs=trials * seeds, finalist_runs=finalists * seeds, finalists=finalists)
        sizes.append((candidate, size))
    return sizes


def search_size(spec: SweepSpec) -> SearchSize:
    """Trials and runs that a spec asks for, before anything is asked; as if a method that trains were to win."""
    sizes = [size for _, size in search_sizes(spec)]
    extended = spec.selection.extended_training is not None and any(one.method.trains for one in spec.candidates())
    return SearchSize(
        trials=sum(size.trials for size in sizes),
        search_runs=sum(size.search_runs for size in sizes),
        finalist_runs=sum(size.finalist_runs for size in sizes),
        baseline_runs=sum(len(trial.seeds) for trial in baseline_trials(spec)),
        finalists=sum(size.finalists for size in sizes),
        baselines=len(spec.baselines),
        extended_runs=spec.selection.seeds if extended else 0,
    )


def reported_seeds(spec: SweepSpec) -> tuple[int, ...]:
    """The seeds of the reported numbers: fresh ones where there are finalists, else those of the search."""
    first = spec.selection.seeds if spec.selection.finalists else 0
    return tuple(range(first, first + spec.selection.seeds))


def baseline_trials(spec: SweepSpec) -> list[Trial]:
    """Each baseline as given."""
    trials: list[Trial] = []
    for number, method in enumerate(spec.baselines):
        again = sum(earlier.kind == method.kind for earlier in spec.baselines[:number])
        name = f"baseline-{method.kind}" + (f"-{again + 1}" if again else "")
        seeds = _enough(method, reported_seeds(spec))
        trials.append(Trial(name, "baseline", number, {}, method, spec.training, seeds))
    return trials


def _enough(method: MethodSpec, seeds: tuple[int, ...]) -> tuple[int, ...]:
    """A method that trains nothing has no use for more than one seed."""
    return seeds if method.trains else seeds[:1]
