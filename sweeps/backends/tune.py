"""What Ray Tune is given: a class that trains a pack in a worker, a search that hands packs out, ears for failures.

Made by functions, so that importing this module does not import Ray. Knows packs and banks; knows no ledger.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from lt_train.core.errors import LongtailError, StorageError, UserError
from lt_train.features.bank import FeatureBank
from sweeps.cluster.bank_store import fetched
from sweeps.cluster.secret_files import load_secret_files
from sweeps.config.backend import PackSource

__all__ = ["error_listener", "is_own_fault", "searcher", "stopper", "trainable_class"]

PAUSE = 1.0
"""Seconds that a worker waits after its machine could not serve a pack; doubled while that goes on."""

LONGEST_PAUSE = 30.0


def trainable_class() -> Any:
    """The class Tune runs in its workers; made here so that importing this module does not import Ray."""
    import ray
    from ray import tune

    class PackTrainable(tune.Trainable):  # type: ignore[misc]
        """One pack a trial; `reset_config` hands a living actor its next pack."""

        def setup(self, config: dict[str, Any], bank: dict[str, Any], threads: int, device: str) -> None:
            import torch

            torch.set_num_threads(threads)
            self.handed, self.device, self.pack, self.pause = bank, device, config["pack"], PAUSE
            self.bank: FeatureBank | None = None

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.pack = new_config["pack"]
            return True

        def step(self) -> dict[str, Any]:
            from lt_train.retrain import fused

            start = time.perf_counter()
            outcome: Any
            try:
                if self.bank is None:
                    self.bank = _received(self.handed)
                outcome = fused.fit(self.bank, self.pack.runs, self.device, self.pack.rule, self.pack.halving)
                self.pause = PAUSE
            except LongtailError as error:
                outcome = error  # not a failure of this process: the driver knows what to do about it
            if isinstance(outcome, StorageError):
                # A machine that fails at once would otherwise take pack after pack; the others need not wait for it.
                time.sleep(self.pause)
                self.pause = min(2 * self.pause, LONGEST_PAUSE)
            # By reference: heads are large, and Tune would write them into its experiment state again and again.
            return {"outcome": [ray.put(outcome)], "seconds": time.perf_counter() - start, "done": True}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            """Nothing: a pack is atomic."""

        def load_checkpoint(self, checkpoint: Any) -> None:
            """Nothing: a pack is atomic."""

    return PackTrainable


def _received(handed: dict[str, Any]) -> FeatureBank:
    """The bank, in a worker."""
    if "store" not in handed:
        return FeatureBank.from_arrays(handed)
    load_secret_files()  # the store's keys
    return fetched(handed["fingerprint"], handed["store"])


def searcher(source: PackSource) -> Any:
    """Tune's view of a PackSource."""
    import ray
    from ray.tune.search import Searcher

    class PackSearcher(Searcher):  # type: ignore[misc]
        def __init__(self, source: PackSource) -> None:
            super().__init__(metric="seconds", mode="min")
            self.source = source
            self.in_flight: dict[str, Any] = {}
            self.error: BaseException | None = None

        def __getstate__(self) -> dict[str, Any]:
            """Nothing of it: Tune writes a copy of its settings to disk, and the sweep hangs on the source."""
            return {}

        def suggest(self, trial_id: str) -> Any:
            if self.error is not None or self.source.exhausted():
                return Searcher.FINISHED
            try:
                pack = self.source.next_pack()
            except Exception as error:
                self.error = error
                return Searcher.FINISHED
            if pack is None:
                return Searcher.FINISHED if self.source.exhausted() else None
            self.in_flight[trial_id] = pack
            return {"pack": pack}

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            held = (result or {}).get("outcome")
            if error or result is None or not held:
                return  # `failed` hears of it, and why
            # Tune keeps every trial's last result, and pickles it: Ray would hold what it refers to until the end.
            outcome_at = held.pop()
            pack = self.in_flight.pop(trial_id, None)
            if pack is None or self.error is not None:
                return
            try:
                outcome = ray.get(outcome_at)
            except ray.exceptions.RayError as lost:  # its machine died when it was done and not yet fetched
                outcome = StorageError(f"its results were lost: {_in_a_line(lost)}")
            self.take(pack, outcome, result["seconds"])

        def take(self, pack: Any, outcome: Any, seconds: float) -> None:
            try:
                if isinstance(outcome, StorageError):
                    self.source.failed(pack, str(outcome), own=False)
                    return
                if isinstance(outcome, BaseException):
                    raise outcome
                self.source.complete(pack, outcome, seconds)
            except Exception as raised:
                self.error = raised

        def failed(self, trial_id: str, why: str, own: bool) -> None:
            pack = self.in_flight.pop(trial_id, None)
            if pack is None or self.error is not None:
                return
            try:
                self.source.failed(pack, why, own=own)
            except Exception as raised:
                self.error = raised

        def save(self, checkpoint_path: str) -> None:
            """Nothing: the ledger is what a resume reads."""

        def restore(self, checkpoint_path: str) -> None:
            """Nothing: the ledger is what a resume reads."""

    return PackSearcher(source)


def stopper(search: Any) -> Any:
    """Ends Tune when `search` cannot go on: what it has handed out would be trained for nobody."""
    from ray import tune

    class AtAnError(tune.Stopper):  # type: ignore[misc]
        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            return False

        def stop_all(self) -> bool:
            return search.error is not None

    return AtAnError()


def error_listener(search: Any) -> Any:
    """Tells the searcher of every trial that failed, and why, which Tune's own call to it does not say."""
    from ray import cloudpickle, tune

    class ErrorListener(tune.Callback):  # type: ignore[misc]
        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            error: Any = None
            if trial.pickled_error_file is not None:
                pickled = Path(trial.pickled_error_file).read_bytes()
                try:
                    error = cloudpickle.loads(pickled)
                except Exception:  # of a class that this process does not have: as good as not known
                    error = None
            why = _in_a_line(error)
            if getattr(error, "actor_init_failed", False) and why.startswith(("ModuleNotFoundError", "ImportError")):
                search.error = search.error or UserError(
                    f"a worker could not be started: {why}; every node needs the same packages as the driver, those "
                    "that --allow-import names with them (`lt-sweep submit --ship-code` brings them)"
                )
            search.failed(trial.trial_id, why, own=is_own_fault(error))

    return ErrorListener()


def is_own_fault(error: Any) -> bool:
    """Whether a pack's own process is to blame, and not the machine under it or the start of a worker on it.

    Of exceptions, those that training raises are the pack's; Ray's own, and those of files, are the machine's.
    Ray says that a worker's process died when its raylet has seen it die. When the raylet dies too, the actor is
    "unavailable" or its node is dead.
    """
    from ray import exceptions

    if _process_died(error) or isinstance(error, exceptions.OutOfMemoryError | exceptions.WorkerCrashedError):
        return True
    raised = error.cause if isinstance(error, exceptions.RayTaskError) else error
    return raised is not None and not isinstance(raised, exceptions.RayError | OSError)


def _process_died(error: Any) -> bool:
    from ray import exceptions

    return isinstance(error, exceptions.ActorDiedError) and "worker process has died" in str(error)


def _in_a_line(error: Any) -> str:
    """What went wrong, in a line: of an exception in a worker its own words, which come last."""
    from ray import exceptions

    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if error is None or not lines:
        return "Tune does not say why"
    if _process_died(error):
        return "its worker process died: it crashed or was killed, as when memory runs out"
    in_python = isinstance(error, exceptions.RayTaskError) or getattr(error, "actor_init_failed", False)
    return lines[-1] if in_python else lines[0]
