"""Backend `ray`: Ray Tune schedules packs on a local Ray or on a cluster.

A pack is one Tune trial. Actors are reused, so a worker process starts once and imports torch once. On a local Ray,
workers open the feature bank from disk. On a cluster, the bank is sent through the object store once per machine, where
all workers map the same memory, or workers read it from a `bank_store`. The `PackSource` alone decides which packs
exist: Tune requests packs, waits when there is none, and never retries one.
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
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field

from lt_train.core.errors import UserError, first_line
from lt_train.core.imports import require
from lt_train.core.registry import PATH
from lt_train.core.text import format_bytes
from sweeps.cluster.environment import holds_credentials
from sweeps.config.interfaces import BACKENDS, BackboneJob, BackendSpec, PackSource

if TYPE_CHECKING:
    from lt_train.core.text import ProgressCallback
    from lt_train.features.bank import FeatureBank
    from lt_train.features.shards import Workers

__all__ = ["RayBackend"]

logger = logging.getLogger(__name__)


def _without_credentials(store: str | None) -> str | None:
    if store is not None and holds_credentials(store):  # a message with "got" is shown without the value
        raise ValueError(
            "must not contain keys, got a URL with one; sweep files are copied into results, so set the store's own "
            "environment variables instead, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or submit with "
            "--secret-file"
        )
    return store


@BACKENDS.register
class RayBackend(BackendSpec):
    """Packs as Ray Tune trials, on a local Ray or on the cluster at `address`."""

    libraries: ClassVar[tuple[str, ...]] = ("ray",)
    has_workers: ClassVar[bool] = True

    kind: Literal["ray"] = "ray"
    address: str | None = Field(
        default=None,
        description='cluster to join ("auto" or host:port); null: the cluster in RAY_ADDRESS, else a local Ray that is '
        "started for the sweep",
    )
    bank_store: Annotated[str | None, PATH, AfterValidator(_without_credentials)] = Field(
        default=None,
        min_length=1,
        description="where workers read the features: a directory that all machines share, or a URL such as "
        "s3://bucket/banks; null: features are sent through Ray's object store, once per machine",
    )

    def submission_problem(self) -> str:
        """Banks must be where the machines of the cluster can read them."""
        store = self.bank_store or "/"
        if "://" in store or Path(store).is_absolute():
            return ""
        return (
            f"backend.bank_store must be an absolute path or a URL for a submitted sweep, got {store}; give a "
            "directory that all machines of the cluster share, or a URL such as s3://bucket/banks"
        )

    def trains_elsewhere(self) -> bool:
        """True if a cluster is joined; a local Ray uses this machine."""
        return self.address is not None or bool(os.environ.get("RAY_ADDRESS"))

    def train(self, bank: FeatureBank, source: PackSource, *, cpus: int, gpus: float) -> None:
        """Train packs from `source` until it is exhausted.

        Raises:
            UserError: a pack needs more than a local Ray has, the features do not fit into the object store, or Ray is
                not installed.
            LongtailError: a pack or `source` raised an error that a retry would not resolve.
        """
        from sweeps.backends.tune import searcher

        # No result files per trial: they cost memory and inodes, and the ledger already has every result.
        os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
        os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "1000")  # by default Tune holds one pending trial
        os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # the command line handles interrupts
        os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")  # we report errors ourselves
        os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
        # Ray prints reports of its nodes; standard output is reserved for results.
        with contextlib.redirect_stdout(sys.stderr), self._ray() as local:
            _check_resources(cpus, gpus, local=local)
            search = searcher(source)
            self._tune(search, self._payload(bank, local=local), cpus, gpus, _slots(cpus, gpus) if local else None)
            if search.error is not None:
                raise search.error

    def train_backbone(
        self, job: BackboneJob, out: Path, *, workers: int, cpus: int, gpus: float, report: ProgressCallback
    ) -> None:
        """See `BackendSpec.train_backbone`. Ray Train starts the workers, and restarts them when one dies."""
        from sweeps.backends.workers import train_together

        with contextlib.redirect_stdout(sys.stderr), self._ray() as local:
            train_together(job, out, workers=workers, cpus=cpus, gpus=gpus, report=report, local=local)

    @contextlib.contextmanager
    def extractors(self, count: int, *, cpus: int, gpus: float) -> Iterator[Workers]:
        """See `BackendSpec.extractors`; the processes are Ray actors."""
        from sweeps.backends.workers import ray_workers

        # Ray prints reports of its nodes; standard output is reserved for results.
        with contextlib.redirect_stdout(sys.stderr), self._ray() as local:
            _check_resources(cpus, gpus, local=local)
            yield ray_workers(min(count, _slots(cpus, gpus)) if local else count, cpus, gpus)

    @contextlib.contextmanager
    def _ray(self) -> Iterator[bool]:
        """Join a cluster or start a local Ray; yields True for a local Ray that this call has started."""
        require(*self.libraries)
        # Otherwise Ray hides all GPUs from workers that reserve none.
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
                # Objects left by Tune call Ray from their finalizers. During a shutdown such a call ends the process.
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
                f"cannot join the Ray cluster at {self.address or os.environ.get('RAY_ADDRESS')}: {first_line(error)}; "
                "check backend.address or RAY_ADDRESS and, if the cluster requires a token, RAY_AUTH_MODE and "
                "RAY_AUTH_TOKEN_PATH"
            ) from error

    def _payload(self, bank: FeatureBank, *, local: bool) -> dict[str, Any]:
        """What workers receive of the bank: its arrays, or `fingerprint` and `store`, the directory or URL to read."""
        from sweeps.cluster.bank_store import publish_bank

        if local and bank.path is not None:
            return {"fingerprint": bank.fingerprint, "store": str(bank.path.parent)}
        if self.bank_store is None:
            arrays = bank.to_arrays()
            _check_object_store(arrays)
            return arrays
        assert bank.path is not None, "a sweep trains on a bank that it has opened"
        publish_bank(bank.path, self.bank_store)
        return {"fingerprint": bank.fingerprint, "store": self.bank_store}

    @staticmethod
    def _tune(search: Any, bank: dict[str, Any], cpus: int, gpus: float, at_once: int | None) -> None:
        from ray import tune

        from sweeps.backends.tune import error_listener, stopper, trainable_class

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
            with _graceful_stop():
                tuner.fit()


@contextlib.contextmanager
def _graceful_stop() -> Iterator[None]:
    """End Tune between two steps at the first Ctrl-C or SIGTERM, as at Tune's own signal SIGUSR1.

    A result that is being recorded is recorded completely, and workers do not continue their packs on a Ray that
    outlives the sweep. A second signal interrupts at once.

    Raises:
        KeyboardInterrupt: at the end of the block, if there was a signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    tune = logging.getLogger("ray.tune.tune")
    level = tune.level

    def interrupt(number: int, frame: Any) -> None:
        received.append(number)
        tune.setLevel(logging.CRITICAL)  # no warning about trials that did not complete
        if len(received) > 1 or not callable(signal.getsignal(signal.SIGUSR1)):
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGUSR1)  # Tune's handler ends its loop

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    for number in (signal.SIGINT, signal.SIGTERM):
        if callable(before[number]):  # leave SIG_IGN and SIG_DFL in place
            signal.signal(number, interrupt)
    try:
        yield
    finally:
        tune.setLevel(level)
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        raise KeyboardInterrupt


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep this process's SIGTERM handler, so that a stopped sweep is closed properly.

    `ray.init` replaces the handler; `ray.shutdown` resets it to the default, unknown to Python's `signal` module.
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
    """Check that the smallest object store can hold the features; otherwise Ray would spill them to disk repeatedly.

    Raises:
        UserError: they are too large.
    """
    import ray

    size = sum(array.nbytes for array in arrays.values() if hasattr(array, "nbytes"))
    stores = [node["Resources"].get("object_store_memory", 0) for node in ray.nodes() if node["Alive"]]
    smallest = min((store for store in stores if store), default=0)
    if size > smallest:
        raise UserError(
            f"the features take {format_bytes(size)}, but the smallest object store of the cluster holds "
            f"{format_bytes(int(smallest))}; set backend.bank_store to a directory that all machines share or to an "
            "s3:// or gs:// URL, or start Ray with a larger --object-store-memory"
        )


