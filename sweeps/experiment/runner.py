"""One sweep from spec to result: prepare the bank, let a backend train packs, select, report, track.

The order of durable steps is the contract: a finished pack is in the ledger before the search or tracking hears of
it, so whatever kills this process costs at most the packs in flight. Calls every other room; is called by the CLI
and by notebooks.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from lt_train.core.errors import CheckpointError, DataError, LongtailError, UserError
from lt_train.core.io import atomic_file
from lt_train.core.progress import progress, tell
from lt_train.features.bank import FeatureBank
from sweeps.analysis.labels import ranked_by
from sweeps.analysis.result import Result
from sweeps.analysis.summary import summarise
from sweeps.config.spec import SweepSpec
from sweeps.config.tracking import Champion, SweepStarted
from sweeps.experiment.prepare import Prepared, prepare_all, prepared_before
from sweeps.experiment.signals import interrupt
from sweeps.experiment.trial_queue import TrialQueue
from sweeps.experiment.watcher import Watcher
from sweeps.reporting.artifacts import write_artifacts
from sweeps.reporting.notes import champion_note, finished_note, running_note
from sweeps.reporting.terminal import winner_line
from sweeps.store import directory as directories
from sweeps.store.directory import check_name, known_bank, left_open, load_spec, open_directory
from sweeps.store.layout import SweepDirectory, leases
from sweeps.store.lease import Lease, held
from sweeps.store.ledger import Ledger
from sweeps.store.status import JOB_VARIABLE, Progress, Publisher
from sweeps.tracking.background import BackgroundTracker
from sweeps.tracking.champion import image_classifier
from sweeps.tracking.events import dataset_infos, runs_view, stage1_series

__all__ = ["TrackingBehind", "resume", "run", "set_aside"]


class TrackingBehind(LongtailError):
    """The sweep is finished and its result written, but the tracking server stayed away. Run `resume` later."""

    def __init__(self, result: Result, directory: Path, trouble: Exception | None) -> None:
        self.result = result
        super().__init__(
            f"the sweep is finished and its result is written, but tracking could not be: {trouble}; "
            f"`lt-sweep resume {directory}` writes the rest, nothing is trained again"
        )


def run(spec: SweepSpec, *, fresh: bool = False) -> Result:
    """Run a sweep, or go on with it where an earlier call stopped; a finished one is only summed up again.

    Args:
        spec: what to do.
        fresh: keep what an earlier sweep of this name left as `<name>.previous-<N>` and start over.

    Returns:
        What is written to `<storage>/<name>/result.json`.

    Raises:
        UserError: something in the spec, the data or the directory has to be changed first.
        StorageError: a disk is full; run again when it is not.
        TrackingBehind: the tracking server stayed away to the end; the result is in it and on disk.
        LongtailError: packs failed; run again.
    """
    return _run(spec.anchored(Path.cwd()), fresh)


def resume(directory: str | Path) -> Result:
    """Go on with the sweep in `directory`; see `run`."""
    return _run(load_spec(Path(directory)), fresh=False, again=True)


def _run(spec: SweepSpec, fresh: bool, again: bool = False) -> Result:
    check_name(spec)
    job = os.environ.get(JOB_VARIABLE)
    with _stoppable(), held(leases(Path(spec.storage)), spec.name, job=job, told=tell) as lease:
        first = Progress(sweep=spec.name, state="preparing", driver=lease.who, started_ms=time.time_ns() // 1_000_000)
        publisher = Publisher(first, lease.holds)
        try:
            start = time.perf_counter()
            # What the user may have to mend comes up here, before an earlier sweep is touched.
            prepared = _features(spec, again, lambda text: publisher.update(note=text))
            lease.check()
            if fresh:
                set_aside(spec, lease)
            directory = open_directory(spec, prepared.bank.fingerprint)
            publisher.directory = directory.path
            result = _search(spec, prepared, directory, start, lease, publisher)
        except TrackingBehind as error:
            publisher.update(state="finished", winner=winner_line(error.result), seconds_left=0.0, note=str(error))
            raise
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt)
            publisher.update(state="stopped" if stopped else "failed", note="" if stopped else str(error))
            raise
        publisher.update(
            state="finished",
            note="",
            winner=winner_line(result),
            seconds_left=0.0,
            tracking_behind=0,
            tracking_trouble="",
        )
        return result


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Take `lt-sweep stop`, which sends SIGTERM, as Ctrl-C, also in a notebook: a sudden death would close nothing."""
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _features(spec: SweepSpec, again: bool, told: Callable[[str], None]) -> Prepared:
    """The bank to search on. A resume can do without data and checkpoint, where the storage has the bank."""
    try:
        return prepare_all(spec, told)
    except (DataError, CheckpointError) as error:
        known = known_bank(spec) if again else None
        before = None if known is None else prepared_before(spec, known)
        if before is None:
            if gone := _gone_with_a_job(spec):
                raise UserError(f"{error}; {gone}") from error
            raise
        tell(f"{error}\ngoing on with the features that this sweep was started on")
        return before


def _gone_with_a_job(spec: SweepSpec) -> str:
    """What to do about files that a job misses: they may have travelled with an earlier one, and gone with it."""
    missing = [field for field, path in spec.files().items() if not Path(path).exists()]
    if JOB_VARIABLE not in os.environ or not missing:
        return ""
    return (
        f"if {' and '.join(missing)} travelled with an earlier job, `lt-sweep submit` of the sweep file brings it again"
    )


