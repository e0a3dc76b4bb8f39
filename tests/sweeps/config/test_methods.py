"""Candidate methods: what each gets from the sections of a sweep file."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.sweep_files import load

from lt_train.core.errors import SpecError
from sweeps.config.methods import Candidate
from sweeps.config.spec import SweepSpec, load_resolved

HEAD = """\
version: 1
name: several
dataset: digits_lt
backbone: small_cnn
stage1: ce
training: {epochs: 7, batch_size: 32}
"""

SEVERAL = (
    HEAD
    + """\
methods:
  - vanilla
  - {method: los, space: {method.smooth_factor: {uniform: [0.2, 0.98]}}}
  - name: los-cosine
    method: {kind: los, head: cosine, post_hoc: {kind: logit_adjust, tau: 0.5}}
    training: {epochs: 10}
    space:
      method.lr: {loguniform: [1e-3, 1]}
      method.head.scale: {loguniform: [5, 60]}
  - {method: tau_norm, space: {method.post_hoc.tau: {uniform: [0, 2]}}}
search:
  trials: 4
  space:
    method.lr: {loguniform: [1e-4, 1e-1]}
    training.epochs: {int: [5, 15]}
"""
)


def by_name(spec: SweepSpec) -> dict[str, Candidate]:
    return {candidate.name: candidate for candidate in spec.candidates()}


def test_a_single_method_is_one_candidate_with_the_seed_of_the_search(tmp_path: Path) -> None:
    text = HEAD + "method: los\nsearch: {trials: 4, seed: 3, space: {method.lr: {uniform: [0.1, 1]}}}\n"
    (alone,) = load(tmp_path, text).candidates()
    assert (alone.name, alone.seed, alone.prefix, list(alone.space)) == ("los", 3, "", ["method.lr"])


def test_shared_ranges_apply_where_the_field_exists_and_own_ranges_are_added(tmp_path: Path) -> None:
    found = by_name(load(tmp_path, SEVERAL))
    assert {name: list(one.space) for name, one in found.items()} == {
        "vanilla": [],
        "los": ["method.lr", "training.epochs", "method.smooth_factor"],
        "los-cosine": ["method.lr", "training.epochs", "method.head.scale"],
        "tau_norm": ["method.post_hoc.tau"],
    }
    assert found["los"].space["method.lr"].bounds == [1e-4, 1e-1]
    assert found["los-cosine"].space["method.lr"].bounds == [1e-3, 1]
    assert [one.prefix for one in found.values()] == ["vanilla-", "los-", "los-cosine-", "tau_norm-"]


def test_an_entry_replaces_only_the_training_fields_that_it_gives(tmp_path: Path) -> None:
    spec = load(tmp_path, SEVERAL)
    found = by_name(spec)
    assert (found["los"].training.epochs, found["los"].training.batch_size) == (7, 32)
    assert (found["los-cosine"].training.epochs, found["los-cosine"].training.batch_size) == (10, 32)
    again = load_resolved(spec.resolved())
    assert again == spec
    assert again.candidates() == spec.candidates()
    assert again.fingerprint() == spec.fingerprint()


def test_values_reach_the_parts_of_a_method(tmp_path: Path) -> None:
    one = by_name(load(tmp_path, SEVERAL))["los-cosine"]
    method, training = one.with_values({"method.head.scale": 7.5, "method.lr": 0.3, "training.epochs": 6})
    assert method.lane_values() | {"head.scale": 7.5, "lr": 0.3, "post_hoc.tau": 0.5} == method.lane_values()
    assert (training.epochs, training.batch_size) == (6, 32)
    with pytest.raises(SpecError, match=r"trial .*head\.scale.* of los-cosine: Input should be greater than 0"):
        one.with_values({"method.head.scale": -1.0})


def test_the_seed_of_a_candidate_depends_on_its_name_and_the_seed_of_the_search_only(tmp_path: Path) -> None:
    seeds = {name: one.seed for name, one in by_name(load(tmp_path, SEVERAL)).items()}
    assert len(set(seeds.values())) == 4
    fewer = by_name(load(tmp_path, SEVERAL.replace("  - vanilla\n", "")))
    assert {name: one.seed for name, one in fewer.items()} == {n: s for n, s in seeds.items() if n != "vanilla"}
    other = by_name(load(tmp_path, SEVERAL.replace("trials: 4", "trials: 4\n  seed: 1")))
    assert not set(seeds.values()) & {one.seed for one in other.values()}


def test_the_default_baseline_beside_several_methods_is_vanilla(tmp_path: Path) -> None:
    assert [method.kind for method in load(tmp_path, SEVERAL).baselines] == ["vanilla"]
    assert [method.kind for method in load(tmp_path, SEVERAL + "baselines: [ce]\n").baselines] == ["ce"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("[0.2, 0.98]", "[0.2, 0.97]"),
        ("{epochs: 10}", "{epochs: 11}"),
        ("tau: 0.5", "tau: 0.6"),
        ("name: los-cosine", "name: los-cos"),
        ("  - vanilla\n", ""),
    ],
)
def test_every_entry_is_part_of_the_fingerprint(tmp_path: Path, before: str, after: str) -> None:
    assert before in SEVERAL
    changed = load(tmp_path, SEVERAL.replace(before, after, 1)).fingerprint()
    assert changed != load(tmp_path, SEVERAL).fingerprint()
