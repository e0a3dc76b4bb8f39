"""Two processes over gloo train on the same batches as one and, without batch norm, to the same weights."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lt_train.backbones.checkpoint import load_checkpoint
from lt_train.pretrain.loop import ProcessGroup

pytestmark = pytest.mark.slow

TRANSFORMER = {
    "kind": "imported",
    "factory": "timm:vit_tiny_patch16_224",
    "arguments": {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 10},
}
"""A network without batch norm."""

# 31 images do not divide by two, and the divisor `weights` depends on the images of all ranks.
REWEIGHTED = {"kind": "ce_drw", "epochs": 2, "batch_size": 31, "reweight_epoch": 0, "warmup_epochs": 0, "lr": 0.05}
PLAIN = {"kind": "ce", "epochs": 2, "batch_size": 31, "lr": 0.05}
LONG = PLAIN | {"batch_size": 6}
WITH_DROPOUT = TRANSFORMER | {"arguments": TRANSFORMER["arguments"] | {"proj_drop_rate": 0.2}}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "transformer": (TRANSFORMER, PLAIN),
    "reweighted": (TRANSFORMER, REWEIGHTED),
    "stopped": (WITH_DROPOUT, LONG),
    "unstopped": (WITH_DROPOUT, LONG),
    "batch norm": ({"kind": "small_cnn", "width": 4}, LONG),
    "batch norm stopped": ({"kind": "small_cnn", "width": 4}, LONG),
}

PROCESS = """
import contextlib, itertools, json, sys
from pathlib import Path
import torch
from torch import distributed
from lt_train.backbones.base import BACKBONES
from lt_train.datasets.base import DATASETS
from lt_train.core.errors import UserError
from lt_train.pretrain.recipes import RECIPES
from lt_train.pretrain.train import train_backbone

folder, rank, count, cases = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4])
torch.set_num_threads(1)
if count > 1:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count)
data = DATASETS.parse({"kind": "digits_lt"}).load()
for name, (backbone, recipe) in cases.items():
    # Each rank has its own folder, as on machines without a shared one.
    out = folder / f"{rank} of {count}" / name
    job = data, BACKBONES.parse(backbone), RECIPES.parse(recipe), out
    if name.endswith("stopped") and not name.startswith("un"):
        calls = itertools.count()
        # Only the last rank stops.
        stop = lambda: rank == count - 1 and next(calls) > 25
        with contextlib.suppress(KeyboardInterrupt):
            train_backbone(*job, stop=stop)
            raise AssertionError("it must stop")
        assert out.with_name(out.name + ".resume").exists() == (rank == 0)
    notes = []
    train_backbone(*job, report=lambda done, total, note: notes.append(note))
    print(json.dumps([name, notes[0]]))
if count > 1:
    try:
        train_backbone(*job[:2], RECIPES.parse({"kind": "ce", "sync_batch_norm": True}), out)
    except UserError as error:
        print(json.dumps(["sync", str(error)]))
    distributed.destroy_process_group()
"""


def processes(folder: Path, count: int, cases: dict[str, Any]) -> list[dict[str, str]]:
    """The first note of every case, by process."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(folder), str(rank), str(count), json.dumps(cases)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    outputs = [process.communicate(timeout=600)[0] for process in started]
    assert [process.returncode for process in started] == [0] * count
    return [dict(json.loads(line) for line in text.splitlines()) for text in outputs]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, str]]]:
    folder = tmp_path_factory.mktemp("ranks")
    processes(folder, 1, {name: CASES[name] for name in ("transformer", "reweighted")})
    return folder, processes(folder, 2, CASES)


@pytest.mark.parametrize("case", ["transformer", "reweighted"])
def test_without_batch_norm_two_processes_end_where_one_does(
    trained: tuple[Path, list[dict[str, str]]], case: str
) -> None:
    folder, _ = trained
    one, two = (load_file(folder / f"0 of {count}" / case) for count in (1, 2))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-5)
    curves = [load_checkpoint(folder / f"0 of {count}" / case)[1]["curve"] for count in (1, 2)]
    for alone, together in zip(*curves, strict=True):
        assert together["loss"] == pytest.approx(alone["loss"], rel=1e-4)
        assert together["accuracy"] == pytest.approx(alone["accuracy"], abs=2e-3)


@pytest.mark.parametrize(("case", "plain"), [("stopped", "unstopped"), ("batch norm stopped", "batch norm")])
def test_ranks_stopped_within_an_epoch_end_with_the_same_weights(
    trained: tuple[Path, list[dict[str, str]]], case: str, plain: str
) -> None:
    folder, notes = trained
    assert "resumed in epoch" in notes[0][case]
    assert "resumed in epoch" in notes[1][case]
    assert (folder / "0 of 2" / case).read_bytes() == (folder / "0 of 2" / plain).read_bytes()


def test_only_rank_0_writes(trained: tuple[Path, list[dict[str, str]]]) -> None:
    folder, _ = trained
    assert {path.name for path in (folder / "0 of 2").iterdir()} == set(CASES)
    assert not (folder / "1 of 2").exists()


def test_synchronous_batch_norm_is_refused_without_cuda(trained: tuple[Path, list[dict[str, str]]]) -> None:
    _, notes = trained
    assert all("sync_batch_norm needs CUDA devices, got cpu" in one["sync"] for one in notes)


@pytest.mark.parametrize(("size", "shares"), [(8, [3, 3, 2]), (6, [2, 2, 2]), (5, [5, 5, 5]), (31, [11, 10, 10])])
def test_a_batch_is_divided_evenly_or_computed_by_every_rank(size: int, shares: list[int]) -> None:
    rows: list[list[int]] = []
    for rank in range(3):
        group = ProcessGroup("cpu")
        group.count, group.rank = 3, rank
        rows.append(list(range(size))[group.share(size)])
    assert [len(part) for part in rows] == shares
    if group.splits(size):
        assert [row for part in rows for row in part] == list(range(size))
