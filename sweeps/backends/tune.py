"""Classes that Ray Tune is configured with: trainable, search algorithm, stopper and error callback.

Functions create the classes, so that importing this module does not import Ray.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from lt_train.core.errors import LongtailError, StorageError, UserError
from lt_train.features.bank import FeatureBank
from lt_train.retrain.base import Pack
from sweeps.backends.packed import CannotImport, pack_bytes, unpack
from sweeps.cluster.bank_store import open_published_bank
from sweeps.cluster.environment import load_secret_files
from sweeps.config.interfaces import PackSource

__all__ = ["error_listener", "is_own_fault", "searcher", "stopper", "trainable_class"]

PAUSE = 1.0
"""Seconds that a worker waits after its machine failed to train a pack; doubled with every further failure."""

LONGEST_PAUSE = 30.0


def trainable_class() -> Any:
    """The class that Tune runs in its workers."""
    import ray
    from ray import tune

    class PackTrainable(tune.Trainable):  # type: ignore[misc]
        """One pack per trial; `reset_config` gives a running actor its next pack."""

        def setup(self, config: dict[str, Any], bank: dict[str, Any], threads: int, device: str) -> None:
            import torch

            torch.set_num_threads(threads)
            self.payload, self.device, self.data, self.pause = bank, device, config["pack"], PAUSE
            self.bank: FeatureBank | None = None

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.data = new_config["pack"]
            return True

        def step(self) -> dict[str, Any]:
            from lt_train.retrain import fused

            start = time.perf_counter()
            outcome: Any
            try:
                pack = outcome = unpack(self.data)
                if isinstance(pack, Pack):
                    if self.bank is None:
                        self.bank = _open_bank(self.payload)
                    outcome = fused.fit(self.bank, pack.runs, self.device, pack.rule, pack.halving)
                self.pause = PAUSE
            except LongtailError as error:
                outcome = error  # raised by the driver, or retried
            if isinstance(outcome, StorageError):
                # Otherwise a machine that fails immediately would take one pack after another.
                time.sleep(self.pause)
                self.pause = min(2 * self.pause, LONGEST_PAUSE)
            # By reference: heads are large, and Tune writes results into its experiment state repeatedly.
            return {"outcome": [ray.put(outcome)], "seconds": time.perf_counter() - start, "done": True}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            """Does nothing: a pack is atomic."""

        def load_checkpoint(self, checkpoint: Any) -> None:
            """Does nothing: a pack is atomic."""

    return PackTrainable


def _open_bank(payload: dict[str, Any]) -> FeatureBank:
    """The bank, in a worker."""
    if "store" not in payload:
        return FeatureBank.from_arrays(payload)
    load_secret_files()  # the store's keys
    return open_published_bank(payload["fingerprint"], payload["store"])


def searcher(source: PackSource) -> Any:
    """A Tune search algorithm that proposes the packs of `source`."""
    import ray
    from ray.tune.search import Searcher

    class PackSearcher(Searcher):  # type: ignore[misc]
        def __init__(self, source: PackSource) -> None:
            super().__init__(metric="seconds", mode="min")
            self.source = source
            self.in_flight: dict[str, Any] = {}
            self.error: BaseException | None = None

        def __getstate__(self) -> dict[str, Any]:
            """Empty: Tune pickles its configuration, and the source must stay in this process."""
            return {}

        def suggest(self, trial_id: str) -> Any:
            if self.error is not None or self.source.exhausted():
                return Searcher.FINISHED
            try:
                pack = self.source.next_pack()
                data = None if pack is None else pack_bytes(pack)
            except Exception as error:
                self.error = error
                return Searcher.FINISHED
            if pack is None:
                return Searcher.FINISHED if self.source.exhausted() else None
            self.in_flight[trial_id] = pack
            return {"pack": data}

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            references = (result or {}).get("outcome")
            if error or result is None or not references:
                return  # the error listener calls `failed`
            # Removed from the result, which Tune keeps until the end: otherwise Ray would keep the heads in memory.
            reference = references.pop()
            pack = self.in_flight.pop(trial_id, None)
            if pack is None or self.error is not None:
                return
            try:
                outcome = ray.get(reference)
            except ray.exceptions.RayError as lost:  # the machine died before its results were fetched
                outcome = StorageError(f"its results were lost: {_summary(lost)}")
            self.take(pack, outcome, result["seconds"])

        def take(self, pack: Any, outcome: Any, seconds: float) -> None:
            try:
                if isinstance(outcome, CannotImport):
                    raise outcome.error(pack)  # it would occur again
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
            """Does nothing: a resume reads the ledger."""

        def restore(self, checkpoint_path: str) -> None:
            """Does nothing: a resume reads the ledger."""

    return PackSearcher(source)


def stopper(search: Any) -> Any:
    """Ends Tune when `search` has an error, without waiting for packs in flight."""
    from ray import tune

    class StopOnError(tune.Stopper):  # type: ignore[misc]
        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            return False

        def stop_all(self) -> bool:
            return search.error is not None

    return StopOnError()


def error_listener(search: Any) -> Any:
    """Reports failed trials and their errors to `search`; Tune's own callback to it does not contain the error."""
    from ray import cloudpickle, tune

    class ErrorListener(tune.Callback):  # type: ignore[misc]
        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            error: Any = None
            if trial.pickled_error_file is not None:
                pickled = Path(trial.pickled_error_file).read_bytes()
                try:
                    error = cloudpickle.loads(pickled)
                except Exception:  # of a class that this process cannot import
                    error = None
            why = _summary(error)
            if getattr(error, "actor_init_failed", False) and why.startswith(("ModuleNotFoundError", "ImportError")):
                search.error = search.error or UserError(
                    f"cannot start a worker: {why}; every node needs the packages of the driver, including those named "
                    "by --allow-import (`lt-sweep submit --ship-code` sends them)"
                )
            search.failed(trial.trial_id, why, own=is_own_fault(error))

    return ErrorListener()


def is_own_fault(error: Any) -> bool:
    """Whether a pack's own process caused the failure, as opposed to its machine or the start of a worker.

    Exceptions raised by training are the pack's; Ray's own exceptions and file errors are the machine's. Ray reports
    the death of a worker process if its raylet is alive to see it. If the raylet dies too, Ray reports the actor as
    unavailable or its node as dead.
    """
    from ray import exceptions

    if _process_died(error) or isinstance(error, exceptions.OutOfMemoryError | exceptions.WorkerCrashedError):
        return True
    raised = error.cause if isinstance(error, exceptions.RayTaskError) else error
    return raised is not None and not isinstance(raised, exceptions.RayError | OSError)


def _process_died(error: Any) -> bool:
    from ray import exceptions

    return isinstance(error, exceptions.ActorDiedError) and "worker process has died" in str(error)


def _summary(error: Any) -> str:
    """The reason of a failure in one line; for a Python exception in a worker, its message, which Ray puts last."""
    from ray import exceptions

    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if error is None or not lines:
        return "Ray Tune reported no reason"
    if _process_died(error):
        return "its worker process died: it crashed or was killed, for example because memory ran out"
    in_python = isinstance(error, exceptions.RayTaskError) or getattr(error, "actor_init_failed", False)
    return lines[-1] if in_python else lines[0]
