"""Results printed in the paper (Tables 1, 2 and 4), and which sweeps they are comparable with.

In percent as printed: all, many, medium, few; None if not printed. The row of Re-Sampling in Table 1 is left out: it
repeats that of Vanilla FC by mistake. Table 3 is left out: no sweep of ours is comparable with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sweeps.config.spec import SweepSpec

__all__ = ["TABLE1_ORDER", "Printed", "printed"]

Splits = tuple[float | None, float | None, float | None, float | None]

TABLE1_ORDER = (
    "vanilla",
    "cosine",
    "lws",
    "ldam",
    "balanced_softmax",
    "resample",
    "focal",
    "class_balanced",
    "maxnorm",
    "tau_norm",
    "logit_adjust",
)
"""Method kinds in the order of Table 1."""

TABLE1: Mapping[str, Splits] = {
    "vanilla": (48.44, 78.74, 47.37, 14.33),
    "cosine": (52.20, 77.21, 50.52, 24.98),
    "lws": (48.99, 78.51, 47.51, 16.26),
    "ldam": (52.94, 72.37, 54.31, 28.67),
    "balanced_softmax": (52.23, 77.63, 50.74, 24.33),
    "focal": (50.94, 78.00, 49.97, 20.50),
    "class_balanced": (53.31, 70.88, 50.25, 36.41),
    "maxnorm": (51.64, 77.60, 49.37, 23.99),
    "tau_norm": (53.01, 74.74, 47.31, 34.30),
    "logit_adjust": (52.45, 75.57, 47.71, 31.00),
}

TABLE2_CIFAR: Mapping[int, Mapping[str, float]] = {
    100: {"los": 54.9, "ltwb": 53.4, "tau_norm": 47.7},
    50: {"los": 58.8, "ltwb": 57.7, "tau_norm": 52.5},
    10: {"los": 69.7, "ltwb": 68.7, "tau_norm": 63.8},
}

TABLE2_LISTS: Mapping[str, Mapping[str, Splits]] = {
    "imagenet_lt": {
        "los": (54.4, 63.2, 50.7, 42.3),
        "ltwb": (53.9, 62.5, 50.4, 41.5),
        "crt": (49.6, 61.8, 46.2, 27.3),
        "tau_norm": (49.4, 59.1, 46.9, 30.7),
        "disalign": (52.9, 61.3, 52.2, 31.4),
    },
    "inaturalist18": {
        "los": (70.8, 69.2, 70.7, 71.3),
        "ltwb": (70.2, 71.2, 70.4, 69.7),
        "crt": (65.2, 69.0, 66.0, 63.2),
        "tau_norm": (65.6, 65.6, 65.3, 65.5),
        "disalign": (70.6, 69.0, 71.1, 70.2),
    },
}

_TABLE4_METHODS = ("vanilla", "ce", "focal", "ldam", "balanced_softmax", "class_balanced", "los")

TABLE4: Mapping[str, Mapping[str, float]] = {
    recipe: dict(zip(_TABLE4_METHODS, row, strict=True))
    for recipe, row in {
        "ce_steps": (41.59, 41.67, 44.18, 43.87, 45.03, 45.01, 45.18),
        "ce_drw": (42.38, 42.38, 42.55, 42.41, 44.27, 44.39, 44.88),
        "ldam_drw": (44.43, 44.45, 44.58, 44.47, 45.34, 45.52, 45.86),
        "balanced_softmax": (45.90, 45.91, 46.04, 45.90, 46.81, 46.76, 47.08),
    }.items()
}
"""By stage-1 recipe (on the schedule of LDAM) and method: accuracy over all classes of CIFAR100-LT at IR 100."""


@dataclass(frozen=True)
class Printed:
    """What the paper prints for the data of a sweep: by method kind, with the source and how it differs from ours."""

    where: str
    rows: Mapping[str, Splits]


BEST_OF_FIVE = (
    "best of five trials at the best epoch on the test set, with the batch norm of the backbone in training mode. "
    "Compare it with our best of five, not with our mean"
)


def printed(spec: SweepSpec) -> Printed | None:
    """The results of the paper for the dataset, imbalance ratio and stage 1 of a sweep; None if it has none."""
    document = spec.resolved()
    data, backbone = document["dataset"], (document["backbone"] or {}).get("kind")
    if data["kind"] in TABLE2_LISTS:
        theirs = {"imagenet_lt": "resnext50", "inaturalist18": "resnet50"}[data["kind"]]
        return Printed(_where("Table 2", backbone, theirs), TABLE2_LISTS[data["kind"]])
    ratio = data.get("imbalance_ratio")
    if data["kind"] != "cifar100_lt" or data["n_max"] != 500 or ratio not in TABLE2_CIFAR:
        return None
    recipe = str((document["stage1"] or {}).get("kind"))
    if backbone == "resnet32" and ratio == 100 and recipe in TABLE4:
        rows: dict[str, Splits] = {kind: (value, None, None, None) for kind, value in TABLE4[recipe].items()}
        return Printed(f"Table 4, row {recipe}: {BEST_OF_FIVE}", rows)
    alone: dict[str, Splits] = {kind: (value, None, None, None) for kind, value in TABLE2_CIFAR[ratio].items()}
    if ratio == 100:
        # Table 1 evaluates all methods on one backbone; Table 2 quotes them from their own papers.
        return Printed(_where("Table 1 (los, ltwb: Table 2)", backbone, "resnet34"), alone | dict(TABLE1))
    return Printed(_where("Table 2", backbone, "resnet34"), alone)


def _where(table: str, ours: str | None, theirs: str) -> str:
    other = "" if ours == theirs else f". Backbone of the paper: {theirs}, ours: {ours or 'given as features'}"
    return f"{table}: {BEST_OF_FIVE}{other}"