def _check_resources(cpus: int, gpus: float, local: bool) -> None:
    """Refuse packs that a local Ray can never place. A cluster may grow: log a warning.

    Raises:
        UserError: a pack needs more than the machine has.
    """
    import ray

    needed = {"CPU": cpus, "GPU": gpus}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(all(node.get(kind, 0) >= count for kind, count in needed.items()) for node in nodes):
        return
    if local:
        has = {kind: max(node.get(kind, 0) for node in nodes) for kind in needed}
        kind = next(kind for kind in needed if needed[kind] > has[kind])
        raise UserError(
            f"resources.{kind.lower()}s_per_pack must be at most {has[kind]:g}, the number of {kind}s of this machine, "
            f"got {needed[kind]}"
        )
    sizes = "; ".join(sorted({f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes}))
    logger.warning(
        f"no node of the cluster has the {cpus} CPUs and {gpus:g} GPUs that a pack needs (nodes have {sizes}); waiting "
        "for a larger node to join; to use these nodes, lower resources.cpus_per_pack or gpus_per_pack"
    )


def _slots(cpus: int, gpus: float) -> int:
    """Number of packs that a local Ray can train at a time.

    Tune starts an actor for every trial it holds, and at the end waits seconds for actors that were never placed.
    """
    import ray

    total = ray.cluster_resources()
    slots = total.get("CPU", 0) / cpus
    # The sum avoids a rounding error: 1 // 0.1 is 9, because the nearest float to 0.1 is above 0.1.
    return max(1, int((min(slots, total.get("GPU", 0) / gpus) if gpus else slots) + 1e-9))
