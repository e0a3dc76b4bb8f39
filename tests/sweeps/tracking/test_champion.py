"""The champion in MLflow: from images and from features, registered once, loaded without this package's code."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
import yaml
from mlflow.exceptions import MlflowException
from support.stores import all_runs, client

import sweeps
from lt_train.backbones.checkpoint import load_checkpoint, save_checkpoint
from lt_train.features.files import open_test
from sweeps.analysis import image_classifier as networks
from sweeps.analysis.image_classifier import ImageClassifier
from sweeps.config.spec import SweepSpec
from sweeps.experiment.prepare import prepare_all
from sweeps.experiment.runner import TrackingBehind

pytestmark = pytest.mark.slow

MakeSweep = Callable[..., SweepSpec]


def test_the_champion_predicts_what_the_winner_predicts(tracked: MakeSweep, features_file: Path):
    spec = tracked()
    result = sweeps.run(spec)
    found = client(spec)
    version = found.get_model_version_by_alias("small", "champion")
    head = found.get_model_version_by_alias("small", "champion-head")
    assert head.version == version.version, "there is no model from images"
    model = loaded(spec, "models:/small@champion")
    arrays = np.load(features_file)
    logits = np.mean([model.predict(view) for view in arrays["test_features"]], axis=0)
    accuracy = (logits.argmax(axis=1) == arrays["test_labels"]).mean()
    assert accuracy == pytest.approx(result.winner.best_of.acc_all, abs=1e-6)
    assert model.metadata.signature is not None
    sweeps.run(spec)
    assert found.get_model_version_by_alias("small", "champion").version == version.version, (
        "the champion must be registered once"
    )


def loaded(spec: SweepSpec, model: str) -> Any:
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{Path(spec.storage) / 'mlflow.db'}")
    try:
        return mlflow.pyfunc.load_model(model)
    finally:
        mlflow.set_tracking_uri(before)


@pytest.mark.parametrize("flip", [False, True])
def test_the_champion_from_images_predicts_what_the_sweep_tested(flip: bool, image_classifier: MakeSweep):
    spec = image_classifier(features={"test_flip": flip})
    result = sweeps.run(spec)
    assert result.winner is not None
    test = spec.dataset.load().test
    images = test.inputs.permute(0, 2, 3, 1).numpy()  # the layout of Pillow and numpy
    model, head = (loaded(spec, f"models:/small@{alias}") for alias in ("champion", "champion-head"))
    logits = model.predict(images)
    (bank,) = (Path(spec.storage) / "cache" / "banks").iterdir()
    features = open_test(bank).features.numpy()
    assert len(features) == 1 + flip
    tested = np.mean([head.predict(view) for view in features], axis=0)
    np.testing.assert_allclose(logits, tested, rtol=1e-4, atol=1e-4)
    accuracy = (logits.argmax(axis=1) == test.labels.numpy()).mean()
    assert accuracy == pytest.approx(result.winner.best_of.acc_all, abs=1e-6)
    np.testing.assert_allclose(model.predict(images[:1]), logits[:1], rtol=1e-4, atol=1e-4)
    assert model.metadata.signature.inputs.to_dict()[0]["tensor-spec"] == {"dtype": "uint8", "shape": (-1, 8, 8, 1)}
    assert model.input_example is not None
    with pytest.raises(MlflowException, match=r"dtype of input float32 does not match expected dtype uint8"):
        model.predict(images.astype(np.float32))


def test_an_unchanged_champion_is_not_uploaded_again(image_classifier: MakeSweep):
    spec = image_classifier()
    sweeps.run(spec)
    found = client(spec)
    before = [version.version for version in found.search_model_versions("name = 'small'")]
    sweeps.resume(Path(spec.storage) / "small")
    assert [version.version for version in found.search_model_versions("name = 'small'")] == before
    assert len(before) == 2
    experiment = found.get_experiment_by_name("tests").experiment_id
    assert len(found.search_logged_models([experiment])) == 2


def registered(spec: SweepSpec) -> dict[str, tuple[str, list[str]]]:
    """The model and the aliases of every version."""
    found = client(spec)
    versions = [found.get_model_version("small", one.version) for one in found.search_model_versions("name = 'small'")]
    return {str(one.version): (one.tags["lt.model"], sorted(one.aliases)) for one in versions}


@pytest.mark.parametrize("broken", ["log_model_artifacts", "create_model_version"])
def test_a_failed_upload_is_resumed(broken: str, image_classifier: MakeSweep, monkeypatch: pytest.MonkeyPatch):
    """It fails at the second model, after the first is registered, and fails a second time."""
    spec = image_classifier(tracking={"kind": "mlflow", "experiment": "tests", "flush_timeout": 0.0})
    original, calls = getattr(mlflow.MlflowClient, broken), [0]

    def fail_from_second_call(*arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] > 1:
            raise OSError("artifact store unavailable")
        return original(*arguments, **named)

    with monkeypatch.context() as away:
        away.setattr(mlflow.MlflowClient, broken, fail_from_second_call)
        with pytest.raises(TrackingBehind, match="artifact store unavailable"):
            sweeps.run(spec)
        with pytest.raises(TrackingBehind, match="artifact store unavailable"):
            sweeps.resume(Path(spec.storage) / "small")
        assert {run.info.status for run in all_runs(spec)} == {"FINISHED", "KILLED"}
    sweeps.resume(Path(spec.storage) / "small")
    assert {run.info.status for run in all_runs(spec)} == {"FINISHED"}
    assert registered(spec) == {"1": ("champion-head", ["champion-head"]), "2": ("champion", ["champion"])}
    models = client(spec).search_logged_models([client(spec).get_experiment_by_name("tests").experiment_id])
    assert sorted((one.name, str(one.status)) for one in models) == [("champion", "READY"), ("champion-head", "READY")]
    assert loaded(spec, "models:/small@champion").predict(np.zeros((1, 8, 8, 1), np.uint8)).shape == (1, 10)


def test_a_model_from_images_is_logged_later(image_classifier: MakeSweep, monkeypatch: pytest.MonkeyPatch):
    spec = image_classifier()
    with monkeypatch.context() as without:
        without.setattr("sweeps.experiment.listeners.image_classifier", lambda *arguments: None)
        sweeps.run(spec)
        sweeps.resume(Path(spec.storage) / "small")
        assert registered(spec) == {"1": ("champion-head", ["champion", "champion-head"])}
    both = {"1": ("champion-head", ["champion-head"]), "2": ("champion", ["champion"])}
    sweeps.resume(Path(spec.storage) / "small")
    assert registered(spec) == both
    with monkeypatch.context() as without:
        without.setattr("sweeps.experiment.listeners.image_classifier", lambda *arguments: None)
        sweeps.resume(Path(spec.storage) / "small")
    assert registered(spec) == both, "an existing model must stay"


def test_the_head_alone_can_be_the_champion(image_classifier: MakeSweep):
    spec = image_classifier(tracking={"kind": "mlflow", "experiment": "tests", "champion": "features"})
    sweeps.run(spec)
    versions = client(spec).search_model_versions("name = 'small'")
    assert [sorted(client(spec).get_model_version("small", one.version).aliases) for one in versions] == [
        ["champion", "champion-head"]
    ]
    assert "float32" in str(loaded(spec, "models:/small@champion").metadata.signature)


def test_torch_compiler_is_not_imported_during_training(tracked: MakeSweep, tmp_path: Path):
    """Its import briefly removes `_operator` from `sys.modules`, so that unpickling in another thread fails."""
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(tracked().resolved(), sort_keys=False))
    code = f"""
