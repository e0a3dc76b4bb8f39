"""Whether the accuracies of two sweeps are comparable, what limits the comparison, and how their sweep files differ."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lt_train.metrics import ACCURACIES, split_of
from sweeps.analysis.labels import role, unfinished
from sweeps.analysis.load import Sweep
from sweeps.config.methods import Candidate
from sweeps.config.spec import SHARED, SweepSpec
from sweeps.config.trials import baseline_trials

__all__ = ["Comparability", "comparability", "differing_fields", "differing_rows"]


@dataclass(frozen=True)
class Comparability:
    """What can be compared between two sweeps.

    Attributes:
        comparable: whether both have the same classes.
        same_test: whether both were tested on the same images, so that equal seeds can be paired.
        scores: names of the accuracies over the same classes in both, and of the metrics that both have.
        metric: the one that the verdict is based on.
        cautions: limits of the comparison, in sentences.
    """

    comparable: bool
    same_test: bool
    scores: frozenset[str]
    metric: str
    cautions: tuple[str, ...]


def comparability(ours: tuple[str, Sweep], reference: tuple[str, Sweep]) -> Comparability:
    """Comparability of two sweeps, each given with its label."""
    (_, a), (_, b) = ours, reference
    same_test = _same_test(a, b)
    reason = _incomparable(a, b, same_test=bool(same_test))
    same_splits = _same_splits(a, b)
    accuracies = ACCURACIES if same_splits else ACCURACIES[:1]
    names = [one.name for one in accuracies] + [one.kind for one in a.spec.metrics if one in b.spec.metrics]
    metric = b.score.name if a.score.name == b.score.name and b.score.name in names else names[0]
    scores = frozenset(names)
    if reason:
        return Comparability(False, False, scores, metric, (reason, *_incomplete(ours, reference)))
    cautions = (
        *_incomplete(ours, reference),
        *_selection(ours, reference, metric),
        *_data(a, b, same_test, same_splits=same_splits),
    )
    return Comparability(True, bool(same_test), scores, metric, cautions)


def _same_test(a: Sweep, b: Sweep) -> bool | None:
    """Whether test images and labels are the same; None if unknown."""
    if a.bank and a.bank == b.bank:
        return True
    if a.manifest is None or b.manifest is None:
        return None
    mine, theirs = (one.inputs["digests"]["test"] for one in (a.manifest, b.manifest))
    return None if mine is None or theirs is None else mine == theirs


def _same_splits(a: Sweep, b: Sweep) -> bool:
    """Whether many, medium and few are known to be the same classes in both."""
    if a.manifest is None or b.manifest is None:
        return a.bank == b.bank
    return list(map(split_of, a.manifest.split_counts)) == list(map(split_of, b.manifest.split_counts))


def _incomparable(a: Sweep, b: Sweep, *, same_test: bool) -> str:
    """Why accuracies are not comparable; empty if they are."""
    kinds = [one.spec.dataset.kind for one in (a, b)]
    if not same_test and kinds[0] != kinds[1]:
        return f"Different data ({kinds[0]}, not {kinds[1]}): accuracies are not comparable; no differences."
    classes = [one.num_classes for one in (a, b)]
    if None not in classes and classes[0] != classes[1]:
        return f"Different classes ({classes[0]}, not {classes[1]}): accuracies are not comparable; no differences."
    return ""


def _incomplete(*sides: tuple[str, Sweep]) -> Iterator[str]:
    for label, sweep in sides:
        if sweep.state == "unfinished":
            yield f"{label} is unfinished: {unfinished(sweep)}"
        if sweep.winner is None:
            reason = "every trial failed or was stopped" if sweep.searched else "no trial has finished"
            yield f"{label} has no {role(sweep)}: {reason}."


def _selection(ours: tuple[str, Sweep], reference: tuple[str, Sweep], metric: str) -> Iterator[str]:
    (label, a), (reference_label, b) = ours, reference
    mine, theirs = (one.spec.selection.model_dump(exclude={"extended_training"}) for one in (a, b))
    if differ := [f"{name} {mine[name]}, not {theirs[name]}" for name in mine if mine[name] != theirs[name]]:
        yield (
            f"{label} was selected by another protocol than {reference_label}, which may explain the difference: "
            f"{'; '.join(differ)}."
        )
    yield from _optimistic(ours, reference)
    if not a.score.name == b.score.name == metric:
        yield f"The verdict is based on {metric}, which both have."


def _optimistic(ours: tuple[str, Sweep], reference: tuple[str, Sweep]) -> Iterator[str]:
    """Which winners were selected on their own test images or seeds, and among how many trials."""
    sides = [(label, _selected_on(sweep), len(sweep.searched)) for label, sweep in (ours, reference)]
    (_, how, tried), (_, other, tried_there) = sides
    if how and how == other:
        each = "each" if tried == tried_there else f"and {tried_there}"
        yield f"Both were selected {how}, best of {tried} trials {each}: both accuracies are optimistic."
        return
    for label, one, trials in sides:
        if one:
            yield f"{label} was selected {one}, best of {trials} trials: its accuracy is optimistic."


def _selected_on(sweep: Sweep) -> str:
    """What the winner's own numbers were selected on: test images, seeds or both; empty for a single trial."""
    winner = sweep.winner
    if winner is None or len(sweep.searched) < 2:
        return ""
    on_seeds = winner.trial.phase == "search" and winner.trial.method.trains
    on_test = sweep.spec.selection.on == "test"
    return " and ".join(["on the test set"] * on_test + ["on the seeds compared here"] * on_seeds)


