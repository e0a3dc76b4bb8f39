"""Effect of a frozen backbone on accuracy: `python benchmarks/frozen.py`; `--backbones small_cnn` for one backbone.

Compares three ways to re-train a head on FashionMNIST-LT (n_max 500, IR 100) with five seeds each: on a bank with one
view per epoch; on a bank with fewer views, which then repeat; and in a live loop with batch norm in train mode, as in
the released code of the paper. A live loop in evaluation mode is compared with the bank. Stage 1 is shortened and
labelled as such. Results are written to latest_frozen.json; docs/frozen.md is updated by hand.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import lt_train
from lt_train.backbones.base import BACKBONES
from lt_train.backbones.checkpoint import load_checkpoint
from lt_train.datasets.base import DATASETS, DatasetSpec, ImageData
from lt_train.datasets.longtail import take
from lt_train.features.bank import FeatureBank
from lt_train.features.extract import build_bank
from lt_train.features.spec import FeaturesSpec
from lt_train.methods.base import MethodSpec
from lt_train.metrics import SPLITS
from lt_train.pretrain.recipes import RECIPES
from lt_train.pretrain.train import train_backbone

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from support.live_loop import HeadConfig, Loop, accuracies, running_statistics, top1_correct, train_live

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Size:
    """Size of the measurement, chosen so that each backbone takes minutes on one core.

    Attributes:
        stage1_epochs: epochs of recipe `ce`; papers use 200.
        epochs: epochs of stage 2, and views of the bank that reproduces it; the paper uses 20.
        test_per_class: number of test images per class, the first ones; FashionMNIST has 1000.
        seeds: number of batch orders.
    """

    stage1_epochs: int
    epochs: int
    test_per_class: int
    seeds: int = 5


SIZES = {"small_cnn": Size(30, 20, 1000), "resnet32": Size(8, 10, 200)}
SETTINGS = {
    "ce": HeadConfig(smooth_factor=0.0, lr=5e-4),
    "los, d 0.98": HeadConfig(smooth_factor=0.98, lr=5e-4),
    "los, d 0.5, lr 0.02": HeadConfig(smooth_factor=0.5, lr=0.02),
}
"""The first two are from the paper. With the third, the head changes a lot and sees every view often."""
BATCH_SIZE = 64


def measure(kind: str, dataset: Mapping[str, Any], size: Size) -> dict[str, Any]:
    """All measurements of one backbone."""
    views = sorted({1, min(5, size.epochs), size.epochs})
    spec = DATASETS.parse(dict(dataset))
    data = spec.load()
    assert isinstance(data, ImageData)
    indices = [torch.nonzero(data.test.labels == k).flatten()[: size.test_per_class] for k in range(data.num_classes)]
    data = replace(data, test=take(data.test, torch.cat(indices)))
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "stage1.safetensors"
        recipe = RECIPES.parse({"kind": "ce", "epochs": size.stage1_epochs, "batch_size": 64})
        train_backbone(data, BACKBONES.parse({"kind": kind}), recipe, checkpoint, report=_report(f"{kind}: stage 1"))
        banks = _banks(spec, data, checkpoint, views, Path(folder))
        classifier, metadata = load_checkpoint(checkpoint)
        found = {
            "size": asdict(size),
            "vanilla": metadata["accuracy"],
            **{f"bank, {count} views": _on_bank(banks[count], size) for count in views},
        }
        start = (classifier.head.weight.detach(), classifier.head.bias.detach())
        live = Loop(size.epochs, BATCH_SIZE)
        found["parity"] = _parity(classifier.backbone, start, data, banks[size.epochs], live)
        found["live, batch norm in train mode"], found["drift"] = [], []
        for seed in range(size.seeds):
            network = load_checkpoint(checkpoint)[0].backbone
            before = running_statistics(network)
            heads = train_live(network, start, data, SETTINGS, replace(live, batch_norm_trains=True), seed)
            found["drift"].append(_drift(before, running_statistics(network)))
            found["live, batch norm in train mode"].append(_test_accuracies(network, heads, data))
            _report(f"{kind}: live, train mode")(seed + 1, size.seeds, "")
    return found


def _banks(
    spec: DatasetSpec, data: ImageData, checkpoint: Path, views: Sequence[int], store: Path
) -> dict[int, FeatureBank]:
    """Banks by number of views. A view depends only on its index, so smaller banks are prefixes of larger ones."""

    def bank(count: int) -> FeatureBank:
        return lt_train.open_bank(build_bank(spec, checkpoint, FeaturesSpec(views=count), store, data=data))

    largest, plain = bank(views[-1]), bank(1)
    return {
        count: plain if count == 1 else replace(largest, train_features=largest.train_features[:count])
        for count in views
    }


def _on_bank(bank: FeatureBank, size: Size) -> list[dict[str, dict[str, float]]]:
    """Test accuracies after the last epoch: per seed, by method and split."""
    training = lt_train.TrainingSpec(epochs=size.epochs, batch_size=BATCH_SIZE)
    rows: list[dict[str, dict[str, float]]] = [{} for _ in range(size.seeds)]
    for name, setting in SETTINGS.items():
        fits = lt_train.fit(bank, _method(setting), seeds=size.seeds, training=training)
        for row, one in zip(rows, fits, strict=True):
            row[name] = dict(zip(SPLITS, one.result.test_accuracy[-1].tolist(), strict=True))
    return rows


def _method(setting: HeadConfig) -> MethodSpec:
    smoothed = {"kind": "los", "smooth_factor": setting.smooth_factor} if setting.smooth_factor else {"kind": "ce"}
    return lt_train.METHODS.parse(smoothed | {"lr": setting.lr})


def _parity(network: nn.Module, start: tuple[Tensor, Tensor], data: ImageData, bank: FeatureBank, loop: Loop) -> Any:
    """Differences between a live loop in evaluation mode and the bank: in weights and in correct test images."""
    heads = train_live(network, start, data, SETTINGS, loop, seed=0)
    training = lt_train.TrainingSpec(epochs=loop.epochs, batch_size=loop.batch_size)
    found = {}
    for name, hit in top1_correct(network, heads, data, data.augmentation.flip).items():
        result = lt_train.fit(bank, _method(SETTINGS[name]), training=training)[0].result
        weight = torch.from_numpy(result.kept.state["weight"])
        found[name] = {
            "largest_difference_of_weights": float((heads[name].weight.detach() - weight).abs().max()),
            "largest_change_of_weights": float((weight - start[0]).abs().max()),
            "difference_in_test_images": int(hit.sum()) - round(float(result.test_accuracy[-1, 0]) * len(hit)),
            "test_images": len(hit),
        }
    return found


def _test_accuracies(
    network: nn.Module, heads: Mapping[str, nn.Linear], data: ImageData
) -> dict[str, dict[str, float]]:
    return {
        name: accuracies(hit, data) for name, hit in top1_correct(network, heads, data, data.augmentation.flip).items()
    }


def _drift(before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Relative change (L2 norm) of all running means and of all running variances."""
    names = ("running_mean", "running_var")
    return {name: float((b - a).norm() / a.norm()) for name, a, b in zip(names, before, after, strict=True)}


