"""The plugin groups of a sweep file, and all defaults that refer to a built-in kind by name.

Other modules of the core name no kind.
"""

from __future__ import annotations

from collections.abc import Mapping

from lt_train.backbones.base import BACKBONES
from lt_train.core.imports import is_installed
from lt_train.core.registry import KindSpec
from lt_train.datasets.base import DATASETS
from lt_train.methods.base import METHODS, MethodSpec
from lt_train.methods.constraints import CONSTRAINTS
from lt_train.methods.heads.base import HEADS
from lt_train.methods.post_hoc import POST_HOC
from lt_train.methods.samplers import SAMPLERS
from lt_train.metrics import METRICS
from lt_train.pretrain.recipes import RECIPES
from sweeps.config.interfaces import BACKENDS, TRACKERS, BackendSpec, TrackingSpec
from sweeps.search.base import ALGORITHMS, EARLY_STOPPING

__all__ = [
    "BACKEND_DEFAULT",
    "BASELINES_DEFAULT",
    "BASELINE_KINDS",
    "DEFAULT_TRACKER",
    "KINDS_BY_DEFAULT",
    "STAGE1_HEAD",
    "TRACKING_DEFAULT",
    "default_backend",
    "default_baselines",
    "default_tracking",
    "plugin_groups",
]

DEFAULT_TRACKER = "mlflow"
"""The kind of a mapping in `tracking` without `kind`."""

KINDS_BY_DEFAULT = frozenset({DEFAULT_TRACKER, "pad_crop"})
"""The kinds of mappings without `kind`: in `tracking`, and in `augmentation` of a dataset."""

STAGE1_HEAD = "vanilla"
"""The method that is the stage-1 head itself, which others are compared with."""

BASELINE_KINDS = (STAGE1_HEAD, "ce")
"""The baselines of a sweep with a single method: the stage-1 head, and re-training with the original loss."""

BASELINES_DEFAULT = f"default: {STAGE1_HEAD}, and with a single method also {BASELINE_KINDS[1]}"
BACKEND_DEFAULT = "default: ray where it is installed, else inline"
TRACKING_DEFAULT = (
    f"default: {DEFAULT_TRACKER} where it is installed, else none; in a mapping, kind defaults to {DEFAULT_TRACKER}"
)


def plugin_groups() -> dict[str, Mapping[str, type[KindSpec]]]:
    """The kinds of every plugin group, by the dotted path of its field in a sweep file."""
    return {
        "dataset": DATASETS.kinds(),
        "backbone": BACKBONES.kinds(),
        "stage1": RECIPES.kinds(),
        "method": METHODS.kinds(),
        "method.head": HEADS.kinds(),
        "method.sampler": SAMPLERS.kinds(),
        "method.constraint": CONSTRAINTS.kinds(),
        "method.post_hoc": POST_HOC.kinds(),
        "metrics": METRICS.kinds(),
        "search.algorithm": ALGORITHMS.kinds(),
        "search.early_stopping": EARLY_STOPPING.kinds(),
        "backend": BACKENDS.kinds(),
        "tracking": TRACKERS.kinds(),
    }


def default_backend() -> BackendSpec:
    """`ray` where Ray is installed, else `inline`."""
    kind = "ray" if is_installed("ray") else "inline"
    return BACKENDS.kinds()[kind](kind=kind)


def default_tracking() -> TrackingSpec:
    """`mlflow` where MLflow is installed, else `none`."""
    kind = DEFAULT_TRACKER if is_installed("mlflow") else "none"
    return TRACKERS.kinds()[kind](kind=kind)


def default_baselines(*, several_methods: bool = False) -> list[MethodSpec]:
    """`vanilla` and `ce`; beside several methods `vanilla` alone, because others can be listed among them and tuned."""
    kinds = BASELINE_KINDS[:1] if several_methods else BASELINE_KINDS
    return [METHODS.kinds()[kind](kind=kind) for kind in kinds]
