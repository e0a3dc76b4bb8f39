"""Small fakes of what the pages require: features, images, published image lists and finished sweeps."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml
from documentation.pages import ROOT
from support.features import write_features
from support.images import write_images, write_tree

import sweeps
from sweeps.config.matrix import load_matrix
from sweeps.config.spec import load_resolved

__all__ = ["write_fakes"]


def write_fakes(place: Path) -> Path:
    """Write all fakes to `place`, the home and working directory of a reader; returns `place`."""
    for name in ("infra", "sweeps", "tests"):
        (place / name).symlink_to(ROOT / name)
    write_features(place / "features.npz")
    classes = {"crow": 120, "owl": 40, "wren": 8}
    write_tree(place / "birds", {"train": classes, "val": dict.fromkeys(classes, 4), "test": dict.fromkeys(classes, 6)})
    _write_imagenet(place / "imagenet")
    for name in ("demo", "demo-ir50", "ir10", "ir100"):
        sweeps.run(load_resolved(_sweep(place, name)))
    matrix = place / "table4.yaml"
    matrix.write_text(yaml.safe_dump({**_sweep(place, "table4"), "matrix": {"training.epochs": [2, 3]}}))
    sweeps.run(load_matrix(matrix))
    return place


def _sweep(place: Path, name: str) -> dict[str, Any]:
    return {
        "version": 1,
        "name": name,
        "dataset": {"kind": "arrays", "path": str(place / "features.npz")},
        "methods": ["los", "balanced_softmax"] if name == "table4" else ["los"],
        **({} if name == "table4" else {"training": {"epochs": 3}}),
        "search": {"trials": 4, "space": {"method.lr": {"loguniform": [1e-3, 1e-1]}}},
        "selection": {"seeds": 2},
        "backend": "inline",
        "tracking": {"uri": f"sqlite:///{place / 'runs' / 'mlflow.db'}"} if name == "demo" else "none",
        "storage": str(place / "runs"),
    }


def _write_imagenet(root: Path) -> None:
    """Write images of three classes of ImageNet-LT, with lists in the published format."""
    folders = [f"train/n0144076{label}/n0144076{label}" for label in range(3)]
    parts = {
        "train": {f"{folders[k % 3]}_{k}.JPEG": k % 3 for k in range(9)},
        "val": {f"{folder}_1.jpeg": label for label, folder in enumerate(folders)},
        "test": {f"val/ILSVRC2012_val_{k:08}.JPEG": k for k in range(3)},
    }
    for part, images in parts.items():
        write_images(root, images)
        lines = [f"{path} {label}{os.linesep}" for path, label in images.items()]
        (root / f"ImageNet_LT_{part}.txt").write_text("".join(lines))
