"""Stage 1 and feature extraction in several processes of a Ray cluster.

Ray Train starts workers that train one backbone together, with the training loop of lt_train, which uses
`torch.distributed` only. Workers and driver share nothing but a state actor on the driver's machine. It stores the
training state and the checkpoint as files there, so that no shared file system is needed and the death of a worker or
of the driver costs at most the steps since the last state. Ray Train's own checkpoints are not used, because they need
shared storage.

Ray Data distributes the shards of an extraction to actors, which run the backbone. The extractor, including the network
and images in memory, goes through the object store once per machine. Image files are opened by their paths on the
machine of the actor. An actor that dies is restarted and repeats its shards. Their order does not matter, because every
result names its rows.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import socket
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lt_train.core.errors import DataError, LongtailError, UserError, first_line
from lt_train.core.io import atomic_file
from lt_train.core.text import ProgressCallback
from lt_train.datasets._images.decode import set_decode_threads
from lt_train.datasets.base import DatasetSpec, ImageData
from lt_train.features.shards import Extractor, Shard, ShardResult, Workers
from lt_train.pretrain.train import resume_file, train_backbone
from sweeps.config.interfaces import BackboneJob

__all__ = ["ray_workers", "train_together"]


logger = logging.getLogger(__name__)

MAX_RESTARTS = 3
"""How often all workers are restarted after one has died."""

COLLECTIVE_TIMEOUT = 24 * 3600
"""Seconds that workers wait for one another; long, because rank 0 alone evaluates on val and test. Ray detects workers
that died."""

STOP_SECONDS = 120.0
"""Seconds that an interrupted driver waits for the workers to save their state."""


def train_together(
    job: BackboneJob, out: Path, *, workers: int, cpus: int, gpus: float, report: ProgressCallback, local: bool
) -> None:
    """Train on the Ray that this process has joined; see `BackendSpec.train_backbone`."""
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "600")  # importing torch may take a minute
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    each = {"CPU": cpus, **({"GPU": 1} if gpus else {})}
    _check_stage1_resources(workers, each, local=local)
    actor = _state_actor(out)
    with tempfile.TemporaryDirectory(prefix="lt-sweep-train-") as scratch:
        trainer = TorchTrainer(
            _train_worker,
            train_loop_config={
                "actor": actor,
                "images": _JobImages(job.data),
                "job": (job.dataset, job.backbone, job.recipe, dict(job.about)),
                "threads": cpus,
                "device": "cuda" if gpus else "cpu",
            },
            torch_config=TorchConfig(timeout_s=COLLECTIVE_TIMEOUT),
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=bool(gpus), resources_per_worker=each),
            run_config=RunConfig(
                name="stage1", storage_path=scratch, failure_config=FailureConfig(max_failures=MAX_RESTARTS)
            ),
        )
        _run_training(trainer, actor, workers, report)


def _run_training(trainer: Any, actor: Any, workers: int, report: ProgressCallback) -> None:
    """Run Ray Train in a thread, because in the main thread it would replace the handler of Ctrl-C permanently."""
    import ray

    raised: list[Exception] = []

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    thread.start()
    shown: tuple[int, int, str] | None = None
    try:
        while thread.is_alive():
            thread.join(1.0)
            progress = ray.get(actor.progress.remote())
            if progress is not None and progress != shown:
                report(*progress)
                shown = progress
    except KeyboardInterrupt:
        ray.get(actor.stop.remote())
        thread.join(STOP_SECONDS)
        raise
    error = ray.get(actor.error.remote())
    if error is not None:
        raise error
    if raised:
        raise LongtailError(
            f"stage 1 on {workers} workers failed, also after restarting them {MAX_RESTARTS} times: "
            f"{first_line(raised[0])}; the last state is kept, run the same command again to resume from it"
        ) from raised[0]


def _train_worker(config: dict[str, Any]) -> None:
    """What each worker runs; Ray Train has initialised its process group."""
    import ray
    import torch
    from ray import train

    actor, (dataset, backbone, recipe, about) = config["actor"], config["job"]
    if ray.get(actor.is_over.remote()):  # this is a restart that would not help
        return
    torch.set_num_threads(config["threads"])
    set_decode_threads(config["threads"])
    is_main = train.get_context().get_world_rank() == 0
    with tempfile.TemporaryDirectory(prefix="lt-sweep-stage1-") as directory, _poll_stop(actor) as stop:
        out = Path(directory) / "checkpoint"
        if is_main and (state := ray.get(actor.load_state.remote())) is not None:
            resume_file(out).write_bytes(state)
        try:
            train_backbone(
                config["images"].load(dataset),
                backbone,
                recipe,
                out,
                device=config["device"],
                about=about,
                report=(lambda *progress: actor.set_progress.remote(progress)) if is_main else None,
                saved=lambda file: ray.get(actor.save_state.remote(file.read_bytes())),
                stop=stop,
            )
            if is_main:
                ray.get(actor.save_checkpoint.remote(out.read_bytes()))
        except KeyboardInterrupt:  # stopped on request, after saving its state
            return
        except LongtailError as error:
            ray.get(actor.set_error.remote(getattr(error, "cause", error)))
            raise


@contextlib.contextmanager
def _poll_stop(actor: Any) -> Iterator[Any]:
    """Poll the state actor in a thread; yields a function that returns True once training is to stop."""
    import ray

    over, left = threading.Event(), threading.Event()

    def poll() -> None:
        with contextlib.suppress(ray.exceptions.RayError):  # the driver died, and Ray will end this worker
            while not left.wait(1.0):
                if ray.get(actor.is_over.remote()):
                    over.set()
                    return

    thread = threading.Thread(target=poll, name="poll-stop", daemon=True)
    thread.start()
    try:
        yield over.is_set
    finally:
        left.set()
        thread.join()


class _JobImages:
    """A job's images, for workers: sent through the object store if all are in memory, else loaded from their files."""

    def __init__(self, data: ImageData) -> None:
        import ray

        parts = (data.train, data.val, data.test)
        inputs = [part.inputs for part in parts if part is not None]
        in_memory = all(isinstance(images, Tensor) or images.in_memory for images in inputs)
        self.reference = ray.put(data) if in_memory else None
        self.digest = data.train.digest()

    def load(self, dataset: DatasetSpec) -> ImageData:
        """The images, in a worker.

        Raises:
            DataError: they differ from those of the driver.
        """
        import ray

        data = dataset.load() if self.reference is None else ray.get(self.reference)
        if not isinstance(data, ImageData) or data.train.digest() != self.digest:
            raise DataError(
                f"dataset {dataset.kind} must be the same on all machines, and on {socket.gethostname()} it differs "
                "from the driver's; copy its files there, to the same path"
            )
        return data