import sys, time, sweeps
from sweeps.tracking.background import BackgroundTracker
finish = BackgroundTracker.finish
def finish_after_all_trials(self, *arguments):
    while self.pending:
        time.sleep(0.01)
    print("torch._dynamo" in sys.modules)
    return finish(self, *arguments)
BackgroundTracker.finish = finish_after_all_trials
sweeps.run(sweeps.load_sweep({str(file)!r}))
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["False", "True"]


def test_a_notebook_keeps_its_experiment_and_its_run(tracked: MakeSweep, tmp_path: Path):
    spec = tracked()
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(spec.resolved(), sort_keys=False))
    code = f"""
import mlflow, sweeps
mlflow.set_tracking_uri("sqlite:///{tmp_path}/mine.db")
mlflow.set_experiment("mine")
with mlflow.start_run() as mine:
    sweeps.run(sweeps.load_sweep({str(file)!r}))
    mlflow.log_metric("ours", 1.0)
assert mlflow.get_run(mine.info.run_id).data.metrics == {{"ours": 1.0}}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = client(spec)
    experiment = found.get_experiment_by_name("tests").experiment_id
    (model,) = found.search_logged_models([experiment])
    (parent,) = [run for run in all_runs(spec) if run.data.tags["lt.key"] == "sweep"]
    assert (model.source_run_id, str(model.status)) == (parent.info.run_id, "READY")
    assert parent.info.status == "FINISHED"
    assert found.get_model_version_by_alias("small", "champion").run_id == parent.info.run_id


def test_a_champion_that_torch_cannot_export_is_logged_without_its_backbone(
    image_classifier: MakeSweep, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """For example a model whose code branches on its values."""
    original = ImageClassifier.forward

    def forward(self: ImageClassifier, images: Any) -> Any:
        return original(self, images) * (1 if images.float().sum() > 1 else 2)

    monkeypatch.setattr(ImageClassifier, "forward", forward)
    spec = image_classifier()
    with caplog.at_level(logging.WARNING, "sweeps"):
        sweeps.run(spec)
    assert "the champion is logged without its backbone" in caplog.text
    assert "float32" in str(loaded(spec, "models:/small@champion").metadata.signature)


def test_a_replaced_checkpoint_is_not_part_of_a_champion(image_classifier: MakeSweep):
    prepared = prepare_all(image_classifier())
    assert prepared.images is not None
    head = torch.nn.Linear(prepared.bank.feature_dim, 10)
    assert networks.image_classifier(head, prepared.bank, prepared.images) is not None
    checkpoint = prepared.images.backbone
    assert isinstance(checkpoint, Path)
    classifier, about = load_checkpoint(checkpoint)
    torch.nn.init.zeros_(classifier.head.weight)
    save_checkpoint(checkpoint, classifier, about)
    assert networks.image_classifier(head, prepared.bank, prepared.images) is None
    checkpoint.unlink()
    assert networks.image_classifier(head, prepared.bank, prepared.images) is None
