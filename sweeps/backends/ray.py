"""`ray`: Ray Tune drives packs across a cluster. The only file that imports Ray.

A pack is one Tune trial; actors are reused, so a worker process starts once and imports torch once. The bank goes
through the object store once and every worker on a node maps the same memory. Which packs there are is decided by
the `PackSource` alone: Tune asks, and waits where it is told to.
"""

from __future__ import annotations

import os
import tempfile
import time
from typing import Any, Literal

from pydantic import Field

from lt_train.errors import LongtailError, UserError
from lt_train.features.bank import FeatureBank
from sweeps.backends.base import BackendSpec, PackSource

__all__ = ["RayBackend"]

PACK_ATTEMPTS = 3
"""How often a pack whose worker died is tried in all."""


class RayBackend(BackendSpec):
    """Packs as Ray Tune trials, on a local Ray or on the cluster at `address`."""

    kind: Literal["ray"] = "ray"
    address: str | None = Field(
        default=None, description='cluster to join ("auto" or host:port); null starts a local Ray and stops it again'
    )

    def train(self, bank: FeatureBank, source: PackSource, *, cpus: int, gpus: float) -> None:
        """Train packs from `source` until it is exhausted.

        Raises:
            LongtailError: a pack failed `PACK_ATTEMPTS` times; whatever was complete before is in the ledger.
        """
        # Tune writes result files for every trial unless told not to: they cost driver memory and inodes, and the
        # ledger is the truth. By default it also holds one trial pending at a time.
        os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
        os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "1000")
        os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # an interrupt is the command line's to handle
        os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray
        from ray import tune

        started = not ray.is_initialized()
        if started:
            ray.init(
                address=self.address,
                include_dashboard=False if self.address is None else None,
                log_to_driver=False,
                logging_level="ERROR",
            )
        try:
            _check_room(cpus, gpus, local=started and self.address is None)
            searcher = _searcher(source)
            with tempfile.TemporaryDirectory(prefix="lt-sweep-tune-") as scratch:
                trainable = tune.with_resources(
                    tune.with_parameters(
                        _trainable(), bank=bank.to_arrays(), threads=cpus, device="cuda" if gpus else "cpu"
                    ),
                    {"cpu": cpus, "gpu": gpus},
                )
                tuner = tune.Tuner(
                    trainable,
                    tune_config=tune.TuneConfig(
                        search_alg=searcher,
                        num_samples=-1,
                        reuse_actors=True,
                        max_concurrent_trials=_slots(cpus, gpus) if started and self.address is None else None,
                        trial_dirname_creator=lambda trial: trial.trial_id,
                    ),
                    run_config=tune.RunConfig(
                        name="packs",
                        storage_path=scratch,
                        verbose=0,
                        failure_config=tune.FailureConfig(max_failures=PACK_ATTEMPTS - 1),
                    ),
                )
                grid = tuner.fit()
                causes = [str(error).strip().splitlines()[-1] for error in grid.errors]
            if searcher.error is not None:
                raise searcher.error
            if searcher.failed_pack is not None:
                raise LongtailError(
                    f"pack {searcher.failed_pack} failed {PACK_ATTEMPTS} times on Ray: {'; '.join(causes)}; "
                    "`lt-sweep resume` goes on from the last finished pack"
                )
        finally:
            if started:
                ray.shutdown()


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
            self.bank, self.device, self.pack = FeatureBank.from_arrays(bank), device, config["pack"]

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.pack = new_config["pack"]
            return True

        def step(self) -> dict[str, Any]:
            from lt_train.retrain import fused

            start = time.perf_counter()
            outcome: Any
            try:
                outcome = fused.fit(self.bank, self.pack.runs, self.device, self.pack.rule, self.pack.halving)
            except LongtailError as error:
                outcome = error  # trying again would not help: let the driver raise it
            # By reference: heads are large, and Tune would write them into its experiment state again and again.
            return {"outcome": [ray.put(outcome)], "seconds": time.perf_counter() - start, "done": True}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            """Nothing: a pack is atomic."""

        def load_checkpoint(self, checkpoint: Any) -> None:
            """Nothing: a pack is atomic."""

    return PackTrainable


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
            self.failed_pack: str | None = None

        def __getstate__(self) -> dict[str, Any]:
            """Nothing of it: Tune writes a copy of its settings to disk, and the sweep hangs on the source."""
            return {}

        def suggest(self, trial_id: str) -> Any:
            if self.error is not None or self.failed_pack is not None or self.source.exhausted():
                return Searcher.FINISHED
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
            pack = self.in_flight.pop(trial_id, None)
            if pack is None or self.error is not None:
                return
            if error or result is None or "outcome" not in result:
                self.failed_pack = pack.name  # no new pack is started; those in flight are still taken
                return
            try:
                outcome = ray.get(result["outcome"][0])
                if isinstance(outcome, LongtailError):
                    raise outcome
                self.source.complete(pack, outcome, result["seconds"])
            except BaseException as raised:
                self.error = raised

        def save(self, checkpoint_path: str) -> None:
            """Nothing: the ledger is what a resume reads."""

        def restore(self, checkpoint_path: str) -> None:
            """Nothing: the ledger is what a resume reads."""

    return PackSearcher(source)
