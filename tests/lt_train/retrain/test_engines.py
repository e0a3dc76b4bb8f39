"""Both engines train the same: every kind of method, every rule, every shape a bank may have.

The reference is the oracle; `fused` must agree with it, and neither may depend on what it has no business with: the
neighbours of a run, its place, the global generator, the bank's memory.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from lt_train.features.bank import EvalSet, FeatureBank
from lt_train.methods.base import MethodSpec, TrainedMethod, TrainingSpec, method_kinds, parse_method
from lt_train.metrics import split_masks
from lt_train.retrain import fused, reference
from lt_train.retrain.base import Engine, EpochRule, Run, RunResult, learning_rate_factor

ENGINES: dict[str, Engine] = {"reference": reference.fit, "fused": fused.fit}
TRAINED = [kind for kind, spec in method_kinds().items() if spec.trains]
COUNTS = (120, 60, 30, 15, 8, 1)
RULES = [
    EpochRule("last"),
    EpochRule("best", "val"),
    EpochRule("best", "test"),
    EpochRule("best", "val", "acc_few"),
    EpochRule("best", "test", "acc_many"),
]

every_engine = pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES.keys())
every_kind = pytest.mark.parametrize("kind", list(method_kinds()))
every_trained_kind = pytest.mark.parametrize("kind", TRAINED)


def make_bank(
    counts: Sequence[int] = COUNTS,
    *,
    dim: int = 8,
    views: int = 3,
    test_views: int = 2,
    val_per_class: int = 12,
    test_images: int = 1000,
    head: bool = True,
    seed: int = 0,
) -> FeatureBank:
    """Gaussian classes that overlap, with a poor stage-1 head that leans towards the large ones."""
    stream = torch.Generator().manual_seed(seed)
    classes = len(counts)
    means = torch.randn(classes, dim, generator=stream)

    def images(labels: Tensor, views: int) -> Tensor:
        kernel = means[labels] + 0.9 * torch.randn(len(labels), dim, generator=stream)
        return kernel + 0.2 * torch.randn(views, len(labels), dim, generator=stream)

    numbers = torch.tensor(counts)
    train, test = torch.arange(classes).repeat_interleave(numbers), torch.arange(test_images) % classes
    val = torch.arange(classes).repeat_interleave(val_per_class)
    return FeatureBank(
        fingerprint="test",
        train_features=images(train, views),
        train_labels=train,
        val=EvalSet(images(val, 1), val) if val_per_class else None,
        test=EvalSet(images(test, test_views), test),
        head=(0.1 * means + 0.3 * torch.randn(classes, dim, generator=stream), 0.3 * numbers.log()) if head else None,
        class_counts=numbers,
        split_counts=numbers,
    )


def variants(kind: str, number: int, **given: str) -> list[MethodSpec]:
    """`number` settings of one kind that differ in every hyperparameter a lane may have, its own ones included."""
    spec = method_kinds()[kind]
    methods = []
    for i in range(number):
        document: dict[str, object] = {"kind": kind}
        if spec.trains:
            document |= given
        known = {"lr": 0.004 * 1.5**i, "momentum": (0.9, 0.5, 0.0, 0.8)[i % 4], "weight_decay": (0.0, 1e-2, 0.1)[i % 3]}
        for name in spec.lane_fields():
            document[name] = known.get(name, spec.model_fields[name].default * (1 - 0.07 * i))
        methods.append(parse_method(document))
    return methods


def make_runs(kind: str, *, epochs: int = 5, batch_size: int = 64, **given: str) -> list[Run]:
    """Eight runs of four seeds with 3, 2, 2 and 1 lanes, out of order: stacks of one seed and of two."""
    seeds = (0, 7, 0, 123456789, 7, 0, 5, 5)
    training = TrainingSpec(epochs=epochs, batch_size=batch_size)
    return [
        Run(method, training, seed) for method, seed in zip(variants(kind, len(seeds), **given), seeds, strict=True)
    ]


def relative(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def assert_same(bank: FeatureBank, found: RunResult, expected: RunResult, rule: EpochRule, tolerance: float) -> None:
    """Equal up to rounding: `tolerance` relative in the weights, one test image in a thousand in the accuracies."""
    assert found.failure == expected.failure
    images = (
        split_masks(bank.split_counts).float() @ torch.bincount(bank.test.labels, minlength=bank.num_classes).float()
    )
    one_image = (1.0 / images.clamp(min=1)).numpy() * 1.01
    assert found.test_accuracy.shape == expected.test_accuracy.shape
    np.testing.assert_array_equal(np.isnan(found.test_accuracy), np.isnan(expected.test_accuracy))
    assert (np.nan_to_num(np.abs(found.test_accuracy - expected.test_accuracy)) <= one_image).all()
    np.testing.assert_allclose(found.train_loss, expected.train_loss, rtol=1e-4)
    assert (found.val_accuracy is None) == (expected.val_accuracy is None) == (bank.val is None)
    curves = [(found.test_accuracy, expected.test_accuracy)]
    if found.val_accuracy is not None and expected.val_accuracy is not None and bank.val is not None:
        one_of_val = 1.01 / np.bincount(bank.val.labels.numpy()).min()
        np.testing.assert_allclose(found.val_accuracy, expected.val_accuracy, atol=one_of_val, rtol=0)
        curves.append((found.val_accuracy, expected.val_accuracy))
    assert (found.kept is None) == (expected.kept is None) == (expected.failure is not None)
    if found.kept is None or expected.kept is None:
        return
    # One image more or less may move the best epoch; where the curves agree, the epoch does.
    if all(np.array_equal(one, other, equal_nan=True) for one, other in curves):
        assert found.kept.epoch == expected.kept.epoch
    else:
        assert rule.epoch == "best" or found.kept.epoch == expected.kept.epoch
        if found.kept.epoch != expected.kept.epoch:
            return
    assert relative(found.kept.weight, expected.kept.weight) <= tolerance
    assert relative(found.kept.bias, expected.kept.bias) <= tolerance
    np.testing.assert_allclose(found.kept.loma, expected.kept.loma, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found.kept.regularised_std, expected.kept.regularised_std, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found.kept.class_accuracy, expected.kept.class_accuracy, atol=0.01)


def agree(bank: FeatureBank, runs: Sequence[Run], rule: EpochRule) -> list[RunResult]:
    expected = reference.fit(bank, runs, rule=rule)
    for found, wanted in zip(fused.fit(bank, runs, rule=rule), expected, strict=True):
        assert_same(bank, found, wanted, rule, 1e-4)
    return expected


def everything(result: RunResult) -> list[object]:
    """All of a result as comparable bytes."""
    kept = [] if result.kept is None else [getattr(result.kept, field.name) for field in fields(result.kept)]
    parts = [result.val_accuracy, result.test_accuracy, result.train_loss, *kept]
    return [result.failure, *(part.tobytes() if isinstance(part, np.ndarray) else part for part in parts)]


# Fused is the reference


@every_kind
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_fused_is_the_reference_under_every_rule(kind: str, rule: EpochRule) -> None:
    expected = agree(make_bank(), make_runs(kind), rule)
    kept = [result.kept.epoch for result in expected if result.kept]
    if rule.epoch == "last" and method_kinds()[kind].trains:
        assert kept == [4] * 8


def test_the_rules_choose_different_epochs() -> None:
    """Guards the test above: with these runs the rules are not all the same."""
    chosen = set()
    for rule in RULES:
        results = fused.fit(make_bank(), make_runs("los"), rule=rule)
        chosen.add(tuple(result.kept.epoch for result in results if result.kept))
    assert len(chosen) >= 4


@every_engine
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_kept_epoch_is_the_later_of_the_best(engine: Engine, rule: EpochRule) -> None:
    column = ("acc_all", "acc_many", "acc_medium", "acc_few").index(rule.metric)
    for result in engine(make_bank(test_images=60), make_runs("ce", epochs=8), rule=rule):
        assert result.kept is not None
        assert result.val_accuracy is not None
        curve = (result.val_accuracy if rule.on == "val" else result.test_accuracy)[:, column]
        best = 7 if rule.epoch == "last" else max(range(8), key=lambda epoch: (curve[epoch], epoch))
        assert result.kept.epoch == best


SHAPES: dict[str, Callable[[], FeatureBank]] = {
    "one view": lambda: make_bank(views=1),
    "a view an epoch": lambda: make_bank(views=5),
    "one test view": lambda: make_bank(test_views=1),
    "no val": lambda: make_bank(val_per_class=0),
    "two classes": lambda: make_bank((110, 3), dim=5),
    "one feature": lambda: make_bank(dim=1),
    "no few class": lambda: make_bank((120, 30)),
    "no test image of a class": lambda: make_bank(test_images=5),
}


@every_kind
@pytest.mark.parametrize("shape", SHAPES)
def test_fused_is_the_reference_on_every_shape_of_bank(kind: str, shape: str) -> None:
    agree(SHAPES[shape](), make_runs(kind), EpochRule("best", "test"))


@every_kind
@pytest.mark.parametrize("batch_size", [5, 13, 117, 234, 1000])
def test_fused_is_the_reference_for_every_batch_size(kind: str, batch_size: int) -> None:
    """N = 234: short last batches, two halves, exactly all, more than there are."""
    agree(make_bank(), make_runs(kind, epochs=2, batch_size=batch_size), EpochRule())


@every_trained_kind
@pytest.mark.parametrize("head", [True, False])
def test_fused_is_the_reference_from_a_fresh_start(kind: str, head: bool) -> None:
    bank = make_bank(head=head)
    results = agree(bank, make_runs(kind, init="fresh"), EpochRule())
    warm = fused.fit(make_bank(), make_runs(kind))
    for fresh, other in zip(results, warm, strict=True):
        assert fresh.kept is not None
        assert other.kept is not None
        assert relative(fresh.kept.weight, other.kept.weight) > 1e-2


def test_kinds_trainings_and_starts_may_be_mixed() -> None:
    runs = [run for kind in method_kinds() for run in make_runs(kind)]
    for kind in TRAINED:
        runs += make_runs(kind, init="fresh") + make_runs(kind, epochs=2) + make_runs(kind, batch_size=100)
    order = np.random.default_rng(0).permutation(len(runs))
    agree(make_bank(), [runs[place] for place in order], EpochRule("best"))


@every_trained_kind
def test_every_lane_hyperparameter_reaches_the_loop(kind: str) -> None:
    """Changing one field of one lane changes that lane, and only that."""
    bank, spec = make_bank(), method_kinds()[kind]
    base = parse_method({"kind": kind, "lr": 0.05, "weight_decay": 0.01})
    for name in spec.lane_fields():
        changed = base.model_copy(update={name: getattr(base, name) * 0.5})
        runs = [Run(method, TrainingSpec(epochs=2), 0) for method in (base, changed, base)]
        first, second, third = (result.kept for result in agree(bank, runs, EpochRule()))
        assert first is not None
        assert second is not None
        assert third is not None
        assert relative(second.weight, first.weight) > 1e-4, name
        assert relative(third.weight, first.weight) < 1e-6, name


@every_engine
def test_epochs_read_the_views_in_turn(engine: Engine) -> None:
    bank, run = make_bank(views=3), make_runs("ce", epochs=4)[0]
    turned = replace(bank, train_features=bank.train_features[torch.tensor([0, 1, 2, 0])])
    assert everything(engine(bank, [run])[0]) == everything(engine(turned, [run])[0])
    wrong = replace(bank, train_features=bank.train_features[torch.tensor([0, 1, 2, 1])])
    assert everything(engine(bank, [run])[0]) != everything(engine(wrong, [run])[0])


@every_engine
def test_the_optimum_of_los_has_the_margin_of_the_formula(engine: Engine) -> None:
    """METHODS: on separable features every row's margin is log(1 + K(1-d)/d)."""
    classes, smooth_factor = 10, 0.9
    features, labels = torch.eye(classes)[None], torch.arange(classes)
    counts = torch.full((classes,), 50)
    bank = FeatureBank(
        fingerprint="eye",
        train_features=features,
        train_labels=labels,
        val=None,
        test=EvalSet(features, labels),
        head=None,
        class_counts=counts,
        split_counts=counts,
    )
    document = {"kind": "los", "smooth_factor": smooth_factor, "lr": 20.0, "init": "fresh"}
    run = Run(parse_method(document), TrainingSpec(epochs=300, batch_size=classes), 0)
    kept = engine(bank, [run])[0].kept
    assert kept is not None
    logits = kept.weight.T + kept.bias
    gaps = (np.diag(logits)[:, None] - logits)[~np.eye(classes, dtype=bool)]
    np.testing.assert_allclose(gaps, np.log(1 + classes * (1 - smooth_factor) / smooth_factor), atol=1e-3)