def _state_actor(out: Path) -> Any:
    """A `_StateActor` of `out` on this machine."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    this_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0)(_StateActor).options(scheduling_strategy=this_node).remote(str(out.absolute()))


class _StateActor:
    """The files of one training, and messages between its workers and its driver.

    The checkpoint ends the training, like `stop` and `set_error`, with an error that a restart would not resolve.
    """

    def __init__(self, out: str) -> None:
        self._out = Path(out)
        self._stopped = False
        self._error: LongtailError | None = None
        self._progress: tuple[int, int, str] | None = None

    def load_state(self) -> bytes | None:
        file = resume_file(self._out)
        return file.read_bytes() if file.is_file() else None

    def save_state(self, content: bytes) -> None:
        self._write(resume_file(self._out), content)

    def save_checkpoint(self, content: bytes) -> None:
        self._write(self._out, content)
        resume_file(self._out).unlink(missing_ok=True)
        self._stopped = True

    @staticmethod
    def _write(file: Path, content: bytes) -> None:
        with atomic_file(file) as temporary:
            temporary.write_bytes(content)

    def set_progress(self, progress: tuple[int, int, str]) -> None:
        self._progress = progress

    def progress(self) -> tuple[int, int, str] | None:
        return self._progress

    def stop(self) -> None:
        self._stopped = True

    def set_error(self, error: LongtailError) -> None:
        self._error = self._error or error

    def error(self) -> LongtailError | None:
        return self._error

    def is_over(self) -> bool:
        return self._stopped or self._error is not None


def _check_stage1_resources(workers: int, each: dict[str, int], *, local: bool) -> None:
    """Refuse more workers than a local Ray can place. A cluster may grow: log a warning.

    Raises:
        UserError: the machine is too small.
    """
    import ray

    total = ray.cluster_resources()
    for kind, count in each.items():
        if workers * count > total.get(kind, 0):
            text = f"{workers} workers with {count} {kind}s each need more than the {total.get(kind, 0):g} {kind}s"
            if local:
                raise UserError(
                    f"resources.stage1_workers: {text} of this machine; lower stage1_workers or cpus_per_pack"
                )
            logger.warning("resources.stage1_workers: %s of the cluster; waiting for machines to join", text)


def ray_workers(count: int, cpus: int, gpus: float) -> Workers:
    """`count` actors on the Ray that this process has joined, with `cpus` threads and `gpus` GPUs each."""

    def extract(extractor: Extractor, wanted: Sequence[Shard]) -> Iterator[ShardResult]:
        import ray
        import ray.data
        import ray.data.exceptions

        if not wanted:
            return
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False  # we show our own
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        # One shard per block, the unit that Ray schedules and repeats.
        blocks = ray.data.from_items(
            [{"shard": number} for number in range(len(wanted))], override_num_blocks=len(wanted)
        )
        reference = ray.put(extractor)
        results = blocks.map_batches(
            _ExtractionActor,
            fn_constructor_args=(reference, list(wanted)),
            batch_size=1,
            compute=_actor_pool(min(count, len(wanted))),
            num_cpus=cpus,
            num_gpus=gpus,
        )
        try:
            for row in results.iter_rows():
                yield row["result"]
        except (ray.exceptions.RayError, ray.data.exceptions.UserCodeException) as error:
            raise _extraction_error(error) from error

    return extract


def _extraction_error(error: BaseException) -> LongtailError:
    """The `LongtailError` that a worker raised, without Ray's wrappers; any other error as one line."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, LongtailError):
            return inner
        deepest, inner = inner, getattr(inner, "cause", None) or inner.__cause__
    return LongtailError(f"a feature extraction worker failed: {first_line(deepest)}; finished shards are kept")


class _ExtractionActor:
    """Runs shards in an actor, with as many threads for torch and for decoding as the extractor sets."""

    def __init__(self, extractor: Any, wanted: list[Shard]) -> None:
        import ray

        self.extractor: Extractor = ray.get(extractor)
        set_decode_threads(self.extractor.threads)
        self.wanted = wanted

    def __call__(self, batch: dict[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
        import torch

        torch.set_num_threads(self.extractor.threads)
        results = list(self.extractor.run([self.wanted[number] for number in batch["shard"].tolist()]))
        column = np.empty(len(results), dtype=object)
        column[:] = results
        return {"result": column}


def _actor_pool(size: int) -> Any:
    """A pool in which an actor decodes the images of its next shard while the first is in the network.

    Ray versions without concurrent calls per actor extract the same features one shard at a time.
    """
    import ray.data

    options: dict[str, Any] = {"max_concurrent_calls_per_actor": 2, "enable_true_multi_threading": True}
    known = inspect.signature(ray.data.ActorPoolStrategy).parameters
    return ray.data.ActorPoolStrategy(size=size, **{name: options[name] for name in options if name in known})
