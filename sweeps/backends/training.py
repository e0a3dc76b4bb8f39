"""Stage 1 in several processes of a Ray cluster: Ray Train starts workers that train one backbone together.

The loop is lt_train's, which knows `torch.distributed` alone. All that workers and driver share is a keeper, an actor
on the driver's machine: it has the state and the checkpoint in files there, so no file system is shared, and a worker,
or the driver, that dies costs what came after the last state. Ray Train's own checkpoints, which ask for shared
storage, are not used. Knows jobs and files; knows no sweep.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from lt_train.core.errors import DataError, LongtailError, UserError, first_line
from lt_train.core.io import atomic_file
from lt_train.core.progress import tell
from lt_train.datasets._images.decode_pool import decode_threads
from lt_train.datasets.base import DatasetSpec, ImageData
from lt_train.pretrain.train import Report, resume_file, train_backbone
from sweeps.config.backend import BackboneJob

__all__ = ["train_together"]

MAX_FAILURES = 3
"""How often workers are started again after one has died."""

PATIENCE = 24 * 3600
"""Seconds that workers wait for one another: the first measures on val and test alone. One that died is not waited for;
Ray sees that."""

GRACE = 120.0
"""Seconds that an interrupted driver waits for the workers to save the step they are in."""


def train_together(
    job: BackboneJob, out: Path, *, workers: int, cpus: int, gpus: float, report: Report, local: bool
) -> None:
    """Train on the Ray that this process has joined; see `BackendSpec.train_backbone`."""
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "600")  # importing torch may take its minute
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    each = {"CPU": cpus, **({"GPU": 1} if gpus else {})}
    _check_room(workers, each, local=local)
    keeper = _keeper(out)
    with tempfile.TemporaryDirectory(prefix="lt-sweep-train-") as scratch:
        trainer = TorchTrainer(
            _work,
            train_loop_config={
                "keeper": keeper,
                "images": _Images(job.data),
                "job": (job.dataset, job.backbone, job.recipe, dict(job.about)),
                "threads": cpus,
                "device": "cuda" if gpus else "cpu",
            },
            torch_config=TorchConfig(timeout_s=PATIENCE),
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=bool(gpus), resources_per_worker=each),
            run_config=RunConfig(
                name="stage1", storage_path=scratch, failure_config=FailureConfig(max_failures=MAX_FAILURES)
            ),
        )
        _watch(trainer, keeper, workers, report)


def _watch(trainer: Any, keeper: Any, workers: int, report: Report) -> None:
    """Let Ray Train do its work in a thread, for in the main one it would take Ctrl-C for itself, for good."""
    import ray

    raised: list[Exception] = []

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=fit, name="ray train", daemon=True)
    thread.start()
    shown: tuple[int, int, str] | None = None
    try:
        while thread.is_alive():
            thread.join(1.0)
            said = ray.get(keeper.said.remote())
            if said is not None and said != shown:
                report(*said)
                shown = said
    except KeyboardInterrupt:
        ray.get(keeper.end.remote())
        thread.join(GRACE)
        raise
    refusal = ray.get(keeper.refusal.remote())
    if refusal is not None:
        raise refusal
    if raised:
        raise LongtailError(
            f"stage 1 on {workers} workers failed, after {MAX_FAILURES} new starts at most: {first_line(raised[0])}; "
            "what was saved is kept, run the same command again to go on there"
        ) from raised[0]


def _work(config: dict[str, Any]) -> None:
    """What a worker runs; Ray Train has made it one of a process group."""
    import ray
    import torch
    from ray import train

    keeper, (dataset, backbone, recipe, about) = config["keeper"], config["job"]
    if ray.get(keeper.over.remote()):  # to start again would not help
        return
    torch.set_num_threads(config["threads"])
    decode_threads(config["threads"])
    first = train.get_context().get_world_rank() == 0
    with tempfile.TemporaryDirectory(prefix="lt-sweep-stage1-") as place, _told_to_stop(keeper) as stop:
        out = Path(place) / "checkpoint"
        if first and (state := ray.get(keeper.state.remote())) is not None:
            resume_file(out).write_bytes(state)
        try:
            train_backbone(
                config["images"].here(dataset),
                backbone,
                recipe,
                out,
                device=config["device"],
                about=about,
                report=(lambda *said: keeper.say.remote(said)) if first else None,
                saved=lambda file: ray.get(keeper.keep_state.remote(file.read_bytes())),
                stop=stop,
            )
            if first:
                ray.get(keeper.keep_checkpoint.remote(out.read_bytes()))
        except KeyboardInterrupt:  # told to stop, and saved
            return
        except LongtailError as error:
            ray.get(keeper.refuse.remote(getattr(error, "cause", error)))
            raise


@contextlib.contextmanager
def _told_to_stop(keeper: Any) -> Iterator[Any]:
    """Ask the keeper now and then, beside the work; yields what says whether the training is over."""
    import ray

    over, left = threading.Event(), threading.Event()

    def ask() -> None:
        with contextlib.suppress(ray.exceptions.RayError):  # the driver is gone, and this worker soon will be
            while not left.wait(1.0):
                if ray.get(keeper.over.remote()):
                    over.set()
                    return

    thread = threading.Thread(target=ask, name="told to stop", daemon=True)
    thread.start()
    try:
        yield over.is_set
    finally:
        left.set()
        thread.join()


class _Images:
    """The images of a job as they travel: through the object store where all are in memory, else by their names."""

    def __init__(self, data: ImageData) -> None:
        import ray

        parts = (data.train, data.val, data.test)
        inputs = [part.inputs for part in parts if part is not None]
        held = all(isinstance(images, Tensor) or images.in_memory for images in inputs)
        self.stored = ray.put(data) if held else None
        self.digest = data.train.digest()

    def here(self, dataset: DatasetSpec) -> ImageData:
        """The images, in a worker.

        Raises:
            DataError: this machine's are others than the driver's.
        """
        import ray

        data = dataset.load() if self.stored is None else ray.get(self.stored)
        if not isinstance(data, ImageData) or data.train.digest() != self.digest:
            raise DataError(
                f"dataset {dataset.kind} must be the same on every machine that trains, and on {socket.gethostname()} "
                "it is not what the sweep was started with; copy its files there, to the same path"
            )
        return data


def _keeper(out: Path) -> Any:
    """The keeper of `out`, an actor on this machine."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0)(_Keeper).options(scheduling_strategy=here).remote(str(out.absolute()))


