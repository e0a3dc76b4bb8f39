"""Features extracted by many processes at once: Ray Data hands shards to actors, which run the backbone.

The extractor, network and images in memory included, goes through the object store once to a machine; images in
files are opened by path where the actor runs. An actor that dies is started again and its shards are done again. Order
does not matter: every shard says which rows it is. Knows shards; knows no sweep and no bank.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lt_train.core.errors import LongtailError, first_line
from lt_train.datasets._images.decode_pool import decode_threads
from lt_train.features.shards import Extractor, Shard, ShardResult, Workers

__all__ = ["ray_workers"]


def ray_workers(count: int, cpus: int, gpus: float) -> Workers:
    """`count` actors of the Ray that this process has joined, each on `cpus` and `gpus`."""

    def extract(extractor: Extractor, wanted: Sequence[Shard]) -> Iterator[ShardResult]:
        import ray
        import ray.data
        import ray.data.exceptions

        if not wanted:
            return
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False  # there is one already
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        # A block is a shard: what an actor is given at once, and what is done again when it dies.
        listed = ray.data.from_items(
            [{"shard": number} for number in range(len(wanted))], override_num_blocks=len(wanted)
        )
        travelling = ray.put(extractor)
        done = listed.map_batches(
            _Worker,
            fn_constructor_args=(travelling, list(wanted)),
            batch_size=1,
            # Two shards at a time: while one is in the network, the first images of the other are decoded.
            compute=ray.data.ActorPoolStrategy(
                size=min(count, len(wanted)), max_concurrent_calls_per_actor=2, enable_true_multi_threading=True
            ),
            num_cpus=cpus,
            num_gpus=gpus,
        )
        try:
            for row in done.iter_rows():
                yield row["done"]
        except (ray.exceptions.RayError, ray.data.exceptions.UserCodeException) as error:
            raise _told(error) from error

    return extract


def _told(error: BaseException) -> LongtailError:
    """What a worker raised on purpose, out of what Ray wrapped around it; of anything else, a line."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, LongtailError):
            return inner
        deepest, inner = inner, getattr(inner, "cause", None) or inner.__cause__
    return LongtailError(f"a worker that extracts features failed: {first_line(deepest)}; what is done is kept")


class _Worker:
    """Runs shards in an actor, whose threads, of torch and to decode, are those that the extractor asks for."""

    def __init__(self, extractor: Any, wanted: list[Shard]) -> None:
        import ray

        self.extractor: Extractor = ray.get(extractor)
        decode_threads(self.extractor.threads)
        self.wanted = wanted

    def __call__(self, batch: dict[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
        import torch

        torch.set_num_threads(self.extractor.threads)
        done = list(self.extractor.run([self.wanted[number] for number in batch["shard"].tolist()]))
        column = np.empty(len(done), dtype=object)
        column[:] = done
        return {"done": column}
