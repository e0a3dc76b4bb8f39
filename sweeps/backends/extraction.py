"""Feature extraction in several processes: Ray Data distributes shards to actors, which run the backbone.

The extractor, including the network and images in memory, goes through the object store once per machine. Image files
are opened by their paths on the machine of the actor. An actor that dies is restarted and repeats its shards. Their
order does not matter, because every result names its rows.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lt_train.core.errors import LongtailError, first_line
from lt_train.datasets._images.decode import set_decode_threads
from lt_train.features.shards import Extractor, Shard, ShardResult, Workers

__all__ = ["ray_workers"]


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
            _Worker,
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
            raise _unwrap(error) from error

    return extract


def _unwrap(error: BaseException) -> LongtailError:
    """The `LongtailError` that a worker raised, without Ray's wrappers; any other error as one line."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, LongtailError):
            return inner
        deepest, inner = inner, getattr(inner, "cause", None) or inner.__cause__
    return LongtailError(f"a feature extraction worker failed: {first_line(deepest)}; finished shards are kept")


class _Worker:
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
