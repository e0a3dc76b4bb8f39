"""Backend `inline`: trains packs one after another in this process."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal

from sweeps.config.interfaces import BACKENDS, BackendSpec, PackSource

if TYPE_CHECKING:
    from lt_train.features.bank import FeatureBank

__all__ = ["InlineBackend"]


@BACKENDS.register
class InlineBackend(BackendSpec):
    """Training in the driver's process, without a cluster. Results equal those of every other backend."""

    kind: Literal["inline"] = "inline"

    def train(self, bank: FeatureBank, source: PackSource, *, cpus: int, gpus: float) -> None:
        """See `BackendSpec.train`."""
        import torch

        from lt_train.retrain import fused

        threads = torch.get_num_threads()
        torch.set_num_threads(cpus)
        try:
            while not source.exhausted():
                pack = source.next_pack()
                assert pack is not None, "with nothing in flight a source has a pack or is exhausted"
                start = time.perf_counter()
                results = fused.fit(bank, pack.runs, "cuda" if gpus else "cpu", pack.rule, pack.halving)
                source.complete(pack, results, time.perf_counter() - start)
        finally:
            torch.set_num_threads(threads)
