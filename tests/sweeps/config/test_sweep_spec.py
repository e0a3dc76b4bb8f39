"""Sweep files: what is accepted and what it means, and the JSON schema that editors check them with."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from support.sweep_files import GOOD, load

import sweeps
from lt_train.core.errors import SpecError
from lt_train.methods.constraints.maxnorm import MaxNorm
from lt_train.methods.heads.cosine import Cosine
from lt_train.methods.los import LabelOverSmooth
from lt_train.methods.post_hoc.logit_adjust import LogitAdjust
from lt_train.methods.post_hoc.tau_norm import TauNorm
from lt_train.methods.samplers.class_balanced import ClassBalanced
from sweeps.config.matrix import SweepMatrix, load_file
from sweeps.config.spec import SweepSpec, load_resolved, load_sweep, schema
from sweeps.config.yaml_source import parse_yaml

SPECS = Path(sweeps.__file__).parent / "specs"
SCHEMA = Path(sweeps.__file__).parent / "sweep.schema.json"


def test_a_good_file_has_the_documented_defaults(tmp_path: Path) -> None:
    spec = load(tmp_path, GOOD)
    assert spec.search.algorithm.kind == "tpe"
    assert spec.search.proposal_batch == 12
    assert (spec.selection.metric, spec.selection.on, spec.selection.epoch) == ("acc_all", "val", "last")
    assert (spec.selection.seeds, spec.selection.objective, spec.selection.finalists) == (5, "mean", 0)
    assert [method.kind for method in spec.baselines] == ["vanilla", "ce"]
    assert spec.backend.kind == "ray"
    assert spec.tracking.kind == "mlflow"
    assert spec.search.early_stopping.kind == "all_epochs"
    assert (spec.resources.cpus_per_pack, spec.resources.gpus_per_pack) == (1, 0)
    assert (spec.resources.lanes_per_pack, spec.resources.memory_per_pack) == ("auto", 2 * 2**30)
    assert spec.storage == "runs"


def test_features_of_ones_own_need_no_backbone(tmp_path: Path) -> None:
    text = GOOD.replace("{kind: digits_lt}", "{kind: arrays, path: x.npz}").replace("stage1: {kind: ce}\n", "")
    assert load(tmp_path, text.replace("backbone: {kind: small_cnn}\n", "")).backbone is None
    stage1 = text.replace("backbone: {kind: small_cnn}\n", "stage1: ce\n")
    with pytest.raises(
        SpecError, match=r"s\.yaml:4: stage1: has no backbone to train; name one in backbone, or remove"
    ):
        load(tmp_path, stage1)


def test_shorthands_mean_their_long_forms(tmp_path: Path) -> None:
    short = """\