# What a run does not depend on


@every_engine
@every_kind
def test_permuting_runs_permutes_results(kind: str, engine: Engine) -> None:
    bank, runs, rule = make_bank(), make_runs(kind), EpochRule("best")
    straight = engine(bank, runs, rule=rule)
    for order in ([7, 6, 5, 4, 3, 2, 1, 0], [3, 0, 6, 5, 1, 4, 7, 2]):
        permuted = engine(bank, [runs[place] for place in order], rule=rule)
        for place, result in zip(order, permuted, strict=True):
            assert_same(bank, result, straight[place], rule, 1e-5)


@every_kind
def test_a_lane_alone_is_the_lane_in_a_pack(kind: str) -> None:
    """To 1e-5 relative in the weights: a matrix product of another width rounds otherwise."""
    bank, runs, rule = make_bank(), make_runs(kind), EpochRule()
    for run, together in zip(runs, fused.fit(bank, runs, rule=rule), strict=True):
        assert_same(bank, fused.fit(bank, [run], rule=rule)[0], together, rule, 1e-5)


@every_engine
@every_trained_kind
@pytest.mark.parametrize("place", [0, 2, 3])
def test_a_lane_that_diverges_fails_alone(kind: str, place: int, engine: Engine) -> None:
    bank, runs, rule = make_bank(), make_runs(kind), EpochRule("best")
    mad = replace(runs[place], method=runs[place].method.model_copy(update={"lr": 1e38}))
    results = engine(bank, [*runs[:place], mad, *runs[place + 1 :]], rule=rule)
    failed = results.pop(place)
    assert failed.failure is not None
    assert failed.failure.startswith("diverged: loss or weights are not finite in epoch 1; lower lr")
    assert failed.kept is None
    assert len(failed.test_accuracy) == len(failed.train_loss) == 0
    assert failed.val_accuracy is not None
    assert failed.val_accuracy.shape == (0, 4)
    without = engine(bank, [*runs[:place], *runs[place + 1 :]], rule=rule)
    for result, expected in zip(results, without, strict=True):
        assert result.failure is None
        assert_same(bank, result, expected, rule, 1e-5)


