"""The trials of a sweep: the search of each candidate method, its finalists, the baselines, and their number.

Trials are proposed in batches of fixed size. Batch g + 1 is proposed as soon as batch g - 1 is complete, and results
are reported to the search algorithm in the order of trials. Then the best trials are run again as finalists.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from lt_train.methods.base import MethodSpec, TrainingSpec
from sweeps.config.methods import Candidate
from sweeps.config.spec import SweepSpec
from sweeps.search.algorithms import Grid
from sweeps.search.base import Search

if TYPE_CHECKING:
    from lt_train.retrain.base import Run

__all__ = ["Phase", "SearchSize", "Study", "Trial", "baseline_trials", "search_size", "search_sizes"]

Phase = Literal["baseline", "search", "finalist", "extended"]
"""`extended` trains the winner again for more epochs. It does not influence who wins."""


@dataclass(frozen=True)
class Trial:
    """One configuration in one phase, run with several seeds.

    Attributes:
        name: unique within the sweep and the same after a resume.
        phase: the phase.
        number: the number of the trial in the search of its candidate; finalists and the extended training keep the
            number of the trial that they repeat. For a baseline, its place in the list.
        params: the searched values by dotted path.
        method, training: the whole configuration.
        seeds: one run each.
        candidate: name of the candidate method; empty for a baseline.
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
    def display_name(self) -> str:
        """The name of the candidate, or the kind of a baseline."""
        return self.candidate or self.method.kind

    def runs(self) -> list[Run]:
        """One run per seed."""
        from lt_train.retrain.base import Run

        return [Run(self.method, self.training, seed) for seed in self.seeds]


class Study:
    """The running search of one candidate method.

    Args:
        spec: the sweep.
        candidate: the candidate method.
        search: replaces the search algorithm of `spec`, for example to replay recorded trials.

    Attributes:
        batches: the proposal batches so far.
        reported: the number of batches whose results were reported to the search algorithm.
        finalists: None until the search is complete.
    """

    def __init__(self, spec: SweepSpec, candidate: Candidate, search: Search | None = None) -> None:
        self.spec, self.candidate = spec, candidate
        self.batches: list[list[Trial]] = []
        self.reported = 0
        self.finalists: list[Trial] | None = None
        self._search = search or _start(spec, candidate)
        self._exhausted = False

    def ask(self) -> list[Trial] | None:
        """The next proposal batch: empty if the search is exhausted, None if earlier results are awaited first."""
        if self._exhausted or len(self.batches) >= self.reported + 2:
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
            self._exhausted = True
        return batch

    def next_to_report(self) -> list[Trial]:
        """The batch to report next, once it is complete; empty if all are reported."""
        return self.batches[self.reported] if self.reported < len(self.batches) else []

    def tell(self, objective: Callable[[Trial], float | None], stopped: Callable[[Trial], int | None]) -> None:
        """Report the results of the next batch to the search algorithm."""
        for trial in self.next_to_report():
            self._search.tell(trial.number, objective(trial), stopped(trial))
        self.reported += 1

    def is_complete(self) -> bool:
        """Whether every trial of the search is proposed and reported."""
        return self._exhausted and not self.next_to_report()

    def finish(self, ranking: Sequence[Trial]) -> list[Trial]:
        """Choose the finalists from `ranking`, the trials of this candidate, best first."""
        seeds = reported_seeds(self.spec)
        self.finalists = [
            replace(
                trial,
                name=f"finalist-{self.candidate.prefix}{trial.number:04d}",
                phase="finalist",
                seeds=_useful_seeds(trial.method, seeds),
            )
            for trial in ranking[: self.spec.selection.finalists]
        ]
        return self.finalists

    def extended(self, winner: Trial) -> list[Trial]:
        """The winner with more epochs, on the seeds of its reported numbers; empty for a method without training.

        The learning rate schedule is stretched to the new length, and the views of the bank are repeated.
        """
        times = self.spec.selection.extended_training
        if times is None or not winner.method.trains:
            return []
        epochs = times * winner.training.epochs
        name, searched = f"extended-{self.candidate.prefix}{winner.number:04d}", "training.epochs"
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
        """Prefix of the pack names of a phase; of the latest proposal batch for the search."""
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
            seeds=_useful_seeds(method, tuple(range(self.spec.selection.seeds))),
            candidate=candidate.name,
        )


def _start(spec: SweepSpec, candidate: Candidate) -> Search:
    """Start the search of a candidate. Without dimensions there is one trial, as in an empty grid."""
    algorithm = spec.search.algorithm if candidate.space else Grid()
    return algorithm.start(candidate.space, candidate.seed)


@dataclass(frozen=True)
class SearchSize:
    """The number of trials and runs of a sweep, or of one candidate. The `extended_runs` belong to one trial."""

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
        """Runs of every phase, including duplicates."""
        return self.search_runs + self.baseline_runs + self.finalist_runs + self.extended_runs


def search_sizes(spec: SweepSpec) -> list[tuple[Candidate, SearchSize]]:
    """The size of each candidate's search."""
    sizes: list[tuple[Candidate, SearchSize]] = []
    for candidate in spec.candidates():
        points = spec.search.algorithm.size(candidate.space) if candidate.space else 1
        trials = spec.search.trials if points is None else min(spec.search.trials, points)
        seeds = len(_useful_seeds(candidate.method, tuple(range(spec.selection.seeds))))
        finalists = min(spec.selection.finalists, trials)
        size = SearchSize(trials, search_runs=trials * seeds, finalist_runs=finalists * seeds, finalists=finalists)
        sizes.append((candidate, size))
    return sizes


def search_size(spec: SweepSpec) -> SearchSize:
    """The size of a sweep. Extended training is counted if any candidate is trained."""
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
    """The seeds of the reported numbers: new ones for finalists; without finalists, those of the search."""
    first = spec.selection.seeds if spec.selection.finalists else 0
    return tuple(range(first, first + spec.selection.seeds))


def baseline_trials(spec: SweepSpec) -> list[Trial]:
    """One trial per baseline."""
    trials: list[Trial] = []
    for number, method in enumerate(spec.baselines):
        again = sum(earlier.kind == method.kind for earlier in spec.baselines[:number])
        name = f"baseline-{method.kind}" + (f"-{again + 1}" if again else "")
        seeds = _useful_seeds(method, reported_seeds(spec))
        trials.append(Trial(name, "baseline", number, {}, method, spec.training, seeds))
    return trials


def _useful_seeds(method: MethodSpec, seeds: tuple[int, ...]) -> tuple[int, ...]:
    """The first of `seeds` for a method without training, else all."""
    return seeds if method.trains else seeds[:1]
