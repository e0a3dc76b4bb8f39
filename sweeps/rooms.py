"""Every room of kinds by the name it has in a sweep file: what `lt-sweep kinds` lists and conformance suites walk."""

from __future__ import annotations

from collections.abc import Mapping

from lt_train.backbones.base import backbone_kinds
from lt_train.constraints.base import constraint_kinds
from lt_train.datasets.base import dataset_kinds
from lt_train.heads.base import head_kinds
from lt_train.methods.base import method_kinds
from lt_train.post_hoc.base import post_hoc_kinds
from lt_train.registry import KindSpec
from lt_train.samplers.base import sampler_kinds as order_kinds
from lt_train.stage1.base import recipe_kinds
from sweeps.backends.base import backend_kinds
from sweeps.schedulers.base import scheduler_kinds
from sweeps.search.base import sampler_kinds
from sweeps.tracking.base import tracking_kinds

__all__ = ["rooms"]


def rooms() -> dict[str, Mapping[str, type[KindSpec]]]:
    """Kinds by name, by room."""
    return {
        "dataset": dataset_kinds(),
        "backbone": backbone_kinds(),
        "stage1": recipe_kinds(),
        "method": method_kinds(),
        "method.head": head_kinds(),
        "method.sampler": order_kinds(),
        "method.constraint": constraint_kinds(),
        "method.post_hoc": post_hoc_kinds(),
        "search.sampler": sampler_kinds(),
        "search.scheduler": scheduler_kinds(),
        "backend": backend_kinds(),
        "tracking": tracking_kinds(),
    }