@every_engine
def test_weights_that_overflow_in_the_last_step_are_a_failure(engine: Engine) -> None:
    """One step an epoch: the loss of the only epoch is still that of the sound start."""
    document = {"kind": "ce", "lr": 1e38, "weight_decay": 1e3}
    training = TrainingSpec(epochs=1, batch_size=500)
    runs = [Run(parse_method(document), training, 0), Run(parse_method({"kind": "ce"}), training, 0)]
    mad, sound = engine(make_bank(), runs)
    assert mad.failure == "diverged: loss or weights are not finite in epoch 1; lower lr"
    assert sound.failure is None


def test_a_lane_that_diverges_late_keeps_its_curves_until_then() -> None:
    """Unstable weight decay grows by a factor a step, so that overflow takes some epochs."""
    bank = make_bank()
    document = {"kind": "ce", "lr": 1.0, "momentum": 0.0, "weight_decay": 300.0}
    runs = [Run(parse_method(document), TrainingSpec(epochs=12), 3), replace(make_runs("ce", epochs=12)[0], seed=3)]
    late, sound = agree(bank, runs, EpochRule("best"))
    assert sound.failure is None
    assert late.failure is not None
    assert 1 < len(late.test_accuracy) < 12
    assert f"in epoch {len(late.test_accuracy) + 1};" in late.failure