version: 1
name: good
dataset: digits_lt
backbone: small_cnn
stage1: ce
method: los
search: {algorithm: random, trials: 4, space: {method.lr: {uniform: [0.1, 0.2]}}}
selection: paper
baselines: [ce]
backend: inline
tracking: {experiment: mine}
"""
    spec = load(tmp_path, short)
    assert isinstance(spec.method, LabelOverSmooth)
    assert spec.search.algorithm.kind == "random"
    chosen = spec.selection
    assert (chosen.on, chosen.epoch, chosen.objective, chosen.seeds, chosen.finalists) == ("test", "best", "best", 5, 0)
    assert [method.kind for method in spec.baselines] == ["ce"]
    assert spec.backend.kind == "inline"
    assert (spec.tracking.kind, spec.tracking.model_dump()["experiment"]) == ("mlflow", "mine")
    assert load(tmp_path, short.replace("{experiment: mine}", "none")).tracking.kind == "none"


def test_parts_of_a_method_have_shorthands_too(tmp_path: Path) -> None:
    method = load(tmp_path, GOOD.replace("{kind: los}", "{kind: los, head: cosine, sampler: class_balanced}")).method
    assert isinstance(method, LabelOverSmooth)
    assert (method.head, method.sampler) == (Cosine(), ClassBalanced())
    adjusted = load(tmp_path, GOOD.replace("{kind: los}", "{kind: los, post_hoc: {kind: logit_adjust, tau: 1.5}}"))
    assert isinstance(adjusted.method, LabelOverSmooth)
    assert adjusted.method.post_hoc == LogitAdjust(tau=1.5)
    bounded = load(tmp_path, GOOD.replace("{kind: los}", "{kind: los, constraint: maxnorm, post_hoc: tau_norm}")).method
    assert isinstance(bounded, LabelOverSmooth)
    assert (bounded.constraint, bounded.post_hoc) == (MaxNorm(), TauNorm())


def test_a_resolved_sweep_reads_back_as_itself(tmp_path: Path) -> None:
    spec = load(tmp_path, GOOD)
    document = json.loads(json.dumps(spec.resolved()))
    assert load_resolved(document) == spec
    assert load_resolved(document).fingerprint() == spec.fingerprint()
    document["search"]["trials"] = "x"
    with pytest.raises(SpecError, match=r"^search\.trials: must be a whole number, got 'x'$"):
        load_resolved(document)


@pytest.mark.parametrize(
    ("changed", "matters"),
    [
        ("name: other", False),
        ("storage: elsewhere", False),
        ("tracking: none", False),
        ("backend: inline", False),
        ("resources: {gpus_per_pack: 1}", False),
        ("resources: {extract_workers: 4}", False),
        ("features: {dtype: float16}", True),
        ("training: {epochs: 20}", False),
        ("resources: {lanes_per_pack: 8}", True),
        ("resources: {lanes_per_pack: auto, memory_per_pack: 2048MiB}", False),
        ("resources: {memory_per_pack: 1GiB}", True),
        ("resources: {cpus_per_pack: 2}", True),
        ("training: {epochs: 19}", True),
        ("selection: {seeds: 4}", True),
        ("baselines: []", True),
    ],
)
def test_the_fingerprint_sees_what_decides_results_and_nothing_else(
    tmp_path: Path, changed: str, matters: bool
) -> None:
    good = GOOD.replace("name: good\n", "") if changed.startswith("name") else GOOD
    assert (load(tmp_path, good + changed + "\n").fingerprint() != load(tmp_path, GOOD).fingerprint()) is matters


def test_memory_decides_nothing_where_lanes_are_given(tmp_path: Path) -> None:
    lanes, both = "resources: {lanes_per_pack: 8}\n", "resources: {lanes_per_pack: 8, memory_per_pack: 1GiB}\n"
    assert load(tmp_path, GOOD + lanes).fingerprint() == load(tmp_path, GOOD + both).fingerprint()


def test_a_scheduler_is_part_of_what_decides_results(tmp_path: Path) -> None:
    def scheduled(text: str) -> SweepSpec:
        return load(tmp_path, GOOD.replace("  trials: 4\n", f"  trials: 4\n  early_stopping: {text}\n"))

    assert scheduled("all_epochs").fingerprint() == load(tmp_path, GOOD).fingerprint()
    bare, long = scheduled("successive_halving"), scheduled("{kind: successive_halving, rungs: [5, 10], factor: 2}")
    assert bare.fingerprint() == long.fingerprint() != load(tmp_path, GOOD).fingerprint()
    assert load_resolved(bare.resolved()) == bare
    assert bare.resolved()["search"]["early_stopping"] == {
        "kind": "successive_halving",
        "rungs": [5, 10],
        "factor": 2.0,
    }
    assert scheduled("{kind: successive_halving, rungs: [5]}").fingerprint() != bare.fingerprint()


def test_the_fingerprint_of_a_ready_sweep_stays_what_it_was() -> None:
    """Else the directories of every sweep that was begun are refused; a field that is added leaves its default out."""
    assert load_sweep(SPECS / "demo.yaml").fingerprint()[:12] == "71d54cfff01d"
    assert load_sweep(SPECS / "table1.yaml").fingerprint()[:12] == "9bd821c9a756"


def test_the_fingerprint_sees_the_order_a_grid_is_walked_in(tmp_path: Path) -> None:
    head = GOOD[: GOOD.index("  trials:")] + "  algorithm: grid\n  trials: 2\n"
    lr, init = "    method.lr: {choice: [1, 2]}\n", "    method.init: {choice: [checkpoint, random]}\n"
    one, other = load(tmp_path, f"{head}  space:\n{lr}{init}"), load(tmp_path, f"{head}  space:\n{init}{lr}")
    assert one.fingerprint() != other.fingerprint()


def test_values_of_a_trial_arrive_exactly(tmp_path: Path) -> None:
    (candidate,) = load(tmp_path, GOOD).candidates()
    generator = random.Random(0)
    for _ in range(300):
        lr, smooth = 10 ** generator.uniform(-4, -1), generator.uniform(0.2, 0.98)
        method, training = candidate.with_values(
            {"method.lr": lr, "method.smooth_factor": smooth, "training.epochs": 3}
        )
        assert isinstance(method, LabelOverSmooth)
        assert (method.lr, method.smooth_factor, training.epochs) == (lr, smooth, 3)
        assert (method.momentum, training.batch_size) == (0.9, 64)
    with pytest.raises(SpecError, match=r"trial .*lr"):
        candidate.with_values({"method.lr": -1.0})


def ready_specs() -> list[Path]:
    return sorted(SPECS.glob("*.yaml"))


def test_the_ready_specs_are_all_here() -> None:
    assert len(ready_specs()) == 10, "a new ready spec is counted here, so that none is lost unseen"


@pytest.mark.parametrize("path", ready_specs(), ids=lambda path: path.stem)
def test_a_ready_spec_is_valid(path: Path) -> None:
    loaded = load_file(path)
    for spec in loaded.sweeps if isinstance(loaded, SweepMatrix) else [loaded]:
        assert load_resolved(spec.resolved()) == spec
    assert path.read_text().startswith("# yaml-language-server: $schema=../sweep.schema.json\n")


def test_the_committed_schema_is_current() -> None:
    assert SCHEMA.read_text() == json.dumps(schema(), indent=1) + "\n", (
        "run: lt-sweep schema > sweeps/sweep.schema.json"
    )


def validator() -> Any:
    jsonschema = pytest.importorskip("jsonschema", reason="comes with a dependency of MLflow, not with us")
    return jsonschema.Draft202012Validator(schema())


def plain(text: str) -> Any:
    """YAML as an editor's language server reads it; 1e-3 is a number there."""
    return parse_yaml(text).document


