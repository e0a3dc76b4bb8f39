"""What two sweeps have in common, so that their accuracies may be compared, and what speaks against it. Pure.

Knows sweeps as read; compares no accuracy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from lt_train.metrics.accuracy import SPLITS, split_masks
from sweeps.analysis.labels import role, unfinished
from sweeps.analysis.load import Sweep

__all__ = ["Ground", "common_ground"]


@dataclass(frozen=True)
class Ground:
    """What may be compared.

    Attributes:
        comparable: whether accuracies of both are of the same classes at all.
        same_test: whether they were tested on the same images, so that a seed may be paired with itself.
        columns: of SPLITS whose classes are the same in both.
        column: what is judged by.
        cautions: in sentences.
    """

    comparable: bool
    same_test: bool
    columns: frozenset[int]
    column: int
    cautions: tuple[str, ...]


def common_ground(ours: tuple[str, Sweep], reference: tuple[str, Sweep]) -> Ground:
    """Of two sweeps, each with the name it is called by."""
    (_, a), (_, b) = ours, reference
    same_test = _same_test(a, b)
    why_not = _incomparable(a, b, same_test=bool(same_test))
    same_splits = _same_splits(a, b)
    columns = frozenset(range(len(SPLITS)) if same_splits else [0])
    column = b.column if a.column == b.column and b.column in columns else 0
    if why_not:
        return Ground(False, False, columns, column, (why_not, *_of_each(ours, reference)))
    cautions = (
        *_of_each(ours, reference),
        *_selection(ours, reference, column),
        *_data(a, b, same_test, same_splits=same_splits),
    )
    return Ground(True, bool(same_test), columns, column, cautions)


def _same_test(a: Sweep, b: Sweep) -> bool | None:
    """Whether test images and labels are the same; None where it cannot be told."""
    if a.bank and a.bank == b.bank:
        return True
    if a.manifest is None or b.manifest is None:
        return None
    mine, theirs = (one.inputs.get("digests", {}).get("test") for one in (a.manifest, b.manifest))
    return None if mine is None or theirs is None else mine == theirs


def _same_splits(a: Sweep, b: Sweep) -> bool:
    """Whether many, medium and few are the same classes in both, as far as it is known."""
    if a.manifest is None or b.manifest is None:
        return a.bank == b.bank
    masks = [split_masks(torch.tensor(one.split_counts)) for one in (a.manifest, b.manifest)]
    return masks[0].shape == masks[1].shape and bool((masks[0] == masks[1]).all())


def _incomparable(a: Sweep, b: Sweep, *, same_test: bool) -> str:
    """Why no difference says anything; empty where one does."""
    kinds = [one.spec.dataset.kind for one in (a, b)]
    if not same_test and kinds[0] != kinds[1]:
        return f"Other data ({kinds[0]}, not {kinds[1]}): accuracies are not comparable, so no difference is shown."
    classes = [one.num_classes for one in (a, b)]
    if None not in classes and classes[0] != classes[1]:
        return (
            f"Other classes ({classes[0]}, not {classes[1]}): accuracies are not comparable, so no difference is shown."
        )
    return ""


def _of_each(*sides: tuple[str, Sweep]) -> Iterator[str]:
    for label, sweep in sides:
        if sweep.state == "unfinished":
            yield f"{label} is unfinished: {unfinished(sweep)}"
        if sweep.winner is None:
            failed = "every trial failed or was stopped" if sweep.searched else "nothing is finished"
            yield f"{label} has no {role(sweep)}: {failed}."


def _selection(ours: tuple[str, Sweep], reference: tuple[str, Sweep], column: int) -> Iterator[str]:
    (label, a), (reference_label, b) = ours, reference
    # Whether the winner is trained longer afterwards chooses nothing.
    mine, theirs = (one.spec.selection.model_dump(exclude={"extended_training"}) for one in (a, b))
    if differ := [f"{name} {mine[name]}, not {theirs[name]}" for name in mine if mine[name] != theirs[name]]:
        yield f"{label} selected otherwise than {reference_label}, which may be the difference: {'; '.join(differ)}."
    yield from _flattered(ours, reference)
    if a.column != b.column or b.column != column:
        yield f"Judged in acc_{SPLITS[column]}, which both have."


def _flattered(ours: tuple[str, Sweep], reference: tuple[str, Sweep]) -> Iterator[str]:
    """By what each winner was chosen of its own numbers, and as the best of how many trials."""
    sides = [(label, _chosen_by(sweep), len(sweep.searched)) for label, sweep in (ours, reference)]
    (_, how, tried), (_, other, tried_there) = sides
    if how and how == other:
        each = "each" if tried == tried_there else f"and {tried_there}"
        yield f"Both were chosen {how}, best of {tried} trials {each}, which flatters them."
        return
    for label, one, trials in sides:
        if one:
            yield f"{label} was chosen {one}, best of {trials} trials, which flatters it."


def _chosen_by(sweep: Sweep) -> str:
    """What of a winner's own numbers it was chosen by: images, seeds or both; empty where one setting was tried."""
    winner = sweep.winner
    if winner is None or len(sweep.searched) < 2:
        return ""
    on_seeds = winner.trial.phase == "search" and winner.trial.method.trains
    on_test = sweep.spec.selection.on == "test"
    return " and ".join(["on the test set"] * on_test + ["on the very seeds compared here"] * on_seeds)


def _data(a: Sweep, b: Sweep, same_test: bool | None, *, same_splits: bool) -> Iterator[str]:
    if same_test is None:
        yield (
            "Whether both were tested on the same images cannot be told, as a feature bank is gone from the storage: "
            "nothing is paired by seed, and if they are others, their luck is in no interval."
        )
    elif not same_test:
        yield (
            "Other test images, or the same as features of another backbone: nothing is paired by seed, and if the "
            "images are others, their luck is in no interval."
        )
    elif a.bank != b.bank:
        yield (
            "Other features of the same test images: intervals are over seeds of the re-training, and say nothing of "
            "how another backbone, or another training set, would have come out."
        )
    if not same_splits:
        yield "Many, medium and few are not the same classes in both, or not known to be, so they are not compared."
    elif a.manifest and b.manifest and a.manifest.class_counts != b.manifest.class_counts:
        yield "Classes have other numbers of training images."