@every_engine
@every_kind
def test_the_global_generator_is_neither_read_nor_moved(kind: str, engine: Engine) -> None:
    bank = make_bank(head=True)
    runs = [*make_runs(kind, epochs=2), *make_runs(kind, epochs=2, init="fresh")]
    outcomes = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        before = torch.get_rng_state()
        outcomes.append([everything(result) for result in engine(bank, runs)])
        assert torch.equal(torch.get_rng_state(), before)
    assert outcomes[0] == outcomes[1]


@every_engine
@every_trained_kind
def test_seeds_matter_and_equal_seeds_agree(kind: str, engine: Engine) -> None:
    method = variants(kind, 1)[0]
    one, again, other = engine(make_bank(), [Run(method, TrainingSpec(epochs=2), seed) for seed in (1, 1, 2)])
    assert one.kept is not None
    assert again.kept is not None
    assert other.kept is not None
    np.testing.assert_allclose(one.kept.weight, again.kept.weight, rtol=1e-5, atol=1e-7)
    assert relative(other.kept.weight, one.kept.weight) > 1e-5


@every_engine
@every_kind
def test_the_bank_is_never_written_to(kind: str, engine: Engine) -> None:
    arrays = make_bank().to_arrays()
    for array in arrays.values():
        if isinstance(array, np.ndarray):
            array.setflags(write=False)
    before = {name: array.tobytes() for name, array in arrays.items() if isinstance(array, np.ndarray)}
    results = engine(FeatureBank.from_arrays(arrays), make_runs(kind), rule=EpochRule("best"))
    assert {name: arrays[name].tobytes() for name in before} == before
    for result in results:
        assert result.kept is not None
        for name in before:
            assert not np.shares_memory(result.kept.weight, arrays[name])
            assert not np.shares_memory(result.kept.bias, arrays[name])


