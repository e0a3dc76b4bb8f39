"""Extracting features in shards, in this process or in workers.

A shard is a range of rows of one view of one part, cut at multiples of the batch size, so that an image is always in
the same batch: a shard's features depend on the extractor and the shard only. An `Extractor` can be pickled and sent to
other processes. Shapes: V views, N images, D features.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lt_train.core import seeding
from lt_train.core.device import exact_float32
from lt_train.core.text import format_rate
from lt_train.datasets._images.decode import prefetch
from lt_train.datasets._images.files import ImageFiles, Images, shared_tensor
from lt_train.datasets._images.transform import View, draw_views, normalise
from lt_train.datasets.base import Augmentation

__all__ = ["Extractor", "Shard", "ShardResult", "Throughput", "Workers", "in_this_process", "shards"]


class Shard(NamedTuple):
    """Rows `start` to `stop` of one view of one part."""

    part: str
    view: int
    start: int
    stop: int


@dataclass(frozen=True)
class ShardResult:
    """The features of one shard.

    Attributes:
        shard: which rows.
        features: float32 `[stop - start, D]`; meaningless for unreadable images.
        unreadable: the reason for each unreadable image, by row of the part.
        seconds: time spent waiting for decoded images (`decode`), moving them to the device, cropping and normalising
            (`transfer`), and in the network (`forward`).
        host: the machine that extracted the shard.
    """

    shard: Shard
    features: NDArray[np.float32]
    unreadable: Mapping[int, str]
    seconds: Mapping[str, float]
    host: str = field(default_factory=socket.gethostname)


Workers = Callable[["Extractor", Sequence[Shard]], Iterator[ShardResult]]
"""A function that extracts shards and yields each once, in any order."""


def in_this_process(extractor: Extractor, wanted: Sequence[Shard]) -> Iterator[ShardResult]:
    """`Workers` that extract one shard after another."""
    return extractor.run(wanted)


def shards(rows: Mapping[tuple[str, int], Iterable[tuple[int, int]]], length: int) -> list[Shard]:
    """Cut ranges of rows, by part and view, into shards of at most `length` rows, a multiple of the batch size."""
    return [
        Shard(part, view, first, min(first + length, stop))
        for (part, view), ranges in rows.items()
        for start, stop in ranges
        for first in range(start, stop, length)
    ]


@dataclass
class Throughput:
    """The speed of an extraction and how its time was spent, summed over all processes.

    Attributes:
        images: images extracted by this call; an image and its mirror count as two.
        wall: elapsed time of the call, in seconds.
        seconds: process time in seconds, by activity.
    """

    images: int = 0
    wall: float = 0.0
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("decode", "transfer", "forward", "write"), 0.0)
    )

    def add(self, seconds: Mapping[str, float]) -> None:
        """Add process time."""
        for name, more in seconds.items():
            self.seconds[name] += more

    def document(self) -> dict[str, Any]:
        """As JSON; shares are fractions of the time spent on all four activities."""
        total = sum(self.seconds.values())
        return {
            "images": self.images,
            "seconds": self.wall,
            "images_per_second": self.images / self.wall if self.wall else None,
            "shares": {name: seconds / total for name, seconds in self.seconds.items()} if total else None,
        }

    def __str__(self) -> str:
        shares = self.document()["shares"] or {}
        text = ", ".join(f"{_DISPLAY_NAMES[name]} {share:.0%}" for name, share in shares.items())
        return f"{format_rate(self.images / self.wall)} images/s: {text}" if shares else "nothing left to extract"


_DISPLAY_NAMES = {"decode": "waiting for images", "transfer": "transfer", "forward": "forward", "write": "write"}


class Extractor:
    """A frozen network and the images to extract; the network is moved to the device with the first shard.

    The network runs in evaluation mode, without gradients, in float32. Several threads may run shards concurrently:
    they take turns using the network while the images of the others are decoded.
    """

    def __init__(
        self,
        network: nn.Module,
        parts: Mapping[str, Images],
        *,
        normalisation: tuple[tuple[float, ...], tuple[float, ...]],
        augmentation: Augmentation,
        views: int,
        seed: int,
        batch_size: int,
        device: str,
        threads: int | None = None,
    ) -> None:
        """Configure an extraction.

        Args:
            network: the backbone.
            parts: images of train, val and test, by name.
            normalisation: `(mean, std)` per channel.
            augmentation: applied to training images if `views` is above 1.
            views: number of views of the training images; 1 is the image without augmentation.
            seed: of the views.
            batch_size: images per forward pass.
            device: where the network runs.
            threads: torch threads to use on a CPU, by default the setting of this process. Another number may sum
                products in another order and change the last bits of features.
        """
        self.network, self.parts, self.normalisation = network, dict(parts), normalisation
        self.augmentation, self.views, self.seed = augmentation, views, seed
        self.batch_size, self.device = batch_size, device
        self.threads = threads or torch.get_num_threads()
        self._reset()

    def _reset(self) -> None:
        self._placed: nn.Module | None = None
        self._drawn: tuple[int, Tensor] | None = None
        self._turn = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Pickles tensors as arrays, which Ray's processes on one machine then share."""
        parts = {name: part.numpy() if isinstance(part, Tensor) else part for name, part in self.parts.items()}
        return {name: value for name, value in vars(self).items() if not name.startswith("_")} | {"parts": parts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.parts = {
            name: shared_tensor(part) if isinstance(part, np.ndarray) else part for name, part in self.parts.items()
        }
        self._reset()

    def determinism_key(self) -> dict[str, Any]:
        """Everything beside the inputs that may change the last bits of features, as JSON."""
        device = torch.device(self.device).type
        threads = self.threads if device == "cpu" else None
        return {"batch_size": self.batch_size, "device": device, "threads": threads, "torch": torch.__version__}

    def run(self, wanted: Iterable[Shard]) -> Iterator[ShardResult]:
        """Extract shards in order; the next batch is decoded while the network runs, also across shards."""
        batches = [
            (shard, slice(start, min(start + self.batch_size, shard.stop)))
            for shard in wanted
            for start in range(shard.start, shard.stop, self.batch_size)
        ]
        calls = (partial(self._read, shard, rows) for shard, rows in batches)
        # A thread does not help where nothing is decoded.
        in_memory = all(map(_in_memory, self.parts.values())) and not self._decodes_views()
        reads = (call() for call in calls) if in_memory else prefetch(calls)
        launched: deque[tuple[Shard, slice, _Launched]] = deque()
        collector = _Collector()
        for shard, rows in batches:
            started = time.perf_counter()
            images, unreadable = next(reads)
            waited = time.perf_counter() - started
            with self._turn:
                launched.append((shard, rows, self._launch(shard, rows, images)))
            collector.note(shard, waited, {rows.start + place: why for place, why in unreadable.items()})
            # On a CUDA device the next batch is launched before waiting for the last one.
            if len(launched) > 1 or self.device == "cpu":
                yield from collector.take(*launched.popleft())
        while launched:
            yield from collector.take(*launched.popleft())

    def readable(self, done: ShardResult) -> int | None:
        """The first row of a shard that was unreadable where it was extracted but is readable here, or None."""
        rows = (slice(row, row + 1) for row in sorted(done.unreadable))
        return next((one.start for one in rows if not self._read(done.shard, one)[1]), None)

    @torch.inference_mode()
    def _launch(self, shard: Shard, rows: slice, images: Tensor) -> _Launched:
        """Run one batch through the network; asynchronous on a CUDA device."""
        network = self._network()
        start = _mark(self.device)
        inputs = self._augmented(shard, rows, images.to(self.device, non_blocking=True))
        inputs = normalise(inputs, *self.normalisation).contiguous(memory_format=torch.channels_last)
        ready = _mark(self.device)
        with exact_float32(self.device):
            features = network(inputs).float()
        if torch.device(self.device).type == "cuda":
            features = torch.empty(features.shape, pin_memory=True).copy_(features, non_blocking=True)
        return _Launched(features, (start, ready, _mark(self.device)))

    def _network(self) -> nn.Module:
        if self._placed is None:
            placed: nn.Module = self.network.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            self._placed = placed.eval()
        return self._placed

    def _decodes_views(self) -> bool:
        """Whether every view decodes the training images from their files again."""
        return self.views > 1 and self.augmentation.needs_files

    def _read(self, shard: Shard, rows: slice) -> tuple[Tensor, Mapping[int, str]]:
        """Images, and the reason for each unreadable one, which is black."""
        images = self.parts[shard.part]
        if shard.part == "train" and self._decodes_views():
            return View(images, self.augmentation, self._view(shard.view)).try_read(rows)
        return images.try_read(rows) if isinstance(images, ImageFiles) else (images[rows], {})

    def _augmented(self, shard: Shard, rows: slice, images: Tensor) -> Tensor:
        """Training images augmented as drawn for their view; in the second view of other parts, mirrored images."""
        if shard.part != "train":
            return images.flip(-1) if shard.view else images
        if self.views == 1 or self.augmentation.needs_files:
            return images
        return self.augmentation.apply(images, self._view(shard.view)[rows].to(images.device))

    def _view(self, view: int) -> Tensor:
        """The random numbers of a view of the training images."""
        drawn = self._drawn
        if drawn is None or drawn[0] != view:
            stream = seeding.generator("feature view", self.seed, view)
            drawn = self._drawn = view, draw_views(len(self.parts["train"]), self.augmentation, stream)
        return drawn[1]


class _Launched(NamedTuple):
    """Features of a batch, complete when the last of three marks is reached: start, inputs ready, done."""

    features: Tensor
    marks: tuple[Any, Any, Any]

    def seconds(self) -> dict[str, float]:
        """Wait for the features; returns the time they took."""
        start, ready, done = self.marks
        if isinstance(done, float):
            return {"transfer": ready - start, "forward": done - ready}
        done.synchronize()
        return {"transfer": start.elapsed_time(ready) / 1e3, "forward": ready.elapsed_time(done) / 1e3}


class _Collector:
    """Joins the batches of shards, which arrive in order."""

    def __init__(self) -> None:
        self.features: list[Tensor] = []
        self.unreadable: dict[Shard, dict[int, str]] = {}
        self.seconds: dict[Shard, dict[str, float]] = {}

    def note(self, shard: Shard, waited: float, unreadable: Mapping[int, str]) -> None:
        """Record the waiting time and the unreadable images of a batch whose features are pending."""
        self.unreadable.setdefault(shard, {}).update(unreadable)
        seconds = self.seconds.setdefault(shard, dict.fromkeys(("decode", "transfer", "forward"), 0.0))
        seconds["decode"] += waited

    def take(self, shard: Shard, rows: slice, launched: _Launched) -> Iterator[ShardResult]:
        """Add the features of a batch; yields the shard if it is now complete."""
        for name, more in launched.seconds().items():
            self.seconds[shard][name] += more
        self.features.append(launched.features)
        if rows.stop == shard.stop:
            whole = self.features[0] if len(self.features) == 1 else torch.cat(self.features)
            self.features = []
            yield ShardResult(shard, whole.numpy(), self.unreadable.pop(shard), self.seconds.pop(shard))


def _in_memory(images: Images) -> bool:
    return isinstance(images, Tensor) or images.in_memory


def _mark(device: str) -> Any:
    """The current time; on a CUDA device an event in its stream."""
    if torch.device(device).type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event
