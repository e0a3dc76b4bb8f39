"""`ray`: Ray Tune drives packs across a cluster. The only file that trains on Ray.

A pack is one Tune trial; actors are reused, so a worker process starts once and imports torch once. On a local Ray
workers open the bank where it lies. On a cluster it goes through the object store once, and every worker on a machine
maps the same memory; or it lies in a `bank_store`. Which packs there are is decided by the `PackSource` alone: Tune
asks, waits where it is told to, and is never the one to try a pack again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from lt_train.errors import LongtailError, StorageError, UserError
from lt_train.features.bank import FeatureBank, open_bank
from sweeps.backends.base import BackendSpec, PackSource
from sweeps.bank_store import holds_keys, obtain, publish
from sweeps.secret_files import load_secret_files
from sweeps.sizes import shown_size

__all__ = ["RayBackend"]

PAUSE = 1.0
"""Seconds that no pack is handed out after a machine could not serve one; doubled while that goes on."""

LONGEST_PAUSE = 30.0


def _without_keys(store: str | None) -> str | None:
    if store is not None and holds_keys(store):
        raise ValueError(
            "must hold no keys, and got some: the file is copied into results; set the store's own variables, such as "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give --secret-file to a job"
        )
    return store


class RayBackend(BackendSpec):
    """Packs as Ray Tune trials, on a local Ray or on the cluster at `address`."""

    kind: Literal["ray"] = "ray"
    address: str | None = Field(
        default=None,
        description='cluster to join ("auto" or host:port); null: the one of RAY_ADDRESS, else a local Ray that '
        "is started and stopped again",
    )
    bank_store: Annotated[str | None, AfterValidator(_without_keys)] = Field(
        default=None,
        min_length=1,
        description="where workers read the features: a directory that all machines share, or a URL such as "
        "s3://bucket/banks; null: they are sent through Ray's object store, once to each machine",
    )

    def train(self, bank: FeatureBank, source: PackSource, *, cpus: int, gpus: float) -> None:
        """Train packs from `source` until it is exhausted.

        Raises:
            UserError: a local Ray is asked for more than it has, or the features do not fit its object store.
            LongtailError: what a pack raised that would not go away by itself, or what `source` raised.
        """
        # Tune writes result files for every trial unless told not to: they cost driver memory and inodes, and the
        # ledger is the truth. By default it also holds one trial pending at a time.
        os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
        os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "1000")
        os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # an interrupt is the command line's to handle
        os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")  # they are told, and dealt with, in fewer words
        os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        # Ray prints what its nodes report; standard output is the result's.
        with contextlib.redirect_stdout(sys.stderr):
            self._train(bank, source, cpus, gpus)

    def _train(self, bank: FeatureBank, source: PackSource, cpus: int, gpus: float) -> None:
        import ray

        started = not ray.is_initialized()
        local = self.address is None and not os.environ.get("RAY_ADDRESS")
        if started:
            with _own_sigterm():
                ray.init(
                    address="local" if local else self.address or "auto",
                    include_dashboard=False if local else None,
                    log_to_driver=False,
                    logging_level="ERROR",
                )
        try:
            local = local and started
            _check_room(cpus, gpus, local=local)
            searcher = _searcher(source)
            handed = self._handed(bank, local=local)
            self._tune(searcher, handed, cpus, gpus, _slots(cpus, gpus) if local else None)
            if searcher.error is not None:
                raise searcher.error
        finally:
            if started:
                with _own_sigterm():
                    ray.shutdown()

    def _handed(self, bank: FeatureBank, *, local: bool) -> dict[str, Any]:
        """The bank as workers are handed it: its arrays, or where it lies."""
        if local and bank.path is not None:
            return {"fingerprint": bank.fingerprint, "store": str(bank.path.parent)}
        if self.bank_store is None:
            arrays = bank.to_arrays()
            _check_object_store(arrays)
            return arrays
        assert bank.path is not None, "a sweep trains on a bank that it has opened"
        publish(bank.path, self.bank_store)
        return {"fingerprint": bank.fingerprint, "store": self.bank_store}

    @staticmethod
    def _tune(searcher: Any, bank: dict[str, Any], cpus: int, gpus: float, at_once: int | None) -> None:
        from ray import tune

        device = "cuda" if gpus else "cpu"
        with tempfile.TemporaryDirectory(prefix="lt-sweep-tune-") as scratch:
            trainable = tune.with_resources(
                tune.with_parameters(_trainable(), bank=bank, threads=cpus, device=device), {"cpu": cpus, "gpu": gpus}
            )
            tuner = tune.Tuner(
                trainable,
                tune_config=tune.TuneConfig(
                    search_alg=searcher,
                    num_samples=-1,
                    reuse_actors=True,
                    max_concurrent_trials=at_once,
                    trial_dirname_creator=lambda trial: trial.trial_id,
                ),
                run_config=tune.RunConfig(
                    name="packs", storage_path=scratch, verbose=0, callbacks=[_error_listener(searcher)]
                ),
            )
            tuner.fit()


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep this process's answer to SIGTERM, which Ray takes away, so that a stopped sweep is closed in good order.

    `ray.init` puts an answer of its own in its place; `ray.shutdown` sets it, behind Python's back, to sudden death.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _check_object_store(arrays: dict[str, Any]) -> None:
    """Refuse features that no machine's object store can hold: Ray would write them to disk, again and again.

    Raises:
        UserError: they are too large.
    """
    import ray

    size = sum(array.nbytes for array in arrays.values() if hasattr(array, "nbytes"))
    stores = [node["Resources"].get("object_store_memory", 0) for node in ray.nodes() if node["Alive"]]
    smallest = min((store for store in stores if store), default=0)
    if size > smallest:
        raise UserError(
            f"the features take {shown_size(size)}, and the smallest object store of this Ray holds "
            f"{shown_size(int(smallest))}; give backend.bank_store a directory that all machines share, or an s3:// or "
            "gs:// URL, or start Ray with a larger --object-store-memory"
        )


def _check_room(cpus: int, gpus: float, local: bool) -> None:
    """Refuse packs that a local Ray can never place; a cluster may still grow.

    Raises:
        UserError: the pack asks for more than there is.
    """
    import ray

    there = ray.cluster_resources()
    for field, asked, kind in (("cpus_per_pack", cpus, "CPU"), ("gpus_per_pack", gpus, "GPU")):
        has = there.get(kind, 0)
        if local and asked > has:
            raise UserError(f"resources.{field} must be at most the {has:g} {kind}s that Ray has here, got {asked}")


def _slots(cpus: int, gpus: float) -> int:
    """How many packs fit on the Ray that is there: on a local one, which does not grow, more would only queue.

    Tune starts an actor for everything it holds, and at the end waits seconds for those that never got a place.
    """
    import ray

    there = ray.cluster_resources()
    slots = there.get("CPU", 0) // cpus
    return max(1, int(min(slots, there.get("GPU", 0) // gpus) if gpus else slots))


def _trainable() -> Any:
    """The class Tune runs in its workers; made here so that importing this module does not import Ray."""
    import ray
    from ray import tune

    class PackTrainable(tune.Trainable):  # type: ignore[misc]
        """One pack a trial; `reset_config` hands a living actor its next pack."""

        def setup(self, config: dict[str, Any], bank: dict[str, Any], threads: int, device: str) -> None:
            import torch

            torch.set_num_threads(threads)
            self.handed, self.device, self.pack = bank, device, config["pack"]
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
            except LongtailError as error:
                outcome = error  # not a failure of this process: the driver knows what to do about it
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
    return open_bank(obtain(handed["fingerprint"], handed["store"]))


def _searcher(source: PackSource) -> Any:
    """Tune's view of a PackSource."""
    import ray
    from ray.tune.search import Searcher

    class PackSearcher(Searcher):  # type: ignore[misc]
        def __init__(self, source: PackSource) -> None:
            super().__init__(metric="seconds", mode="min")
            self.source = source
            self.in_flight: dict[str, Any] = {}
            self.error: BaseException | None = None
            self.pause, self.resume_at = PAUSE, 0.0

        def __getstate__(self) -> dict[str, Any]:
            """Nothing of it: Tune writes a copy of its settings to disk, and the sweep hangs on the source."""
            return {}

        def suggest(self, trial_id: str) -> Any:
            if self.error is not None or self.source.exhausted():
                return Searcher.FINISHED
            if time.monotonic() < self.resume_at:
                return None
            try:
                pack = self.source.next_pack()
            except BaseException as error:
                self.error = error
                return Searcher.FINISHED
            if pack is None:
                return Searcher.FINISHED if self.source.exhausted() else None
            self.in_flight[trial_id] = pack
            return {"pack": pack}

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            if error or result is None or "outcome" not in result:
                return  # `failed` hears of it, and why
            pack = self.in_flight.pop(trial_id, None)
            if pack is None or self.error is not None:
                return
            try:
                outcome = ray.get(result["outcome"][0])
            except ray.exceptions.RayError as lost:  # its machine died when it was done and not yet fetched
                outcome = StorageError(f"its results were lost: {_in_a_line(lost)}")
            self.take(pack, outcome, result["seconds"])

        def take(self, pack: Any, outcome: Any, seconds: float) -> None:
            try:
                if isinstance(outcome, StorageError):
                    self.source.failed(pack, str(outcome), own=False)
                    # A machine that fails at once would otherwise take pack after pack, and fail each.
                    self.resume_at = time.monotonic() + self.pause
                    self.pause = min(2 * self.pause, LONGEST_PAUSE)
                    return
                if isinstance(outcome, BaseException):
                    raise outcome
                self.source.complete(pack, outcome, seconds)
                self.pause = PAUSE
            except BaseException as raised:
                self.error = raised

        def failed(self, trial_id: str, why: str, own: bool) -> None:
            pack = self.in_flight.pop(trial_id, None)
            if pack is None or self.error is not None:
                return
            try:
                self.source.failed(pack, why, own=own)
            except BaseException as raised:
                self.error = raised

        def save(self, checkpoint_path: str) -> None:
            """Nothing: the ledger is what a resume reads."""

        def restore(self, checkpoint_path: str) -> None:
            """Nothing: the ledger is what a resume reads."""

    return PackSearcher(source)


def _error_listener(searcher: Any) -> Any:
    """Tells the searcher of every trial that failed, and why: Tune's own call to it does not say."""
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
                searcher.error = searcher.error or UserError(
                    f"a worker could not be started: {why}; every node needs the same packages as the driver, those "
                    "that --allow-import names with them (`lt-sweep submit --ship-code` brings them)"
                )
            searcher.failed(trial.trial_id, why, own=_own_fault(error))

    return ErrorListener()


def _own_fault(error: Any) -> bool:
    """Whether a pack's own process is to blame, and not the machine under it or the start of a worker on it.

    Ray says that a worker's process died when its raylet has seen it die. When the raylet dies too, the actor is
    "unavailable" or its node is dead.
    """
    from ray import exceptions

    machines = (
        exceptions.RayActorError,
        exceptions.ObjectLostError,
        exceptions.NodeDiedError,
        exceptions.RaySystemError,
    )
    return _process_died(error) or (error is not None and not isinstance(error, machines))


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
