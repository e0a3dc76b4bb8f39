"""The order of a sweep: baselines and every candidate's study, then the winner once more, trained longer.

A pure state machine; it starts nothing.

What a study asks follows from the sweep file and from the outcomes of its own trials, told in a fixed order
(`sweeps.config.trials`). So which trials are tried depends on the sweep file alone: not on workers, timing or
interruptions, nor on the other candidates. A resume replays the same questions against the ledger and finds the same answers.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from lt_train.retrain.base import EpochSelection, Halving, Pack, Run, RunResult
from sweeps.analysis import selection
from sweeps.config.spec import SweepSpec
from sweeps.config.trials import Phase, Study, Trial, baseline_trials
from sweeps.experiment.packing import PackSize, pack_runs
from sweeps.experiment.retries import Outcome, Retries
from sweeps.search.base import Search
from sweeps.store.ledger import FinishedRuns, Record, run_key

__all__ = ["BankShape", "TrialQueue"]


class BankShape(Protocol):
    """What a schedule knows of a feature bank."""

    @property
    def fingerprint(self) -> str:
        """Its content address."""

    @property
    def num_classes(self) -> int:
        """K."""

    @property
    def feature_dim(self) -> int:
        """D."""


class TrialQueue:
    """What to train next, and what follows from what is finished. Implements `backends.base.PackSource`.

    Args:
        spec: the sweep.
        bank: that it trains on.
        ledger: what is finished; one that is open to be written, unless nothing is to be trained.
        on_trial: called once for every trial that completes, replayed ones included.
        searches: by candidate, what to ask instead of the spec's sampler.

    Attributes:
        finished: records of every complete trial by name, in seed order.
        trials: every trial asked so far, by name.
        studies: one for each candidate, in the order of the file.
        longer: the winner's setting trained longer, a trial or none; None until it is known who wins.
        cached: runs that were wanted and found finished already.
        retries: packs that did not come back, and what became of them.
        seconds: time spent asking and telling.
    """

    def __init__(
        self,
        spec: SweepSpec,
        bank: BankShape,
        ledger: FinishedRuns,
        on_trial: Callable[[Trial, list[Record]], None] = lambda trial, records: None,
        searches: Mapping[str, Search] | None = None,
    ) -> None:
        self.spec, self.bank_fingerprint, self.ledger, self.on_trial = spec, bank.fingerprint, ledger, on_trial
        self.size = PackSize(spec.resources, spec.search.early_stopping, bank.num_classes, bank.feature_dim)
        self.rule = spec.selection.epoch_rule()
        self.studies = [Study(spec, candidate, (searches or {}).get(candidate.name)) for candidate in spec.candidates()]
        self.trials: dict[str, Trial] = {}
        self.finished: dict[str, list[Record]] = {}
        self.cached = 0
        self.retries = Retries()
        self.seconds = 0.0
        self._ready: deque[Pack] = deque()
        self.extended: list[Trial] | None = None
        self._in_flight: set[str] = set()
        self._wanted: set[str] = set()
        self._keys: dict[str, list[str]] = {}
        self._pack_keys: dict[str, list[str]] = {}
        self._open: dict[str, Trial] = {}
        self._baselines: frozenset[str] = frozenset()
        self._enqueue("baseline", baseline_trials(spec))
        self._baselines = frozenset(self._wanted)
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
        self._record(Outcome(pack, results, seconds))

    def failed(self, pack: Pack, why: str, *, own: bool) -> None:
        """Take note that a pack did not come back; it will be handed out again, whole or in parts."""
        again, outcome = self.retries.failed(pack, why, own=own)
        if outcome is not None:
            self._record(outcome)
            return
        self._in_flight.discard(pack.name)
        self._ready.extendleft(reversed(again))  # first of all: a proposal batch waits for it

    def _record(self, outcome: Outcome) -> None:
        whole = self.retries.whole(outcome)
        if whole is not None:
            self.ledger.append(whole.pack, self._pack_keys[whole.pack.name], whole.results, whole.seconds)
        self._in_flight.discard(outcome.pack.name)
        self._advance()

    def exhausted(self) -> bool:
        """True when everything the sweep wants is finished."""
        return not self._ready and not self._in_flight and self.extended is not None

    def objective(self, trial: Trial) -> float | None:
        """What a finished trial is judged by, at the epoch it was stopped after if it was; None when it failed."""
        chosen = self.spec.selection
        return selection.objective(self.finished[trial.name], metric=chosen.metric, on=chosen.on, how=chosen.objective)

    def stopped(self, trial: Trial) -> int | None:
        """The epochs after which the scheduler stopped a finished trial; None when it ran whole."""
        return selection.stopped(self.finished[trial.name])

    def ranking(self, phase: Phase, candidate: str | None = None) -> list[Trial]:
        """Finished trials of a phase that neither failed nor were stopped, best first; of one candidate, or of all.

        Ties: the candidate that comes first in the file, then the lower number.
        """
        order = {study.candidate.name: place for place, study in enumerate(self.studies)}
        scored = [
            ((-score, order.get(trial.candidate, 0), trial.number), trial)
            for trial in self.trials.values()
            if trial.phase == phase
            and candidate in (None, trial.candidate)
            and trial.name in self.finished
            and self.stopped(trial) is None
            and (score := self.objective(trial)) is not None
        ]
        return [trial for _, trial in sorted(scored, key=lambda entry: entry[0])]

    def in_order(self) -> list[Trial]:
        """Every trial asked so far: baselines, candidate by candidate its search and its finalists, the last."""
        ordered = [trial for trial in self.trials.values() if trial.phase == "baseline"]
        for study in self.studies:
            ordered += [trial for batch in study.batches for trial in batch]
            ordered += study.finalists or []
        return ordered + (self.extended or [])

    def winner(self, candidate: str | None = None) -> Trial | None:
        """The best finalist, or where there are none the best trial; None when every trial failed."""
        ranking = self.ranking("finalist" if self.spec.selection.finalists else "search", candidate)
        return ranking[0] if ranking else None

    def pack_sizes(self) -> str:
        """How large the packs are that wait to be trained, and why; empty when none waits."""
        largest = max(self._ready, key=lambda pack: len(pack.runs), default=None)
        return "" if largest is None else self.size.told(largest.runs[0], len(largest.runs))

    def _advance(self) -> None:
        """Take note of complete trials and ask for whatever may be asked now, until nothing changes."""
        self._note_complete()
        for study in self.studies:
            # Asking comes first: proposal batch g + 1 is always asked before proposal batch g is told, also in a replay,
            # where g is complete at once. The search's answers depend on that order.
            while self._ask(study) or self._tell(study) or self._finish(study):
                self._note_complete()
        if self._train_extended():
            self._note_complete()

    def _note_complete(self) -> None:
        for name, trial in list(self._open.items()):
            if all(key in self.ledger.finished for key in self._keys[name]):
                self.finished[name] = [self.ledger.finished[key] for key in self._keys[name]]
                del self._open[name]
                if trial.phase == "extended":
                    others = {key for other, keys in self._keys.items() if other != name for key in keys}
                    self.ledger.drop_heads({*self._keys[name]} - others)
                self.on_trial(trial, self.finished[name])

    def _ask(self, study: Study) -> bool:
        with self._timed():
            batch = study.ask()
        if batch:
            self._enqueue("search", batch, study)
        return batch is not None

    def _tell(self, study: Study) -> bool:
        due = study.due()
        if not due or any(trial.name not in self.finished for trial in due):
            return False
        with self._timed():
            study.tell(self.objective, self.stopped)
        self._drop_heads()
        return True

    def _finish(self, study: Study) -> bool:
        if study.finalists is not None or not study.all_told():
            return False
        finalists = study.finish(self.ranking("search", study.candidate.name))
        self._enqueue("finalist", finalists, study)
        return True

    def _train_extended(self) -> bool:
        """Ask for the winner once more when nobody can take its place: every trial but a baseline is complete."""
        sure = all(study.finalists is not None for study in self.studies)
        if self.extended is not None or not sure or any(trial.phase != "baseline" for trial in self._open.values()):
            return False
        winner, self.extended = self.winner(), []
        if winner is None:
            return False
        study = next(study for study in self.studies if study.candidate.name == winner.candidate)
        self.extended = study.extended(winner)
        self._enqueue("extended", self.extended, study)
        return bool(self.extended)

    def _drop_heads(self) -> None:
        """Forget the heads of told trials that cannot be the champion (finalists bring heads of their own)."""
        told = [trial for study in self.studies for trials in study.batches[: study.told] for trial in trials]
        best = self.ranking("search")[:1]
        # By key, not by trial: a duplicate of the best trial is not the best, but has its heads.
        kept = {key for trial in best for key in self._keys[trial.name]}
        self.ledger.drop_heads({key for trial in told for key in self._keys[trial.name]} - kept)

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - start

    def _enqueue(self, phase: Phase, trials: Sequence[Trial], study: Study | None = None) -> None:
        """Make packs of the runs nobody asked for before; what the ledger holds already is not trained again.

        A pack is in the ledger whole or not at all, and is trained whole or not at all: what becomes of a run may
        depend on who else is in its pack.
        """
        pool = study.candidate.prefix if study else ""
        keys_of: dict[Run, str] = {}
        for trial in trials:
            self.trials[trial.name] = self._open[trial.name] = trial
            keys = self._keys[trial.name] = [self._key(run, phase, pool) for run in trial.runs()]
            for run, key in zip(trial.runs(), keys, strict=True):
                if key in self._wanted:
                    self.cached += 1
                    continue
                self._wanted.add(key)
                keys_of[run] = key
        name = study.pack_name(phase) if study else phase
        halving = functools.partial(self._halving, phase=phase)
        for pack in pack_runs(name, list(keys_of), self._rule(phase), self.size.lanes, halving):
            keys = self._pack_keys[pack.name] = [keys_of[run] for run in pack.runs]
            if all(key in self.ledger.finished for key in keys):
                self.cached += len(keys)
            else:
                self._ready.append(pack)

    def _rule(self, phase: Phase) -> EpochSelection:
        """Which epoch of a run counts; what is trained longer tells where it leads, so there it is the last."""
        return replace(self.rule, epoch="last") if phase == "extended" else self.rule

    def _halving(self, run: Run, phase: Phase) -> Halving | None:
        """How the trials of a run's pack are stopped early; only those of a search are, what is reported runs whole."""
        if phase != "search" or not run.method.trains:
            return None
        return self.spec.search.early_stopping.halving(run.training)

    def _key(self, run: Run, phase: Phase, pool: str) -> str:
        """A run's key: shared with a baseline that is the same run, and within a candidate, but never among those.

        Which of two candidates asks first depends on timing, and so would the pack that a shared run lies in.
        """
        halving = self._halving(run, phase)
        rule = self._rule(phase)
        as_baseline = run_key(self.bank_fingerprint, run, rule)
        if halving is None and (not pool or as_baseline in self._baselines):
            return as_baseline
        return run_key(self.bank_fingerprint, run, rule, halving, pool)
