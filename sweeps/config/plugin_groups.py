"""Every room of kinds by the name it has in a sweep file: what `lt-sweep kinds` lists and conformance suites walk."""

from __future__ import annotations

from collections.abc import Mapping

from lt_train.backbones.base import BACKBONES
from lt_train.core.registry import KindSpec
from lt_train.datasets.base import DATASETS
from lt_train.methods.base import METHODS
from lt_train.methods.constraints.base import CONSTRAINTS
from lt_train.methods.heads.base import HEADS
from lt_train.methods.post_hoc.base import POST_HOC
from lt_train.methods.samplers.base import SAMPLERS
from lt_train.pretrain.base import RECIPES
from sweeps.config.backend import BACKENDS
from sweeps.config.tracking import TRACKERS
from sweeps.search.base import ALGORITHMS
from sweeps.search.early_stopping import EARLY_STOPPING

__all__ = ["rooms"]


def rooms() -> dict[str, Mapping[str, type[KindSpec]]]:
    """Kinds by name, by room."""
    return {
        "dataset": DATASETS.kinds(),
        "backbone": BACKBONES.kinds(),
        "stage1": RECIPES.kinds(),
        "method": METHODS.kinds(),
        "method.head": HEADS.kinds(),
        "method.sampler": SAMPLERS.kinds(),
        "method.constraint": CONSTRAINTS.kinds(),
        "method.post_hoc": POST_HOC.kinds(),
        "search.algorithm": ALGORITHMS.kinds(),
        "search.early_stopping": EARLY_STOPPING.kinds(),
        "backend": BACKENDS.kinds(),
        "tracking": TRACKERS.kinds(),
    }
