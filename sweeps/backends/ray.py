"""`ray`: Ray Tune drives packs across a cluster. Only this room and `sweeps.cluster.jobs` work on Ray.

A pack is one Tune trial; actors are reused, so a worker process starts once and imports torch once. On a local Ray
workers open the bank where it lies. On a cluster it goes through the object store once, and every worker on a machine
maps the same memory; or it lies in a `bank_store`. Which packs there are is decided by the `PackSource` alone: Tune
asks, waits where it is told to, and is never the one to try a pack again.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from lt_train.core.errors import UserError, first_line
from lt_train.core.progress import tell
from lt_train.features.bank import FeatureBank
from lt_train.features.shards import Workers
from lt_train.pretrain.train import Report
from sweeps.backends.extraction import ray_workers
from sweeps.backends.training import train_together
from sweeps.backends.tune import error_listener, searcher, stopper, trainable_class
from sweeps.cluster.bank_store import publish
from sweeps.cluster.secret_files import holds_credentials
from sweeps.config.backend import BackboneJob, BackendSpec, PackSource
from sweeps.config.sizes import shown_size

__all__ = ["RayBackend"]


def _without_keys(store: str | None) -> str | None:
    if store is not None and holds_credentials(store):
        raise ValueError(
            "must hold no keys, and got some: the file is copied into results; set the store's own variables, such as "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give --secret-file to a job"
        )
    return store


class RayBackend(BackendSpec):
    """Packs as Ray Tune trials, on a local Ray or on the cluster at `address`."""

    has_workers: ClassVar[bool] = True

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

    def trains_elsewhere(self) -> bool:
        """Whether a cluster is joined; a local Ray is this machine."""
        return self.address is not None or bool(os.environ.get("RAY_ADDRESS"))

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
        # Ray prints what its nodes report; standard output is the result's.
        with contextlib.redirect_stdout(sys.stderr):
            self._train(bank, source, cpus, gpus)

    def train_backbone(
        self, job: BackboneJob, out: Path, *, workers: int, cpus: int, gpus: float, report: Report
    ) -> None:
        """See `BackendSpec.train_backbone`; Ray Train starts the workers, and starts them again when one dies."""
        with contextlib.redirect_stdout(sys.stderr), self._ray() as local:
            train_together(job, out, workers=workers, cpus=cpus, gpus=gpus, report=report, local=local)

    def _train(self, bank: FeatureBank, source: PackSource, cpus: int, gpus: float) -> None:
        with self._ray() as local:
            _check_room(cpus, gpus, local=local)
            search = searcher(source)
            handed = self._handed(bank, local=local)
            self._tune(search, handed, cpus, gpus, _slots(cpus, gpus) if local else None)
            if search.error is not None:
                raise search.error

    @contextlib.contextmanager
    def extractors(self, count: int, *, cpus: int, gpus: float) -> Iterator[Workers]:
        """`count` actors on the Ray that packs are trained on."""
        # Ray prints what its nodes report; standard output is the result's.
        with contextlib.redirect_stdout(sys.stderr), self._ray() as local:
            _check_room(cpus, gpus, local=local)
            yield ray_workers(min(count, _slots(cpus, gpus)) if local else count, cpus, gpus)

    @contextlib.contextmanager
    def _ray(self) -> Iterator[bool]:
        """Join Ray, or start one where there is none; yields whether it is one of ours, on this machine."""
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray

        started = not ray.is_initialized()
        local = not self.trains_elsewhere()
        if started:
            with _own_sigterm(), contextlib.nullcontext() if local else self._joining():
                ray.init(
                    address="local" if local else self.address or "auto",
                    include_dashboard=False if local else None,
                    log_to_driver=False,
                    logging_level="ERROR",
                )
        try:
            yield local and started
        finally:
            if started:
                # What Tune leaves asks Ray for something when it is collected, in whatever thread; and Ray ends the
                # process, without a word, where that comes in the middle of its shutdown.
                gc.collect()
                with _own_sigterm():
                    ray.shutdown()

    @contextlib.contextmanager
    def _joining(self) -> Iterator[None]:
        from ray.exceptions import RayError

        try:
            yield
        except (OSError, RuntimeError, ValueError, RayError) as error:
            raise UserError(
                f"the Ray cluster at {self.address or os.environ.get('RAY_ADDRESS')} cannot be joined: "
                f"{first_line(error)}; see backend.address or RAY_ADDRESS, and of a cluster that asks for a token "
                "RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH"
            ) from error

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
    def _tune(search: Any, bank: dict[str, Any], cpus: int, gpus: float, at_once: int | None) -> None:
        from ray import tune

        device = "cuda" if gpus else "cpu"
        with tempfile.TemporaryDirectory(prefix="lt-sweep-tune-") as scratch:
            trainable = tune.with_parameters(trainable_class(), bank=bank, threads=cpus, device=device)
            tuner = tune.Tuner(
                tune.with_resources(trainable, {"cpu": cpus, "gpu": gpus}),
                tune_config=tune.TuneConfig(
                    search_alg=search,
                    num_samples=-1,
                    reuse_actors=True,
                    max_concurrent_trials=at_once,
                    trial_dirname_creator=lambda trial: trial.trial_id,
                ),
                run_config=tune.RunConfig(
                    name="packs",
                    storage_path=scratch,
                    verbose=0,
                    callbacks=[error_listener(search)],
                    stop=stopper(search),
                ),
            )
            with _stopped_in_good_order():
                tuner.fit()


@contextlib.contextmanager
def _stopped_in_good_order() -> Iterator[None]:
    """Have Tune end at the first Ctrl-C or SIGTERM as it ends at its own signal: between two steps, cleaning up.

    What is being recorded then is recorded whole, and workers do not go on with their packs on a Ray that this process
    goes on with. A second signal interrupts at once.

    Raises:
        KeyboardInterrupt: afterwards.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[int] = []
    tune = logging.getLogger("ray.tune.tune")
    level = tune.level

    def interrupt(number: int, frame: Any) -> None:
        asked.append(number)
        tune.setLevel(logging.CRITICAL)  # it would say that trials which are stopped have not completed
        if len(asked) > 1 or not callable(signal.getsignal(signal.SIGUSR1)):
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGUSR1)  # Tune's handler ends its loop

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    for number in (signal.SIGINT, signal.SIGTERM):
        if callable(before[number]):  # not where it is ignored, or the system's own sudden end
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        tune.setLevel(level)
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        raise KeyboardInterrupt


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
    """Refuse packs that a local Ray can never place; of a cluster, which may grow, only tell that it has to.

    Raises:
        UserError: the pack asks for more than there is.
    """
    import ray

    asked = {"CPU": cpus, "GPU": gpus}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(all(node.get(kind, 0) >= count for kind, count in asked.items()) for node in nodes):
        return
    if local:
        has = {kind: max(node.get(kind, 0) for node in nodes) for kind in asked}
        kind = next(kind for kind in asked if asked[kind] > has[kind])
        field = f"resources.{kind.lower()}s_per_pack"
        raise UserError(f"{field} must be at most the {has[kind]:g} {kind}s that Ray has here, got {asked[kind]}")
    there = "; ".join(sorted({f"{node.get('CPU', 0):g} and {node.get('GPU', 0):g}" for node in nodes}))
    tell(
        f"no node of the cluster has the {cpus} CPUs and {gpus:g} GPUs of a pack, they have {there}; waiting for one "
        "that has to join, or stop the sweep and lower resources.cpus_per_pack or gpus_per_pack"
    )


def _slots(cpus: int, gpus: float) -> int:
    """How many packs fit on the Ray that is there: on a local one, which does not grow, more would only queue.

    Tune starts an actor for everything it holds, and at the end waits seconds for those that never got a place.
    """
    import ray

    there = ray.cluster_resources()
    slots = there.get("CPU", 0) / cpus
    # 1 // 0.1 is 9: the nearest float to 0.1 is above it.
    return max(1, int((min(slots, there.get("GPU", 0) / gpus) if gpus else slots) + 1e-9))
