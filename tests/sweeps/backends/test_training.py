"""Stage 1 in two Ray workers: the same weights as in one process, also after kills and interruptions."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file
from support.images import write_tree

from lt_train.backbones.base import BACKBONES
from lt_train.backbones.checkpoint import load_checkpoint
from lt_train.core.errors import DataError, UserError
from lt_train.datasets.base import DATASETS, ImageData, Labelled
from lt_train.pretrain.recipes import RECIPES
from lt_train.pretrain.train import resume_file, train_backbone
from sweeps.backends.workers import _check_stage1_resources, _JobImages
from sweeps.config.interfaces import BACKENDS, BackboneJob
from sweeps.config.spec import SweepSpec
from sweeps.experiment.prepare import prepare

pytestmark = pytest.mark.slow

TRANSFORMER = {
    "kind": "imported",
    "factory": "timm:vit_tiny_patch16_224",
    "arguments": {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 10},
}
CNN = {"kind": "small_cnn", "width": 4}


def job(backbone: dict[str, Any], **fields: Any) -> BackboneJob:
    dataset = DATASETS.parse({"kind": "digits_lt"})
    data = dataset.load()
    assert isinstance(data, ImageData)
    recipe = RECIPES.parse({"kind": "ce", "epochs": 2, "batch_size": 31, "lr": 0.05} | fields)
    return BackboneJob(data, dataset, BACKBONES.parse(backbone), recipe, {"dataset": "digits"})


def train(one: BackboneJob, out: Path, report: Callable[[int, int, str], None] = lambda *progress: None) -> None:
    ray_backend = BACKENDS.kinds()["ray"].model_validate({"kind": "ray"})
    ray_backend.train_backbone(one, out, workers=2, cpus=1, gpus=0, report=report)


@pytest.mark.usefixtures("local_ray")
def test_two_workers_give_the_weights_of_one_process(tmp_path: Path):
    one, reported = job(TRANSFORMER), []
    train(one, tmp_path / "two", lambda *progress: reported.append(progress))
    train_backbone(one.data, one.backbone, one.recipe, tmp_path / "one", about=one.about)
    weights, others = load_file(tmp_path / "one"), load_file(tmp_path / "two")
    for name in weights:
        torch.testing.assert_close(weights[name], others[name], rtol=1e-4, atol=1e-5)
    about = load_checkpoint(tmp_path / "two")[1]
    assert about["dataset"] == "digits"
    assert [point["epoch"] for point in about["curve"]] == [1, 2]
    assert reported[-1][:2] == (2, 2)
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two"}


@pytest.mark.usefixtures("local_ray")
def test_a_killed_worker_and_an_interrupted_driver_change_no_bit(tmp_path: Path):
    one = job(CNN, epochs=60)
    train(one, tmp_path / "whole")
    out, killed = tmp_path / "disturbed", []

    def kill_one() -> None:
        deadline = time.monotonic() + 300
        while not killed and time.monotonic() < deadline:
            if resume_file(out).exists():
                for process in psutil.Process().children(recursive=True):  # of the local Ray
                    with contextlib.suppress(psutil.Error):
                        if "RayTrainWorker" in " ".join(process.cmdline()):
                            process.kill()
                            killed.append(process.pid)
                            break
            time.sleep(0.05)

    killer = threading.Thread(target=kill_one)
    killer.start()

    def interrupt(done: int, total: int, note: str) -> None:
        notes.append((done, note))
        if killed and len(notes) > 1 and 0 < done < total:
            raise KeyboardInterrupt

    notes: list[tuple[int, str]] = []
    with pytest.raises(KeyboardInterrupt):
        train(one, out, interrupt)
    killer.join()
    assert killed, "the test must have killed a worker"
    assert not out.exists()
    assert resume_file(out).exists()
    notes = []
    train(one, out, lambda done, total, note: notes.append((done, note)))
    assert out.read_bytes() == (tmp_path / "whole").read_bytes()
    assert not resume_file(out).exists()


@pytest.mark.usefixtures("local_ray")
def test_user_errors_are_raised_unchanged(tmp_path: Path):
    with pytest.raises(UserError, match="float16 needs a CUDA device"):
        train(job(CNN, precision="float16"), tmp_path / "out")


@pytest.mark.usefixtures("local_ray")
def test_files_that_differ_from_the_drivers_are_refused(tmp_path: Path):
    write_tree(tmp_path / "birds", {part: {"jay": 6, "owl": 6} for part in ("train", "test")})
    dataset = DATASETS.parse({"kind": "image_folder", "root": str(tmp_path / "birds"), "size": 8, "in_memory": 0})
    data = dataset.load()
    assert isinstance(data, ImageData)
    one = dataclasses.replace(job(CNN), data=data, dataset=dataset)
    kept = torch.arange(8)
    fewer = dataclasses.replace(data, train=Labelled(data.train.inputs.take(kept), data.train.labels[kept]))
    with pytest.raises(DataError, match="dataset image_folder must be the same on all machines"):
        train(dataclasses.replace(one, data=fewer), tmp_path / "out")


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("in_memory", [0, 2**20])
def test_images_in_memory_are_sent_and_others_are_read_from_files(tmp_path: Path, in_memory: int):
    root = write_tree(tmp_path / "birds", {part: {"jay": 6, "owl": 6} for part in ("train", "test")})
    dataset = DATASETS.parse({"kind": "image_folder", "root": str(root), "size": 8, "in_memory": in_memory})
    data = dataset.load()
    assert isinstance(data, ImageData)
    images = _JobImages(data)
    root.rename(tmp_path / "away")
    if in_memory:
        there = images.load(dataset)
        assert torch.equal(there.train.inputs[:], data.train.inputs[:])
    else:
        with pytest.raises(DataError, match=f"{root}"):
            images.load(dataset)


@pytest.mark.usefixtures("local_ray")
def test_backbones_of_several_workers_have_a_cache_key_of_their_own(small_sweep: Callable[..., SweepSpec]):
    images = {
        "dataset": "digits_lt",
        "backbone": CNN,
        "stage1": {"kind": "ce", "epochs": 1},
        "backend": {"kind": "ray"},
    }
    alone, together = small_sweep(**images), small_sweep(**images, resources={"stage1_workers": 2})
    assert alone.fingerprint() == together.fingerprint()
    banks = [prepare(spec).fingerprint for spec in (alone, together, together)]
    assert banks[0] != banks[1] == banks[2]
    assert len(list((Path(alone.storage) / "cache" / "checkpoints").iterdir())) == 2


@pytest.mark.usefixtures("local_ray")
def test_too_many_workers_for_a_local_ray_are_refused(caplog: pytest.LogCaptureFixture):
    with pytest.raises(UserError, match=r"resources\.stage1_workers: 3 workers with 1 CPUs each .* the 2 CPUs"):
        _check_stage1_resources(3, {"CPU": 1}, local=True)
    with caplog.at_level(logging.WARNING, "sweeps"):
        _check_stage1_resources(3, {"CPU": 1}, local=False)
    assert "waiting for machines to join" in caplog.text
    _check_stage1_resources(2, {"CPU": 1}, local=True)


def test_the_inline_backend_refuses_several_workers(small_sweep: Callable[..., SweepSpec]):
    with pytest.raises(UserError, match="stage1_workers: must be 1 with backend inline"):
        small_sweep(resources={"stage1_workers": 2})
