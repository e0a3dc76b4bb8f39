"""From images to features, shard by shard: what one process does of an extraction, wherever it runs.

A shard is rows of one view of one part, cut at multiples of the batch size, so that an image is always in the same
batch: a shard's features follow from the extractor and the shard alone. An `Extractor` travels to other processes. It
knows a frozen network and images; nothing of labels, files or banks. Shapes: V views, N images, D features.
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
from lt_train.datasets._images.decode_pool import ahead
from lt_train.datasets._images.files import ImageFiles, Images, shared
from lt_train.datasets._images.transform import View, apply_views, draw_views, normalise
from lt_train.datasets.base import Augmentation, ResizedCrop

__all__ = ["Extractor", "Shard", "ShardResult", "Throughput", "Workers", "in_this_process", "shards"]


class Shard(NamedTuple):
    """Rows `start` to `stop` of one view of one part."""

    part: str
    view: int
    start: int
    stop: int


@dataclass(frozen=True)
class ShardResult:
    """What came of a shard.

    Attributes:
        shard: which.
        features: float32 `[stop - start, D]`; of an image that cannot be read, of no meaning.
        unreadable: why, by row of the part.
        seconds: spent waiting for images to be decoded (`decode`), on taking them to the device, cropping and
            normalising (`transfer`), and in the network (`forward`).
        host: the machine that did it.
    """

    shard: Shard
    features: NDArray[np.float32]
    unreadable: Mapping[int, str]
    seconds: Mapping[str, float]
    host: str = field(default_factory=socket.gethostname)


Workers = Callable[["Extractor", Sequence[Shard]], Iterator[ShardResult]]
"""Whoever does shards: yields each once, in any order."""


def in_this_process(extractor: Extractor, wanted: Sequence[Shard]) -> Iterator[ShardResult]:
    """One shard after another."""
    return extractor.run(wanted)


def shards(rows: Mapping[tuple[str, int], Iterable[tuple[int, int]]], length: int) -> list[Shard]:
    """Stretches of rows, by part and view, cut into shards of at most `length` rows, a multiple of the batch size."""
    return [
        Shard(part, view, first, min(first + length, stop))
        for (part, view), stretches in rows.items()
        for start, stop in stretches
        for first in range(start, stop, length)
    ]


@dataclass
class Throughput:
    """How fast an extraction was, and where its time went; of several processes, the time of all of them.

    Attributes:
        images: extracted by this call, an image and its mirror being two.
        wall: seconds that the call took for them.
        seconds: by what they were spent on.
    """

    images: int = 0
    wall: float = 0.0
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("decode", "transfer", "forward", "write"), 0.0)
    )

    def add(self, seconds: Mapping[str, float]) -> None:
        """Count more seconds."""
        for name, more in seconds.items():
            self.seconds[name] += more

    def document(self) -> dict[str, Any]:
        """As JSON holds it; shares are fractions of the time that was spent on any of the four."""
        total = sum(self.seconds.values())
        return {
            "images": self.images,
            "seconds": self.wall,
            "images_per_second": self.images / self.wall if self.wall else None,
            "shares": {name: seconds / total for name, seconds in self.seconds.items()} if total else None,
        }

    def __str__(self) -> str:
        shares = self.document()["shares"] or {}
        told = ", ".join(f"{_CALLED[name]} {share:.0%}" for name, share in shares.items())
        return f"{self.images / self.wall:.3g} images/s: {told}" if shares else "nothing was left to extract"


_CALLED = {"decode": "waiting for images", "transfer": "transfer", "forward": "forward", "write": "write"}


class Extractor:
    """A frozen network and all images that are to go through it, on a device that it takes up with its first shard.

    The network runs in evaluation mode, without gradients, in float32. Threads of one process may run shards at the
    same time: the network is one's at a time, while the others' images are decoded.
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
        """`views` are of the training images, drawn from `seed`; 1 is the image as it is.

        `threads` of torch are those that whoever runs shards on a CPU must have, by default as many as are here: with
        others a product may be summed in another order, and differ in its last bits.
        """
        self.network, self.parts, self.normalisation = network, dict(parts), normalisation
        self.augmentation, self.views, self.seed = augmentation, views, seed
        self.batch_size, self.device = batch_size, device
        self.threads = threads or torch.get_num_threads()
        self._begin()

    def _begin(self) -> None:
        self._placed: nn.Module | None = None
        self._drawn: tuple[int, Tensor] | None = None
        self._turn = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """What travels: arrays for tensors, which Ray's processes of one machine then share."""
        parts = {name: held.numpy() if isinstance(held, Tensor) else held for name, held in self.parts.items()}
        return {name: value for name, value in vars(self).items() if not name.startswith("_")} | {"parts": parts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.parts = {name: shared(held) if isinstance(held, np.ndarray) else held for name, held in self.parts.items()}
        self._begin()

    def determinism_key(self) -> dict[str, Any]:
        """What may change the last bits of features beside what they are features of, as JSON."""
        device = torch.device(self.device).type
        threads = self.threads if device == "cpu" else None
        return {"batch_size": self.batch_size, "device": device, "threads": threads, "torch": torch.__version__}

    def run(self, wanted: Iterable[Shard]) -> Iterator[ShardResult]:
        """Do the shards, in order; while a batch is in the network the next is decoded, across shards."""
        batches = [
            (shard, slice(start, min(start + self.batch_size, shard.stop)))
            for shard in wanted
            for start in range(shard.start, shard.stop, self.batch_size)
        ]
        calls = (partial(self._read, shard, rows) for shard, rows in batches)
        # What is in memory is no work for a thread, and would only wait for its turn.
        held = all(map(_in_memory, self.parts.values())) and not self._cuts_files()
        reads = (call() for call in calls) if held else ahead(calls)
        launched: deque[tuple[Shard, slice, _Launched]] = deque()
        filling = _Filling()
        for shard, rows in batches:
            begun = time.perf_counter()
            images, unreadable = next(reads)
            waited = time.perf_counter() - begun
            with self._turn:
                launched.append((shard, rows, self._launch(shard, rows, images)))
            filling.note(shard, waited, {rows.start + place: why for place, why in unreadable.items()})
            # A CUDA device is given the next batch before the last one's features are waited for.
            if len(launched) > 1 or self.device == "cpu":
                yield from filling.take(*launched.popleft())
        while launched:
            yield from filling.take(*launched.popleft())

    def readable(self, done: ShardResult) -> int | None:
        """The first row of a shard that could not be read where it was done, and can be read here."""
        rows = (slice(row, row + 1) for row in sorted(done.unreadable))
        return next((one.start for one in rows if not self._read(done.shard, one)[1]), None)

    @torch.inference_mode()
    def _launch(self, shard: Shard, rows: slice, images: Tensor) -> _Launched:
        """Put one batch through the network; on a CUDA device, say only that it shall be."""
        network = self._network()
        begun = _mark(self.device)
        inputs = self._changed(shard, rows, images.to(self.device, non_blocking=True))
        inputs = normalise(inputs, *self.normalisation).contiguous(memory_format=torch.channels_last)
        ready = _mark(self.device)
        with exact_float32(self.device):
            features = network(inputs).float()
        if torch.device(self.device).type == "cuda":
            features = torch.empty(features.shape, pin_memory=True).copy_(features, non_blocking=True)
        return _Launched(features, (begun, ready, _mark(self.device)))

    def _network(self) -> nn.Module:
        if self._placed is None:
            placed: nn.Module = self.network.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            self._placed = placed.eval()
        return self._placed

    def _cuts_files(self) -> bool:
        """Whether views are parts of whole images, which are cut out as the files are decoded."""
        return self.views > 1 and isinstance(self.augmentation, ResizedCrop)

    def _read(self, shard: Shard, rows: slice) -> tuple[Tensor, Mapping[int, str]]:
        """Images, and why some of them are black."""
        images = self.parts[shard.part]
        if shard.part == "train" and self._cuts_files():
            return View(images, self.augmentation, self._view(shard.view)).attempt(rows)
        return images.attempt(rows) if isinstance(images, ImageFiles) else (images[rows], {})

    def _changed(self, shard: Shard, rows: slice, images: Tensor) -> Tensor:
        """Training images cropped and mirrored as their view was drawn, test images mirrored in their second."""
        if shard.part != "train":
            return images.flip(-1) if shard.view else images
        if self.views == 1 or isinstance(self.augmentation, ResizedCrop):
            return images
        return apply_views(images, self._view(shard.view)[rows].to(images.device), self.augmentation.pad)

    def _view(self, view: int) -> Tensor:
        """What was drawn for a view of the training images."""
        drawn = self._drawn
        if drawn is None or drawn[0] != view:
            stream = seeding.generator("feature view", self.seed, view)
            drawn = self._drawn = view, draw_views(len(self.parts["train"]), self.augmentation, stream)
        return drawn[1]


class _Launched(NamedTuple):
    """Features of a batch that are there, or will be when the last of three marks is reached: begun, ready, done."""

    features: Tensor
    marks: tuple[Any, Any, Any]

    def seconds(self) -> dict[str, float]:
        """Wait for the features; what they took."""
        begun, ready, done = self.marks
        if isinstance(done, float):
            return {"transfer": ready - begun, "forward": done - ready}
        done.synchronize()
        return {"transfer": begun.elapsed_time(ready) / 1e3, "forward": ready.elapsed_time(done) / 1e3}


class _Filling:
    """The shards whose batches come in, in order."""

    def __init__(self) -> None:
        self.features: list[Tensor] = []
        self.unreadable: dict[Shard, dict[int, str]] = {}
        self.seconds: dict[Shard, dict[str, float]] = {}

    def note(self, shard: Shard, waited: float, unreadable: Mapping[int, str]) -> None:
        """Take note of a batch that is on its way."""
        self.unreadable.setdefault(shard, {}).update(unreadable)
        seconds = self.seconds.setdefault(shard, dict.fromkeys(("decode", "transfer", "forward"), 0.0))
        seconds["decode"] += waited

    def take(self, shard: Shard, rows: slice, launched: _Launched) -> Iterator[ShardResult]:
        """Take its features; the shard, where these were its last."""
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
    """Now: on a CUDA device, when it gets there."""
    if torch.device(device).type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(torch.cuda.current_stream(device))
    return event