class _Keeper:
    """Files of one training, and what its workers and its driver tell one another."""

    def __init__(self, out: str) -> None:
        self.out = Path(out)
        self.ended = False
        self.refused: LongtailError | None = None
        self.last_said: tuple[int, int, str] | None = None

    def state(self) -> bytes | None:
        """The state to go on from."""
        file = resume_file(self.out)
        return file.read_bytes() if file.is_file() else None

    def keep_state(self, content: bytes) -> None:
        """Replace the state."""
        self._write(resume_file(self.out), content)

    def keep_checkpoint(self, content: bytes) -> None:
        """The training is done."""
        self._write(self.out, content)
        resume_file(self.out).unlink(missing_ok=True)
        self.ended = True

    @staticmethod
    def _write(file: Path, content: bytes) -> None:
        with atomic_file(file) as temporary:
            temporary.write_bytes(content)

    def say(self, said: tuple[int, int, str]) -> None:
        """Progress."""
        self.last_said = said

    def said(self) -> tuple[int, int, str] | None:
        """The last progress."""
        return self.last_said

    def end(self) -> None:
        """Have the workers stop."""
        self.ended = True

    def refuse(self, error: LongtailError) -> None:
        """What no new start would mend."""
        self.refused = self.refused or error

    def refusal(self) -> LongtailError | None:
        """What was refused, if anything was."""
        return self.refused

    def over(self) -> bool:
        """Whether there is nothing more to do."""
        return self.ended or self.refused is not None


def _check_room(workers: int, each: dict[str, int], *, local: bool) -> None:
    """Refuse more workers than a local Ray has room for; of a cluster, which may grow, only tell that it has to.

    Raises:
        UserError: there is no room.
    """
    import ray

    there = ray.cluster_resources()
    for kind, count in each.items():
        if workers * count > there.get(kind, 0):
            text = f"resources.stage1_workers: {workers} workers of {count} {kind}s each do not fit into the "
            text += f"{there.get(kind, 0):g} {kind}s that Ray has"
            if local:
                raise UserError(f"{text} here; lower it, or cpus_per_pack")
            tell(f"{text} now; waiting for machines that have to join")