@pytest.mark.parametrize("path", ready_specs(), ids=lambda path: path.stem)
def test_a_ready_spec_satisfies_the_json_schema(path: Path) -> None:
    assert [error.message for error in validator().iter_errors(plain(path.read_text()))] == []


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("stage1:", "stagee1:"),
        ("{kind: los}", "{kind: lso}"),
        ("{kind: los}", "{lr: 0.1}"),
        ("{kind: los}", "{kind: los, smooth_factor: 1.0}"),
        ("{kind: los}", "{kind: los, head: {kind: cosine, scale: 0}}"),
        ("{kind: los}", "{kind: los, sampler: classbalanced}"),
        ("method: {kind: los}\n", ""),
        ("method: {kind: los}\n", "method: los\nmethods: [ce]\n"),
        ("method: {kind: los}\n", "methods: [{name: los}]\n"),
        ("method: {kind: los}\n", "methods: [cee]\n"),
        ("method: {kind: los}\n", "methods: [{method: ce, training: {epochs: 0}}]\n"),
        ("trials: 4", "trials: many"),
        ("trials: 4", "trials: 0"),
        ("[0.2, ", "[0.2, 0.4, "),
    ],
)
def test_the_json_schema_refuses_what_an_editor_should_mark(before: str, after: str) -> None:
    assert before in GOOD
    assert list(validator().iter_errors(plain(GOOD.replace(before, after, 1))))


def test_the_json_schema_knows_the_shorthands_and_describes_every_field() -> None:
    for text in (
        "selection: paper",
        "backend: inline",
        "tracking: none",
        "tracking: {uri: http://x}",
        "baselines: [ce]",
        "resources: {lanes_per_pack: auto, memory_per_pack: 500 MiB}",
        "resources: {lanes_per_pack: 5, memory_per_pack: 1000000}",
    ):
        assert not list(validator().iter_errors(plain(f"{GOOD}{text}\n"))), text
    for method in (
        "method: los",
        "method: {kind: los, head: cosine, sampler: class_balanced, post_hoc: {kind: logit_adjust, tau: 0.5}}",
        "methods: [ce, {method: los}, {name: short, method: {kind: ce, constraint: maxnorm}, training: {epochs: 3}}]",
    ):
        assert not list(validator().iter_errors(plain(GOOD.replace("method: {kind: los}", method)))), method
    assert list(validator().iter_errors(plain(GOOD + "backend: nowhere\n")))
    document = schema()
    own = [document, *(document["$defs"][name] for name in ("SearchSpec", "SelectionSpec", "ResourcesSpec"))]
    for definition in own:
        for name, field in definition["properties"].items():
            assert field.get("description"), name
