"""Exports: the winner in the user's own module and as a graph gives the accuracies of the report, to the image."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from support.external_models import Tiny
from support.imported import scrambled
from torch import Tensor, nn

import sweeps
from lt_train.core.errors import CheckpointError, LongtailError, UserError
from lt_train.core.plugins import ALLOWED_VARIABLE
from lt_train.methods.heads.base import HEADS, Classifier, HeadSpec
from sweeps.analysis.load import Sweep, read_sweep
from sweeps.config.spec import SweepSpec
from sweeps.reporting.export import FORMATS, export_model, predict, trial_named, winner_state_dict

pytestmark = pytest.mark.slow

MakeSweep = Callable[..., SweepSpec]

CLASSES, SIZE = 5, 8
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

LAYOUTS: dict[str, Callable[[dict[str, Tensor], Path], None]] = {
    "plain.pth": torch.save,
    "lightning.ckpt": lambda state, file: torch.save(
        {"state_dict": {f"model.module.{name}": tensor for name, tensor in state.items()}, "epoch": 3}, file
    ),
    "weights.safetensors": save_file,
}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A file of images in five classes that differ in brightness, with noise."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for part, counts in {"train": (60, 40, 20, 10, 5), "val": (8,) * CLASSES, "test": (40,) * CLASSES}.items():
        labels = np.repeat(np.arange(CLASSES), counts)
        noise = rng.normal(0, 60, (len(labels), 3, SIZE, SIZE))
        shade = 40 * labels[:, None, None, None] + 40
        arrays |= {f"{part}_images": (shade + noise).clip(0, 255).astype(np.uint8), f"{part}_labels": labels}
    np.savez(tmp_path / "images.npz", **arrays)
    return tmp_path / "images.npz"


@pytest.fixture
def imported(
    small_sweep: MakeSweep, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., SweepSpec]:
    """A sweep on the model `Tiny`, whose checkpoint has one of `LAYOUTS`."""
    monkeypatch.setenv(ALLOWED_VARIABLE, "support")

    def make(layout: str = "plain.pth", **sections: Any) -> SweepSpec:
        torch.manual_seed(0)
        LAYOUTS[layout](scrambled(Tiny()).state_dict(), tmp_path / layout)
        backbone = {"kind": "imported", "factory": "support.external_models:Tiny", "checkpoint": str(tmp_path / layout)}
        sections = {
            "dataset": {"kind": "arrays", "path": str(images)},
            "backbone": backbone,
            "search": {"trials": 3, "space": {"method.lr": {"loguniform": [0.1, 1.0]}}},
            "training": {"epochs": 30, "batch_size": 8},
        } | sections
        return small_sweep(**sections)

    return make


def run(spec: SweepSpec) -> tuple[Sweep, float]:
    """The finished sweep, and the number of test images that its exported head classifies correctly."""
    result = sweeps.run(spec)
    sweep = read_sweep(Path(spec.storage) / spec.name)
    assert result.winner is not None
    assert result.winner.best_of.acc_all is not None
    assert sweep.test is not None
    total, classes = len(sweep.test.labels), len(sweep.test.labels.unique())
    right = round(result.winner.best_of.acc_all * total)
    assert total / classes < right < total, "not a constant, and not perfect, so that differences are seen"
    return sweep, right


def correct(logits: Any, labels: Any) -> int:
    return int((np.asarray(logits).argmax(1) == np.asarray(labels)).sum())


def card_of(file: Path) -> str:
    return (file.parent / "README.md").read_text()


def executed(file: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that the code of a card defines."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", card_of(file), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    with monkeypatch.context() as place:
        place.chdir(file.parent)
        exec(code, names)
    return names


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_users_own_module_has_the_accuracies_of_the_report(
    layout: str, imported: MakeSweep, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, expected = run(imported(layout, features={"test_flip": False}))
    data = np.load(images)
    inputs = torch.from_numpy(data["test_images"]) / 255
    normalised = (inputs - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    for format, load in {
        "state_dict": lambda file: torch.load(file, weights_only=True),
        "safetensors": load_file,
    }.items():
        file = export_model(sweep, format=format)
        model = Tiny()
        model.load_state_dict(load(file), strict=True)
        with torch.inference_mode():
            assert correct(model.eval()(normalised)["logits"], data["test_labels"]) == expected
        shown = executed(file, monkeypatch)
        with torch.inference_mode():
            logits = shown["model"]((inputs - shown["mean"]) / shown["std"])["logits"]
        assert correct(logits, data["test_labels"]) == expected
        assert file.stat().st_mode & 0o077 == (file.parent / "README.md").stat().st_mode & 0o077
    head = sweep.ledger.head(sweep.best_seed(sweep.winner).key)
    assert torch.equal(model.classifier.weight, head["weight"]), "to the bit"
    assert {name: tensor.shape for name, tensor in winner_state_dict(sweep).items()} == {
        name: tensor.shape for name, tensor in Tiny().state_dict().items()
    }


class TwoLayers(HeadSpec):
    """`[I -I] relu([W; -W] f + [b; -b])`, the logits of the linear classifier at first."""

    kind: Literal["two_layers"] = "two_layers"

    def module(self, start: Classifier, seed: int = 0) -> nn.Module:
        (weight, bias), identity = start, torch.eye(len(start[0]))
        first, last = nn.Linear(weight.shape[1], 2 * len(weight)), nn.Linear(2 * len(weight), len(weight))
        first.load_state_dict({"weight": torch.cat([weight, -weight]), "bias": torch.cat([bias, -bias])})
        last.load_state_dict({"weight": torch.cat([identity, -identity], dim=1), "bias": torch.zeros(len(weight))})
        return nn.Sequential(first, nn.ReLU(), last)

    def num_parameters(self, num_classes: int, feature_dim: int) -> int:
        return 2 * num_classes * (feature_dim + 1) + num_classes * (2 * num_classes + 1)

    def state_shape(self, state: Mapping[str, Tensor]) -> tuple[int, int]:
        return len(state["2.weight"]), state["0.weight"].shape[1]


@pytest.mark.usefixtures("own_kinds")
@pytest.mark.parametrize("head", ["mlp", "two_layers"])
def test_heads_of_several_layers(
    head: str, imported: MakeSweep, images: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Graph and predictions have the accuracy of the report; a state dict is refused."""
    HEADS.register(TwoLayers)
    method = {"kind": "ce", "head": {"kind": head}, "post_hoc": {"kind": "logit_adjust"}}
    sweep, expected = run(imported(method=method, features={"test_flip": False}))
    data = np.load(images)
    pixels, labels = data["test_images"].transpose(0, 2, 3, 1), data["test_labels"]
    file = export_model(sweep, tmp_path / "pt2", format="pt2")
    with torch.inference_mode():
        logits = executed(file, monkeypatch)["model"](torch.from_numpy(pixels))
    assert (logits.shape, correct(logits, labels)) == ((len(labels), CLASSES), expected)
    assert f"A classifier of {CLASSES} classes" in card_of(file)
    (tmp_path / "new").mkdir()
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "new" / f"{number:03}.png")
    frame = predict(sweep, tmp_path / "new")
    assert (frame["class"].astype(int) == labels).sum() == expected
    assert len(frame.columns) == 3 + CLASSES
    with pytest.raises(UserError, match=f"not linear .method ce, head {head}.; the formats pt2 and onnx hold any"):
        export_model(sweep, tmp_path / "weights", format="state_dict")