def _report(what: str) -> Any:
    def report(done: int, total: int, note: str) -> None:
        print(f"{what} {done}/{total} {note}", file=sys.stderr, flush=True)

    return report


def table(found: Mapping[str, Any]) -> list[str]:
    """Rows of a Markdown table: mean and standard deviation over seeds, in percent."""
    lines = []
    for name in SETTINGS:
        for what, rows in found.items():
            if what.startswith(("bank", "live")):
                values = np.array([[row[name][split] for split in SPLITS] for row in rows]) * 100
                cells = [f"{m:.2f} ±{s:.2f}" for m, s in zip(values.mean(0), values.std(0, ddof=1), strict=True)]
                lines.append(f"| {name} | {what} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Measure, write the results and print the tables."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/frozen.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbones", nargs="+", choices=sorted(SIZES), default=list(SIZES))
    parser.add_argument("--threads", type=int, default=1, help="number of torch threads (default: 1)")
    parser.add_argument("--out", type=Path, default=HERE / "latest_frozen.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    document = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {}
    document |= {"machine": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    for kind in arguments.backbones:
        started = time.perf_counter()
        found = measure(kind, {"kind": "fashion_mnist_lt"}, SIZES[kind])
        document[kind] = found | {"seconds": round(time.perf_counter() - started)}
        arguments.out.write_text(json.dumps(document, indent=1) + "\n")
        print(f"{kind}, {found['size']}", *table(found), sep="\n")
        print("drift", found["drift"], "parity", json.dumps(found["parity"], indent=1))


if __name__ == "__main__":
    main()
