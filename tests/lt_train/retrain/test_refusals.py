"""Both engines refuse runs that cannot be trained, with a reason, before training starts."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from support.banks import make_bank
from support.compositions import DEFAULTS, PARTS, TRAINED
from support.engines import ENGINES, Engine, every_engine, lone_run

from lt_train.core.errors import BankError, SpecError
from lt_train.features.bank import EvalSet, FeatureBank
from lt_train.methods.base import METHODS, MethodSpec, TrainingSpec
from lt_train.retrain import fused, reference
from lt_train.retrain.base import EpochSelection, Halving, Run

NAN = float("nan")
FRESH = lone_run({"kind": "ce", "init": "random"})
NO_HEAD = "and this bank has none; provide `weight` and `bias` with the features"


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test in which an engine starts to train."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("training has started")

    monkeypatch.setattr(fused._PackTraining, "__init__", refuse)
    monkeypatch.setattr(reference, "_fit_one", refuse)
    yield
    for engine in ENGINES.values():
        with pytest.raises(AssertionError, match="training has started"):
            engine(make_bank(), [FRESH])


def run_of(method: MethodSpec) -> Run:
    return Run(method, TrainingSpec(epochs=1), 0)


# Features and labels


def spoiled(name: str) -> FeatureBank:
    bank = make_bank()
    if name == "train":
        features = bank.train_features.clone()
        features[1, 7, 2], features[2, 0, 0] = NAN, float("inf")
        return replace(bank, train_features=features)
    images: EvalSet = getattr(bank, name)
    features = images.features.clone()
    features[0, 7, 2], features[0, 8, 1] = NAN, -float("inf")
    return replace(bank, **{name: EvalSet(features, images.labels)})


@every_engine
@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("name", ["train", "val", "test"])
def test_features_that_are_not_finite(engine: Engine, name: str) -> None:
    view = 1 if name == "train" else 0
    with pytest.raises(BankError, match=f"{name} features must be finite.* 2 .*image 7, feature 2, view {view}"):
        engine(spoiled(name), [FRESH])


@every_engine
@pytest.mark.usefixtures("untrained")
def test_labels_that_are_no_class(engine: Engine) -> None:
    bank = make_bank()
    labels = bank.train_labels.clone()
    labels[-1] = 6
    with pytest.raises(BankError, match=r"train labels must be in 0\.\.5, .*1 of 234 .* 6"):
        engine(replace(bank, train_labels=labels), [FRESH])


@every_engine
@pytest.mark.usefixtures("untrained")
def test_a_stage_1_head_that_is_not_finite(engine: Engine) -> None:
    bank = make_bank()
    assert bank.head is not None
    with pytest.raises(BankError, match=r"stage-1 bias must be finite.* 6 "):
        engine(replace(bank, head=(bank.head[0], torch.full((6,), NAN))), [lone_run({"kind": "vanilla"})])


# Class counts and priors

COUNTED = [kind for kind, method in DEFAULTS.items() if method.incompatibility(torch.tensor([5, 0]))]


def test_some_methods_need_counts_and_some_do_not() -> None:
    """Guards the two tests below."""
    assert {"balanced_softmax", "class_balanced", "ltwb", "disalign", "ldam", "logit_adjust"} <= set(COUNTED)
    assert {"ce", "los", "vanilla", "focal", "maxnorm", "tau_norm", "crt"}.isdisjoint(COUNTED)


def without_images_of(*classes: int) -> FeatureBank:
    """A bank whose given classes have no training images, but test images."""
    bank = make_bank()
    there = torch.tensor([int(label) not in classes for label in bank.train_labels])
    counts = bank.class_counts.clone()
    counts[list(classes)] = 0
    return replace(
        bank,
        train_features=bank.train_features[:, there],
        train_labels=bank.train_labels[there],
        class_counts=counts,
    )


@every_engine
@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("kind", COUNTED)
def test_classes_without_images_are_refused_where_counts_are_needed(engine: Engine, kind: str) -> None:
    with pytest.raises(BankError, match=f"method {kind}: every class must have training images.* 2 of 6 .*1, 5$"):
        engine(without_images_of(1, 5), [FRESH, run_of(DEFAULTS[kind])])


@every_engine
@pytest.mark.parametrize("kind", [kind for kind in DEFAULTS if kind not in COUNTED])
def test_other_methods_train_without_images_of_a_class(engine: Engine, kind: str) -> None:
    result = engine(without_images_of(1, 5), [run_of(DEFAULTS[kind])])[0]
    assert result.failure is None
    assert not torch.from_numpy(result.test_accuracy[:, 0]).isnan().any()


@every_engine
@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize(
    "document",
    [
        {"kind": "logit_adjust_loss", "prior": [0.5, 0.25, 0.25]},
        {"kind": "logit_adjust", "post_hoc": {"prior": [0.5, 0.25, 0.25], "kind": "logit_adjust"}},
        {"kind": "los", "post_hoc": {"prior": [0.5, 0.25, 0.25], "kind": "logit_adjust"}},
    ],
    ids=["loss", "untrained", "trained and adjusted"],
)
def test_a_prior_of_another_length(engine: Engine, document: dict[str, object]) -> None:
    with pytest.raises(BankError, match=f"method {document['kind']}: prior must have .* 6 .*got 3"):
        engine(make_bank(), [lone_run(document)])


@every_engine
def test_a_given_prior_needs_no_counts(engine: Engine) -> None:
    prior = [0.5, 0.1, 0.1, 0.1, 0.1, 0.1]
    document = {"kind": "logit_adjust", "post_hoc": {"prior": prior, "kind": "logit_adjust"}}
    assert engine(without_images_of(1), [lone_run(document)])[0].failure is None


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"kind": "class_balanced", "beta": 1.0}, r"class_balanced\.beta: must be in \[0, 1\), got 1"),
        ({"kind": "focal", "gamma": -0.5}, r"focal\.gamma: must be at least 0, got -0\.5"),
        ({"kind": "los", "smooth_factor": 1.0}, r"los\.smooth_factor: must be in \[0, 1\), got 1"),
        ({"kind": "los", "lr": 0.0}, r"los\.lr: must be above 0, got 0"),
        (
            {"kind": "cosine", "head": {"kind": "cosine", "scale": -1.0}},
            r"cosine\.head\.scale: must be above 0, got -1",
        ),
        (
            {"kind": "logit_adjust", "post_hoc": {"kind": "logit_adjust", "tau": -1.0}},
            r"tau: must be at least 0, got -1",
        ),
        (
            {"kind": "logit_adjust_loss", "prior": [0.5, 0.4]},
            r"prior: .*sum to 1 .*0\.9",
        ),
        ({"kind": "logit_adjust_loss", "prior": [1.0, 0.0]}, r"prior: .*> 0, got 0"),
        (
            {"kind": "ce", "head": "cosine", "post_hoc": "tau_norm"},
            "tau_norm .*head cosine .*linear",
        ),
        (
            {"kind": "balanced_softmax", "post_hoc": "logit_adjust"},
            "post_hoc logit_adjust .*class frequencies",
        ),
        (
            {"kind": "ce", "head": "lws", "init": "random"},
            "init must be checkpoint, got random",
        ),
        ({"kind": "los", "smooth_factor": float("nan")}, r"los\.smooth_factor: "),
    ],
    ids=str,
)
def test_an_invalid_method_is_refused_when_it_is_parsed(document: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        METHODS.parse(document)


# The stage-1 head


@every_engine
@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize(
    "kind", [kind for kind in DEFAULTS if getattr(DEFAULTS[kind], "init", "checkpoint") == "checkpoint"]
)
def test_a_warm_start_needs_a_head(engine: Engine, kind: str) -> None:
    remedy = "set init: random" if kind in TRAINED else "remove the method"
    with pytest.raises(BankError, match=f"method {kind} starts from the stage-1 head, {NO_HEAD}, or {remedy}"):
        engine(make_bank(head=False), [FRESH, run_of(DEFAULTS[kind])])


@every_engine
@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize(
    "document",
    [
        {"kind": "maxnorm", "init": "random"},
        {"kind": "ltwb", "init": "random"},
        {"kind": "crt", "constraint": "maxnorm"},
    ],
    ids=lambda document: document["kind"],
)
def test_a_constraint_needs_a_head(engine: Engine, document: dict[str, object]) -> None:
    with pytest.raises(BankError, match=f"constraint maxnorm takes its radius from the stage-1 head, {NO_HEAD}"):
        engine(make_bank(head=False), [FRESH, lone_run(document)])


def test_every_method_is_trained_where_there_is_a_stage_1_head() -> None:
    runs = [run_of(method) for method in {**TRAINED, **PARTS}.values()]
    assert {result.failure for result in fused.fit(make_bank(), runs)} == {None}


# Rules


@every_engine
@pytest.mark.parametrize(
    ("rule", "halving", "what"),
    [
        (EpochSelection("best", "val"), None, "epoch: best"),
        (EpochSelection("last", "val"), Halving((1,)), "successive halving"),
        (EpochSelection("best", "val"), Halving((1,)), "epoch: best"),
    ],
    ids=["best", "halving", "both"],
)
def test_selecting_on_val_needs_a_val_set(
    engine: Engine, rule: EpochSelection, halving: Halving | None, what: str
) -> None:
    bank = make_bank(val_per_class=0)
    with pytest.raises(BankError, match=f"^{what} on val needs a validation set.*; select on: test$"):
        engine(bank, [FRESH], rule=rule, halving=halving)
    assert engine(bank, [FRESH], rule=replace(rule, on="test"), halving=halving)[0].failure is None
    assert engine(bank, [FRESH], rule=EpochSelection("last", "val"))[0].failure is None


@every_engine
@pytest.mark.usefixtures("untrained")
def test_selecting_on_an_empty_val_set(engine: Engine) -> None:
    bank = replace(make_bank(), val=EvalSet(torch.empty(1, 0, 8), torch.empty(0, dtype=torch.int64)))
    with pytest.raises(BankError, match="acc_all cannot be selected on: the val set has no image of that split"):
        engine(bank, [FRESH], rule=EpochSelection("best", "val"))


@every_engine
@pytest.mark.parametrize("epoch", ["last", "best"])
def test_a_split_without_classes_cannot_be_selected_on(engine: Engine, epoch: str) -> None:
    bank, rule = make_bank((120, 30)), EpochSelection(epoch, "test", "acc_few")  # type: ignore[arg-type]
    with pytest.raises(BankError, match="acc_few cannot be selected on: this dataset has no class"):
        engine(bank, [FRESH], rule=rule)
    assert engine(bank, [FRESH], rule=replace(rule, metric="acc_medium"))[0].failure is None


@every_engine
@pytest.mark.parametrize("on", ["val", "test"])
def test_a_split_without_images_cannot_be_selected_on(engine: Engine, on: str) -> None:
    bank = make_bank()
    images: EvalSet = getattr(bank, on)
    there = images.labels != 0
    bank = replace(bank, **{on: EvalSet(images.features[:, there], images.labels[there])})
    with pytest.raises(BankError, match=f"acc_many cannot be selected on: the {on} set has no image of that split"):
        engine(bank, [FRESH], rule=EpochSelection("best", on, "acc_many"))  # type: ignore[arg-type]
    other = EpochSelection("best", "test" if on == "val" else "val", "acc_many")
    assert engine(bank, [FRESH], rule=other)[0].failure is None


@pytest.mark.parametrize(
    ("rungs", "factor", "message"),
    [
        ((2, 1), 2.0, r"rungs must be ascending integers >= 1, got \[2, 1\]"),
        ((1, 1), 2.0, r"rungs must be ascending integers >= 1, got \[1, 1\]"),
        ((0, 2), 2.0, r"rungs must be ascending integers >= 1, got \[0, 2\]"),
        ((1,), 1.0, r"factor must be > 1, got 1\.0"),
        ((1,), NAN, r"factor must be > 1, got nan"),
    ],
)
def test_an_invalid_halving(rungs: tuple[int, ...], factor: float, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Halving(rungs, factor)


@every_engine
def test_one_run_that_cannot_be_trained_refuses_them_all(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """No run is trained if one is refused."""
    begun: list[object] = []
    monkeypatch.setattr(fused._PackTraining, "__init__", lambda *_: begun.append("fused"))
    monkeypatch.setattr(reference, "_fit_one", lambda *_: begun.append("reference"))
    wrong = lone_run({"kind": "logit_adjust_loss", "prior": [0.5, 0.5]})
    with pytest.raises(BankError, match=r"prior must have .* 6 .*got 2"):
        engine(make_bank(), [FRESH, FRESH, wrong])
    assert begun == []
