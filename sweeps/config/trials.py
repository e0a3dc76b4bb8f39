"""The trials of a sweep: the search of each candidate method, its finalists, the baselines, and their number.

Trials are proposed in batches of fixed size. Batch g + 1 is proposed as soon as batch g - 1 is complete, and results
are reported to the search algorithm in the order of trials. Then the best trials are run again as finalists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

from lt_train.methods.base import MethodSpec, TrainingSpec
from sweeps.config.methods import Candidate
from sweeps.config.spec import SweepSpec
from sweeps.search.algorithms import Grid
from sweeps.search.base import Tried

if TYPE_CHECKING:
    from lt_train.retrain.base import Run

__all__ = [
    "Phase",
    "SearchSize",
    "Study",
    "Trial",
    "baseline_trials",
    "extended_trial",
    "recorded_trial",
    "search_size",
    "search_sizes",
]

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
    """The search of one candidate method.

    Args:
        spec: the sweep.
        candidate: the candidate method.
        recorded: the searched values of trials that were proposed already, by number.

    Attributes:
        batches: the proposal batches so far.
        reported: the number of batches whose results were reported.
        finalists: None until the search is complete.
    """

    def __init__(self, spec: SweepSpec, candidate: Candidate, recorded: Mapping[int, dict[str, Any]]) -> None:
        self.spec, self.candidate = spec, candidate
        self.batches: list[list[Trial]] = []
        self.reported = 0
        self.finalists: list[Trial] | None = None
        self._recorded = recorded
        self._tried: list[Tried] = []
        self._exhausted = False
        # Without dimensions there is one trial, as in an empty grid.
        self._algorithm = spec.search.algorithm if candidate.space else Grid()

    def ask(self) -> list[Trial] | None:
        """The next proposal batch: empty if the search is exhausted, None if earlier results are awaited first."""
        if self._exhausted or len(self.batches) >= self.reported + 2:
            return None
        first = len(self._tried)
        numbers = range(first, min(first + self.spec.search.proposal_batch, self.spec.search.trials))
        batch = [search_trial(self.spec, self.candidate, number, values) for number, values in self._values(numbers)]
        if batch:
            self.batches.append(batch)
            self._tried += [Tried(trial.params, "running") for trial in batch]
        else:
            self._exhausted = True
        return batch

    def _values(self, numbers: range) -> Iterator[tuple[int, dict[str, Any]]]:
        """The searched values of a batch: values of a recorded trial are kept; the others are proposed.

        Only some trials of a batch are recorded if the driver was killed while it wrote them, or if lines of the ledger
        were damaged.
        """
        if all(number in self._recorded for number in numbers):
            return ((number, self._recorded[number]) for number in numbers)
        candidate = self.candidate
        proposed = self._algorithm.propose(candidate.space, candidate.seed, self._tried, len(numbers))
        return ((number, self._recorded.get(number, values)) for number, values in zip(numbers, proposed, strict=False))

    @property
    def proposed_with(self) -> str:
        """Name and version of the library on which the proposed values depend; empty if there is none."""
        library = self._algorithm.library
        return f"{library} {version(library)}" if library else ""

    def next_to_report(self) -> list[Trial]:
        """The batch to report next, once it is complete; empty if all are reported."""
        return self.batches[self.reported] if self.reported < len(self.batches) else []

    def tell(self, outcome: Callable[[Trial], Tried]) -> None:
        """Report the results of the next batch."""
        for trial in self.next_to_report():
            self._tried[trial.number] = outcome(trial)
        self.reported += 1

    def is_complete(self) -> bool:
        """Whether every trial of the search is proposed and reported."""
        return self._exhausted and not self.next_to_report()

    def finish(self, ranking: Sequence[Trial]) -> list[Trial]:
        """Choose the finalists from `ranking`, the trials of this candidate, best first."""
        self.finalists = [finalist_trial(self.spec, trial) for trial in ranking[: self.spec.selection.finalists]]
        return self.finalists

    def pack_name(self, phase: Phase) -> str:
        """Prefix of the pack names of a phase; of the latest proposal batch for the search."""
        number = f"-{len(self.batches) - 1:04d}" if phase == "search" else ""
        own = self.candidate.prefix.removesuffix("-")
        return f"{phase}{'-' if own else ''}{own}{number}"


def search_trial(spec: SweepSpec, candidate: Candidate, number: int, values: Mapping[str, Any]) -> Trial:
    """A trial of the search with these searched values."""
    values = {path: values[path] for path in candidate.space}
    method, training = candidate.with_values(values)
    return Trial(
        name=f"search-{candidate.prefix}{number:04d}",
        phase="search",
        number=number,
        params=values,
        method=method,
        training=training,
        seeds=_useful_seeds(method, tuple(range(spec.selection.seeds))),
        candidate=candidate.name,
    )


def finalist_trial(spec: SweepSpec, searched: Trial) -> Trial:
    """A trial of the search on new seeds."""
    return replace(
        searched,
        name=searched.name.replace("search", "finalist", 1),
        phase="finalist",
        seeds=_useful_seeds(searched.method, reported_seeds(spec)),
    )


def extended_trial(spec: SweepSpec, winner: Trial) -> Trial | None:
    """The winner with more epochs, on the seeds of its reported numbers; None if there is to be none.

    The learning rate schedule is stretched to the new length, and the views of the bank are repeated.
    """
    times = spec.selection.extended_training
    if times is None or not winner.method.trains:
        return None
    epochs = times * winner.training.epochs
    return replace(
        winner,
        name=winner.name.replace(winner.phase, "extended", 1),
        phase="extended",
        params=winner.params | ({_EPOCHS: epochs} if _EPOCHS in winner.params else {}),
        training=winner.training.model_copy(update={"epochs": epochs}),
        seeds=_useful_seeds(winner.method, reported_seeds(spec)),
    )


_EPOCHS = "training.epochs"


def recorded_trial(
    spec: SweepSpec, candidate: Candidate, phase: Phase, number: int, params: Mapping[str, Any]
) -> Trial | None:
    """A trial of a candidate as it was proposed, from its phase, number and searched values."""
    times = spec.selection.extended_training
    if phase == "extended" and times is not None and _EPOCHS in params:
        params = {**params, _EPOCHS: params[_EPOCHS] // times}
    trial = search_trial(spec, candidate, number, params)
    if phase == "finalist":
        return finalist_trial(spec, trial)
    return extended_trial(spec, trial) if phase == "extended" else trial


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