def _search(
    spec: SweepSpec, prepared: Prepared, directory: SweepDirectory, start: float, lease: Lease, publisher: Publisher
) -> Result:
    begun, bank = time.perf_counter(), prepared.bank
    ledger = Ledger(directory.path, lease.check, lease.who)
    card = _sweep_started(spec, directory, bank)
    try:
        tracker = BackgroundTracker(
            lambda: spec.tracking.open(card, Path(spec.storage)),
            may_write=lease.holds,
            flush_timeout=spec.tracking.flush_timeout,
            told=lambda behind, trouble: publisher.update(tracking_behind=behind, tracking_trouble=trouble),
        )
        try:
            with progress(f"sweep {spec.name}", "run") as report:
                watcher = Watcher(spec, tracker, report, publisher)
                queue = TrialQueue(spec, bank, ledger, watcher.on_trial)
                publisher.update(state="running", note="")
                watcher.attach(queue)
                entered = time.perf_counter()
                finished_before = queue.exhausted() and directory.result.exists()
                if not queue.exhausted():
                    resources = spec.resources
                    spec.backend.train(bank, queue, cpus=resources.cpus_per_pack, gpus=resources.gpus_per_pack)
                left = time.perf_counter()
                watcher.trained()
            seconds = {
                "prepare": begun - start,
                "backend": left - entered,
                "search": queue.seconds,
                "tracking": tracker.seconds,
                "total": time.perf_counter() - start,
            }
            result = summarise(queue, bank.notes, seconds)
            champion = _champion(queue, result, prepared)
            lease.check()
            if not finished_before:  # summing up again must not replace the record of what the work took
                with atomic_file(directory.result) as file:
                    file.write_text(result.model_dump_json(by_alias=True, indent=1) + "\n")
            write_artifacts(directory, spec, bank, queue, result)
            note = finished_note(spec, result, directory.path)
            shown = tracker.finish(_parent_metrics(spec, result), directory.artifacts, champion, note)
        except BaseException:
            tracker.interrupted()
            raise
        if not shown:
            lease.check()
            raise TrackingBehind(result, directory.path, tracker.trouble) from tracker.trouble
        return result
    finally:
        ledger.close()


def set_aside(spec: SweepSpec, lease: Lease) -> None:
    """Keep what an earlier sweep of this name left as `<name>.previous-<N>`; tracking takes it for stopped.

    Args:
        spec: the sweep, with absolute paths (`SweepSpec.anchored`).
        lease: the sweep's.

    Raises:
        UserError: the directory is a matrix's.
        StorageError: it cannot be moved.
    """
    left = left_open(spec)
    if left is not None:
        old, directory = left
        card = _sweep_started(old, directory, None)
        tracker = BackgroundTracker(lambda: old.tracking.open(card, Path(old.storage)), may_write=lease.holds)
        tracker.interrupted()
        if tracker.trouble is not None:
            tell(
                f"what is set aside is still shown as running, for tracking could not be reached: {tracker.why_behind}"
            )
    directories.set_aside(spec)


def _sweep_started(spec: SweepSpec, directory: SweepDirectory, bank: FeatureBank | None) -> SweepStarted:
    """What tracking shows of the sweep; of one that is only closed, as little as finds it again."""
    params = {
        "dataset": spec.dataset.kind,
        "backbone": spec.backbone.kind if spec.backbone else "none",
        "method": ", ".join(candidate.name for candidate in spec.candidates()),
        "trials": spec.search.trials,
        "selection": spec.selection.model_dump_json(
            exclude={"extended_training"}
        ),  # a sweep of before may go on with it
        "phase": "sweep",
    }
    identity = SweepStarted(directory.sweep_id, spec.name, params, directory.started_ms)
    if bank is None:
        return identity
    return replace(
        identity,
        params=params | {"bank": bank.fingerprint},
        series=stage1_series(bank.record),
        note=running_note(spec, directory.path),
        data=dataset_infos(spec, bank),
        view=runs_view(spec, bank.val is not None),
    )


def _champion(queue: TrialQueue, result: Result, prepared: Prepared) -> Champion | None:
    trial, winner = queue.winner(), result.winner
    if trial is None or winner is None:
        return None
    best = next(record for record in queue.finished[trial.name] if record.seed == winner.best_of.seed)
    classifier, bank = trial.method.classifier(queue.ledger.head(best.key)), prepared.bank
    return Champion(
        classifier,
        bank.feature_dim,
        bank.fingerprint,
        with_backbone=lambda: image_classifier(classifier, bank, prepared.images),
        about=champion_note(queue.spec, result),
    )


def _parent_metrics(spec: SweepSpec, result: Result) -> dict[str, float]:
    """The winner's numbers; what it was selected by ranks the sweep's run with it."""
    winner = result.winner
    if winner is None:
        return {}
    values: dict[str, Any] = winner.mean.model_dump()
    values |= {f"best_of_{name}": value for name, value in winner.best_of.model_dump().items() if name[:4] == "acc_"}
    values |= {"loma_mean": winner.loma.mean, "loma_cv": winner.loma.cv}
    values |= {ranked_by(spec): result.methods[0].objective, "objective": result.methods[0].objective}
    return {name: round(value, 6) for name, value in values.items() if value is not None}