@every_engine
def test_results_do_not_share_memory_with_each_other(engine: Engine) -> None:
    first, second, *_ = engine(make_bank(), make_runs("ce"))
    assert first.kept is not None
    assert second.kept is not None
    assert not np.shares_memory(first.kept.weight, second.kept.weight)


@pytest.mark.parametrize("lanes", [0, 1, 2, 4])
def test_stacks_cut_by_memory_give_the_same(lanes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    bank, rule = make_bank(), EpochRule("best")
    runs = [replace(run, seed=seed) for run in make_runs("los") for seed in (0, 7, 9)][:-1]
    expected = fused.fit(bank, runs, rule=rule)
    widths = []
    stack = fused._Stack
    monkeypatch.setattr(fused, "STACK_BYTES", {"cpu": 4 * 6 * 8 * lanes + 1})
    monkeypatch.setattr(
        fused, "_Stack", lambda data, st, rule: widths.append(sum(map(len, st))) or stack(data, st, rule)
    )
    for found, wanted in zip(fused.fit(bank, runs, rule=rule), expected, strict=True):
        assert_same(bank, found, wanted, rule, 1e-5)
    assert sum(widths) == len(runs) == 23
    assert max(widths) == max(1, lanes)


@pytest.mark.parametrize("logit_bytes", [1, 5000])
def test_evaluating_in_parts_gives_the_same(logit_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    bank, runs, rule = make_bank(test_images=100), make_runs("los"), EpochRule("best")
    expected = fused.fit(bank, runs, rule=rule)
    monkeypatch.setattr(fused, "LOGIT_BYTES", logit_bytes)
    for found, wanted in zip(fused.fit(bank, runs, rule=rule), expected, strict=True):
        assert_same(bank, found, wanted, rule, 1e-5)


# What a result says


@every_engine
@every_kind
def test_accuracies_are_those_of_the_kept_head(kind: str, engine: Engine) -> None:
    bank = make_bank(val_per_class=5, test_images=200)
    for result in engine(bank, make_runs(kind), rule=EpochRule("best", "test")):
        assert result.kept is not None
        weight, bias = torch.from_numpy(result.kept.weight), torch.from_numpy(result.kept.bias)
        logits = (bank.test.features @ weight.T + bias).mean(dim=0)
        right = (logits.argmax(dim=1) == bank.test.labels).numpy()
        labels = bank.test.labels.numpy()
        by_class = [right[labels == k].mean() for k in range(6)]
        np.testing.assert_allclose(result.kept.class_accuracy, by_class, atol=0.031)
        masks = split_masks(bank.split_counts).numpy()
        top1 = [right[mask[labels]].mean() for mask in masks]
        np.testing.assert_allclose(result.test_accuracy[result.kept.epoch], top1, atol=0.031)
        own = [logits[labels == k, k].mean() - logits[labels != k, k].mean() for k in range(6)]
        np.testing.assert_allclose(result.kept.loma, own, rtol=1e-4, atol=1e-5)


@every_engine
def test_val_weighs_classes_and_test_weighs_images(engine: Engine) -> None:
    """The same unbalanced images as val and as test: macro on the one, micro on the other."""
    bank = make_bank(test_images=60, seed=2)
    chosen = torch.cat([(bank.test.labels == 0).nonzero()[:, 0], (bank.test.labels == 5).nonzero()[:2, 0]])
    images = EvalSet(bank.test.features[:, chosen], bank.test.labels[chosen])
    run = Run(parse_method({"kind": "vanilla"}), TrainingSpec(), 0)
    result = engine(replace(bank, val=images, test=images), [run])[0]
    assert result.kept is not None
    assert result.val_accuracy is not None
    large, small = result.kept.class_accuracy[[0, 5]]
    assert large != small
    np.testing.assert_allclose(result.val_accuracy[0, 0], (large + small) / 2, rtol=1e-6)
    np.testing.assert_allclose(result.test_accuracy[0, 0], (10 * large + 2 * small) / 12, rtol=1e-6)


@every_engine
def test_an_empty_split_is_nan(engine: Engine) -> None:
    result = engine(make_bank((120, 110, 50)), make_runs("ce"))[0]
    assert np.isnan(result.test_accuracy).tolist() == [[False, False, False, True]] * 5
    assert result.val_accuracy is not None
    assert np.isnan(result.val_accuracy).tolist() == [[False, False, False, True]] * 5


@every_engine
def test_a_class_without_test_images_is_nan(engine: Engine) -> None:
    bank = make_bank(test_images=5)  # none of class 5
    kept = engine(bank, make_runs("ce"))[0].kept
    assert kept is not None
    for values in (kept.class_accuracy, kept.loma, kept.regularised_std):
        assert bool(np.isnan(values[5]))
    assert not np.isnan(kept.class_accuracy[:5]).any()


@every_engine
def test_splits_follow_the_counts_before_the_hold_out(engine: Engine) -> None:
    bank = make_bank((120, 60, 8))
    held_out = replace(bank, split_counts=torch.tensor([120, 200, 30]))
    accuracy = engine(held_out, make_runs("ce"))[0].test_accuracy
    assert np.isnan(accuracy[0]).tolist() == [False, False, False, True]


@every_engine
def test_training_lowers_the_loss_of_every_lane(engine: Engine) -> None:
    for result in engine(make_bank(), make_runs("ce", init="fresh")):
        assert result.train_loss[-1] < result.train_loss[0]


@every_engine
def test_the_first_loss_is_the_mean_over_images(engine: Engine) -> None:
    """With a rate too small to move anything the reported loss is the start's, whatever the batches."""
    bank = make_bank(views=1)
    assert bank.head is not None
    weight, bias = bank.head
    logits = bank.train_features[0] @ weight.T + bias
    expected = torch.nn.functional.cross_entropy(logits, bank.train_labels).item()
    method = parse_method({"kind": "ce", "lr": 1e-30})
    for batch_size in (50, 500):
        result = engine(bank, [Run(method, TrainingSpec(epochs=1, batch_size=batch_size), 0)])[0]
        assert float(result.train_loss[0]) == pytest.approx(expected, rel=1e-5)


@every_engine
def test_no_runs_no_results(engine: Engine) -> None:
    assert engine(make_bank(), []) == []


@every_engine
def test_the_last_epoch_is_stepped_with_the_schedules_rate(engine: Engine) -> None:
    """One batch an epoch, no momentum: the sum of all steps is known."""
    bank = make_bank(views=1)
    method = parse_method({"kind": "ce", "lr": 1e-4, "momentum": 0.0})
    assert isinstance(method, TrainedMethod)
    kept = engine(bank, [Run(method, TrainingSpec(epochs=4, batch_size=500), 0)])[0].kept
    assert kept is not None
    assert bank.head is not None
    bias = bank.head[1].clone().requires_grad_()
    logits = bank.train_features[0] @ bank.head[0].T + bias
    (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, bank.train_labels), bias)
    rates = sum(method.lr * learning_rate_factor(epoch, 4) for epoch in range(4))
    moved = torch.from_numpy(kept.bias) - bank.head[1]
    torch.testing.assert_close(moved, -rates * gradient, rtol=0.02, atol=1e-6)