@pytest.mark.parametrize("flip", [False, True])
def test_graphs_have_the_accuracies_of_the_report(
    flip: bool, imported: MakeSweep, images: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also with the mirror image; without this package; for any number of images."""
    method = {"kind": "ce", "head": {"kind": "cosine"}} if flip else {"kind": "los"}
    sweep, expected = run(imported(method=method, features={"test_flip": flip}))
    data = np.load(images)
    inputs = data["test_images"].transpose(0, 2, 3, 1)
    file = export_model(sweep, tmp_path / "pt2", format="pt2")
    with torch.inference_mode():
        own = executed(file, monkeypatch)["model"](torch.from_numpy(inputs)).numpy()
    assert correct(own, data["test_labels"]) == expected
    file = export_model(sweep, tmp_path / "onnx", format="onnx")
    assert executed(file, monkeypatch)["logits"].shape == (2, CLASSES)
    session = onnxruntime.InferenceSession(file)
    (logits,) = session.run(None, {"images": inputs})
    assert np.abs(logits - own).max() <= 1e-4 * np.abs(own).max()
    assert correct(logits, data["test_labels"]) == expected
    assert b"site-packages" not in file.read_bytes()
    if flip:
        with pytest.raises(
            UserError, match=r"not linear \(method ce, head cosine\); the formats pt2 and onnx hold any"
        ):
            export_model(sweep, tmp_path / "weights", format="state_dict")
        assert not (tmp_path / "weights").exists()


def test_the_card_has_data_backbone_method_and_scores(imported: MakeSweep, tmp_path: Path) -> None:
    method, metrics = {"kind": "los", "smooth_factor": 0.3}, ["mean_class_accuracy", "nll"]
    sweep, expected = run(imported(features={"test_flip": True}, method=method, metrics=metrics))
    text = card_of(export_model(sweep, tmp_path / "out", format="state_dict"))
    _, head, body = text.split("---\n", 2)
    metadata = yaml.safe_load(head)
    (entry,) = metadata["model-index"]
    values = {one["name"]: one["value"] for one in entry["results"][0]["metrics"]}
    total = 40 * CLASSES
    assert values["top-1 accuracy, all classes"] == pytest.approx(expected / total, abs=1e-6)
    assert values["mean_class_accuracy"] == pytest.approx(expected / total, abs=1e-6), "test classes are equally large"
    assert metadata["pipeline_tag"] == "image-classification"
    shown = rf"{100 * expected / total:.2f} \|(?: \S+ \|){{3}} {100 * expected / total:.2f} \| {values['nll']:.3g} \|"
    assert re.search(rf"\| this model, mean over an image and its mirror image \| {shown}$", body, re.MULTILINE)
    assert re.search(
        r"\| mean of 2 seeds \| \d+\.\d\d ±\d+\.\d\d \|.{9,}\| \S+ ±\S+ \| \S+ ±\S+ \|$", body, re.MULTILINE
    )
    classifier, test = sweep.classifier(sweep.winner), sweep.test
    assert classifier is not None
    assert test is not None
    with torch.inference_mode():
        logits = classifier(test.features[0])
        one, nll = correct(logits, test.labels), float(nn.functional.cross_entropy(logits, test.labels))
    shown = rf"{100 * one / total:.2f} \|(?: \S+ \|){{3}} {100 * one / total:.2f} \| {nll:.3g} \|"
    assert re.search(rf"\| this model, one image \| {shown}$", body, re.MULTILINE)
    blocks = [yaml.safe_load(one) for one in re.findall(r"^```yaml\n(.*?)^```$", body, re.MULTILINE | re.DOTALL)]
    settings, sources, versions = blocks
    assert (settings["method"]["smooth_factor"], settings["training"]["epochs"]) == (0.3, 30)
    assert sources["backbone"]["factory"] == "support.external_models:Tiny"
    assert (sources["features"], versions["torch"]) == (sweep.bank, torch.__version__.partition("+")[0])
    assert str(tmp_path) not in text


def test_a_sweep_on_features_exports_its_head(
    small_sweep: MakeSweep, features_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, expected = run(small_sweep(search={"trials": 2}))
    data = np.load(features_file)
    for format in FORMATS:
        file = export_model(sweep, format=format)
        shown = executed(file, monkeypatch)
        assert shown["logits"].shape == (2, 6)
        if format == "onnx":
            session = shown["session"]
            logits = np.mean([session.run(None, {"features": view})[0] for view in data["test_features"]], axis=0)
        else:
            with torch.inference_mode():
                logits = np.mean([shown["model"](torch.from_numpy(view)).numpy() for view in data["test_features"]], 0)
        assert correct(logits, data["test_labels"]) == expected, format
    assert "mean over 2 views of a test image" in card_of(file)


def test_an_existing_directory_is_replaced_on_request_only(small_sweep: MakeSweep, tmp_path: Path) -> None:
    sweep, _ = run(small_sweep(search={"trials": 1}))
    file = export_model(sweep, tmp_path / "out", format="state_dict")
    with pytest.raises(UserError, match="has an earlier export; give another --out, or replace it with --force"):
        export_model(sweep, tmp_path / "out", format="safetensors")
    replaced = export_model(sweep, tmp_path / "out", format="safetensors", force=True)
    assert replaced.is_file()
    assert not file.exists()
    (tmp_path / "out" / "own.txt").write_text("keep")
    with pytest.raises(UserError, match=r"has an earlier export and other files, own\.txt"):
        export_model(sweep, tmp_path / "out", format="safetensors", force=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(UserError, match="is not an earlier export"):
        export_model(sweep, tmp_path / "mine", format="pt2", force=True)
    with pytest.raises(UserError, match=r"safetensors, pt2, onnx, got 'onn'; did you mean 'onnx'\?"):
        export_model(sweep, tmp_path / "new", format="onn")


def test_other_trials_and_their_heads(small_sweep: MakeSweep, tmp_path: Path) -> None:
    sweep, _ = run(small_sweep())
    baseline = trial_named(sweep, "baseline-vanilla")
    file = export_model(sweep, tmp_path / "out", format="safetensors", trial=baseline)
    assert torch.equal(load_file(file)["weight"], torch.from_numpy(np.load(sweep.spec.dataset.path)["weight"]))
    assert "> **Note:** This is not the winner of the sweep." in card_of(file)
    loser = next(one for one in sweep.searched if sweep.ledger.is_head_lost(sweep.best_seed(one).key))
    with pytest.raises(UserError, match=r"could not win any more, so its head was removed; heads are stored of base"):
        export_model(sweep, tmp_path / "other", format="pt2", trial=loser)
    with pytest.raises(UserError, match=r"got 'baseline-vanila'; did you mean 'baseline-vanilla'\? trials: base"):
        trial_named(sweep, "baseline-vanila")


def test_a_damaged_head_is_named(small_sweep: MakeSweep, tmp_path: Path) -> None:
    sweep, _ = run(small_sweep(search={"trials": 1}))
    for file in (sweep.path / "heads").iterdir():
        file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(LongtailError, match=r"heads/.*safetensors is missing or altered; `lt-sweep resume"):
        export_model(sweep, tmp_path / "out", format="state_dict")
    assert not (tmp_path / "out").exists()


def test_the_leader_of_an_unfinished_sweep(small_sweep: MakeSweep, tmp_path: Path) -> None:
    def stop(event: sweeps.Event) -> None:
        if isinstance(event, sweeps.TrialFinished) and event.runs.trial.name == "search-0003":
            raise KeyboardInterrupt

    spec = small_sweep()
    with pytest.raises(KeyboardInterrupt):
        sweeps.run(spec, callbacks=[stop])
    sweep = read_sweep(Path(spec.storage) / spec.name)
    text = card_of(export_model(sweep, tmp_path / "out", format="state_dict"))
    assert re.search(r"> \*\*Note:\*\* The sweep is unfinished\. \d of 7 trials are finished", text)


def test_the_backbone_must_be_that_of_the_sweep(imported: MakeSweep, tmp_path: Path) -> None:
    sweep, _ = run(imported(training={"epochs": 10, "batch_size": 8}))
    torch.save(Tiny().state_dict(), tmp_path / "plain.pth")
    with pytest.raises(CheckpointError, match=r"plain\.pth has changed since the sweep extracted features with it"):
        export_model(sweep, tmp_path / "out", format="onnx")


def test_a_model_that_torch_cannot_export_is_refused(
    imported: MakeSweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, _ = run(imported(training={"epochs": 10, "batch_size": 8}))
    original = nn.Flatten.forward
    monkeypatch.setattr(nn.Flatten, "forward", lambda self, x: original(self, x) * (1 if x.sum() > 1 else 2))
    with pytest.raises(LongtailError, match="torch cannot export this model as a graph"):
        export_model(sweep, tmp_path / "out", format="pt2")
