"""`inline`: packs are trained one after another in this process. The debugging executor."""

from __future__ import annotations

import time
from typing import Literal

import torch

from lt_train.features.bank import FeatureBank
from lt_train.retrain import fused
from sweeps.config.backend import BackendSpec, PackSource

__all__ = ["InlineBackend"]


class InlineBackend(BackendSpec):
    """No cluster, no other process; the same results as every other backend."""

    kind: Literal["inline"] = "inline"

    def train(self, bank: FeatureBank, source: PackSource, *, cpus: int, gpus: float) -> None:
        """Train packs from `source` until it is exhausted."""
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