def _data(a: Sweep, b: Sweep, same_test: bool | None, *, same_splits: bool) -> Iterator[str]:
    if same_test is None:
        yield (
            "A feature bank is no longer in the storage, so it is unknown whether both were tested on the same images. "
            "Seeds are not paired. If the images differ, the intervals do not cover that difference."
        )
    elif not same_test:
        yield (
            "Different test images, or features of them from a different backbone: seeds are not paired. If the images "
            "differ, the intervals do not cover that difference."
        )
    elif a.bank != b.bank:
        yield (
            "Different features of the same test images: intervals are over seeds of the re-training and do not cover "
            "training another backbone or drawing another training set."
        )
    if not same_splits:
        yield "Many, medium and few are not known to be the same classes in both, so they are not compared."
    elif a.manifest and b.manifest and a.manifest.class_counts != b.manifest.class_counts:
        yield "The numbers of training images per class differ."


def differing_fields(specs: Sequence[SweepSpec], banks: Sequence[str]) -> dict[str, list[Any]]:
    """Fields of sweep files that differ, by dotted path: the value in each sweep, None if absent.

    Fields that do not affect results are left out: names, storage, tracking and resources and, if the features are the
    same, the paths of the files they were made from.

    Args:
        specs: of the sweeps.
        banks: fingerprints of their features, shown as the field `bank`.
    """
    several = any(spec.methods is not None for spec in specs)
    files = len(set(banks)) > 1
    documents = [_document(spec, several=several, files=files) for spec in specs]
    for part in ("methods", "baselines"):
        shared = set.intersection(*(set(one.get(part, {})) for one in documents))
        for document in documents:  # an entry that not all have is only named
            for name in document.get(part, {}).keys() - shared:
                document[part][name] = "included"
    return differing_rows([{"bank": bank} | own for bank, own in zip(banks, documents, strict=True)])


def differing_rows(documents: Sequence[Mapping[str, Any]], always: Collection[str] = ()) -> dict[str, list[Any]]:
    """Leaves that differ between documents, and those in `always`, by dotted path: the value in each document."""
    found = [dict(_flat(document)) for document in documents]
    rows = {path: [one.get(path) for one in found] for path in dict.fromkeys(path for one in found for path in one)}
    return {path: row for path, row in rows.items() if path in always or any(value != row[0] for value in row)}


def _document(spec: SweepSpec, *, several: bool, files: bool) -> dict[str, Any]:
    document = spec.resolved()
    for part in SHARED:
        del document[part]
    if not files:
        for field in spec.files():
            section, _, name = field.partition(".")
            del document[section][name]
    document["baselines"] = {
        one.name.removeprefix("baseline-"): one.method.model_dump(mode="json") for one in baseline_trials(spec)
    }
    if several:  # a single method is compared as a list of one
        document.pop("method", None)
        del document["search"]["space"]
        document["methods"] = {one.name: _entry(one, spec) for one in spec.candidates()}
    return document


def _entry(one: Candidate, spec: SweepSpec) -> dict[str, Any]:
    own = one.training.model_dump(mode="json") if one.method.trains and one.training != spec.training else {}
    space = {path: dimension.model_dump(mode="json") for path, dimension in one.space.items()}
    return {"method": one.method.model_dump(mode="json"), "training": own, "space": space}


def _flat(document: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves by dotted path. A list is a leaf; null is absent."""
    for name, value in document.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", value
