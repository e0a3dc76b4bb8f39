"""Sweep files: what is accepted, its defaults and fingerprint, and the JSON schema. Sweeps built in Python."""

from __future__ import annotations

import importlib.util
import json
import pydoc
import random
import threading
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field, ValidationError
from support.sweep_files import GOOD, load

import sweeps
from lt_train.core.errors import SpecError
from lt_train.methods import LOS
from lt_train.methods.constraints import MaxNorm
from lt_train.methods.heads.linear import Cosine
from lt_train.methods.post_hoc import LogitAdjust, TauNorm
from lt_train.methods.samplers import ClassBalanced
from lt_train.metrics import MetricSpec
from sweeps.config.matrix import SweepMatrix, load_file
from sweeps.config.methods import MethodEntry
from sweeps.config.sections import SearchSpec
from sweeps.config.spec import SweepSpec, load_resolved, load_sweep, schema
from sweeps.config.yaml_source import parse_yaml

SPECS = Path(sweeps.__file__).parent / "specs"


def test_a_good_file_has_the_documented_defaults(tmp_path: Path) -> None:
    spec = load(tmp_path, GOOD)
    assert spec.search.algorithm.kind == "tpe"
    assert spec.search.proposal_batch == 12
    assert (spec.selection.metric, spec.selection.on, spec.selection.epoch) == ("acc_all", "val", "last")
    assert (spec.selection.seeds, spec.selection.objective, spec.selection.finalists) == (5, "mean", 0)
    assert [method.kind for method in spec.baselines] == ["vanilla", "ce"]
    assert spec.backend.kind == "ray"
    assert spec.tracking.kind == "mlflow"
    assert spec.search.early_stopping.kind == "none"
    assert (spec.resources.cpus_per_pack, spec.resources.gpus_per_pack) == (1, 0)
    assert (spec.resources.lanes_per_pack, spec.resources.memory_per_pack) == ("auto", 2 * 2**30)
    assert spec.storage == "runs"


def test_a_dataset_of_features_needs_no_backbone(tmp_path: Path) -> None:
    text = GOOD.replace("{kind: digits_lt}", "{kind: arrays, path: x.npz}").replace("stage1: {kind: ce}\n", "")
    assert load(tmp_path, text.replace("backbone: {kind: small_cnn}\n", "")).backbone is None
    stage1 = text.replace("backbone: {kind: small_cnn}\n", "stage1: ce\n")
    with pytest.raises(SpecError, match=r"s\.yaml:4: stage1: has no backbone to train; set backbone, or remove"):
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
    assert isinstance(spec.method, LOS)
    assert spec.search.algorithm.kind == "random"
    chosen = spec.selection
    assert (chosen.on, chosen.epoch, chosen.objective, chosen.seeds, chosen.finalists) == ("test", "best", "best", 5, 0)
    assert [method.kind for method in spec.baselines] == ["ce"]
    assert spec.backend.kind == "inline"
    assert (spec.tracking.kind, spec.tracking.model_dump()["experiment"]) == ("mlflow", "mine")
    assert load(tmp_path, short.replace("{experiment: mine}", "none")).tracking.kind == "none"


def test_parts_of_a_method_have_shorthands_too(tmp_path: Path) -> None:
    method = load(tmp_path, GOOD.replace("{kind: los}", "{kind: los, head: cosine, sampler: class_balanced}")).method
    assert isinstance(method, LOS)
    assert (method.head, method.sampler) == (Cosine(), ClassBalanced())
    adjusted = load(tmp_path, GOOD.replace("{kind: los}", "{kind: los, post_hoc: {kind: logit_adjust, tau: 1.5}}"))
    assert isinstance(adjusted.method, LOS)
    assert adjusted.method.post_hoc == LogitAdjust(tau=1.5)
    bounded = load(tmp_path, GOOD.replace("{kind: los}", "{kind: los, constraint: maxnorm, post_hoc: tau_norm}")).method
    assert isinstance(bounded, LOS)
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
def test_the_fingerprint_covers_what_influences_results_and_nothing_else(
    tmp_path: Path, changed: str, matters: bool
) -> None:
    good = GOOD.replace("name: good\n", "") if changed.startswith("name") else GOOD
    assert (load(tmp_path, good + changed + "\n").fingerprint() != load(tmp_path, GOOD).fingerprint()) is matters


def test_memory_has_no_influence_where_lanes_are_given(tmp_path: Path) -> None:
    lanes, both = "resources: {lanes_per_pack: 8}\n", "resources: {lanes_per_pack: 8, memory_per_pack: 1GiB}\n"
    assert load(tmp_path, GOOD + lanes).fingerprint() == load(tmp_path, GOOD + both).fingerprint()


def test_early_stopping_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    def stopped_by(text: str) -> SweepSpec:
        return load(tmp_path, GOOD.replace("  trials: 4\n", f"  trials: 4\n  early_stopping: {text}\n"))

    assert stopped_by("none").fingerprint() == load(tmp_path, GOOD).fingerprint()
    bare, long = stopped_by("successive_halving"), stopped_by("{kind: successive_halving, rungs: [5, 10], factor: 2}")
    assert bare.fingerprint() == long.fingerprint() != load(tmp_path, GOOD).fingerprint()
    assert load_resolved(bare.resolved()) == bare
    assert bare.resolved()["search"]["early_stopping"] == {
        "kind": "successive_halving",
        "rungs": [5, 10],
        "factor": 2.0,
    }
    assert stopped_by("{kind: successive_halving, rungs: [5]}").fingerprint() != bare.fingerprint()


def test_the_fingerprint_of_a_bundled_sweep_does_not_change() -> None:
    """Otherwise the directories of existing sweeps could not be resumed."""
    assert load_sweep(SPECS / "demo.yaml").fingerprint()[:12] == "eb60b35c40f0"
    assert load_sweep(SPECS / "table1.yaml").fingerprint()[:12] == "a82b4341aa16"


def test_the_order_of_a_grid_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    head = GOOD[: GOOD.index("  trials:")] + "  algorithm: grid\n  trials: 2\n"
    lr, init = "    method.lr: {choice: [1, 2]}\n", "    method.init: {choice: [checkpoint, random]}\n"
    one, other = load(tmp_path, f"{head}  space:\n{lr}{init}"), load(tmp_path, f"{head}  space:\n{init}{lr}")
    assert one.fingerprint() != other.fingerprint()


def test_the_values_of_a_trial_are_exact(tmp_path: Path) -> None:
    (candidate,) = load(tmp_path, GOOD).candidates()
    generator = random.Random(0)
    for _ in range(300):
        lr, smooth = 10 ** generator.uniform(-4, -1), generator.uniform(0.2, 0.98)
        method, training = candidate.with_values(
            {"method.lr": lr, "method.smooth_factor": smooth, "training.epochs": 3}
        )
        assert isinstance(method, LOS)
        assert (method.lr, method.smooth_factor, training.epochs) == (lr, smooth, 3)
        assert (method.momentum, training.batch_size) == (0.9, 64)
    with pytest.raises(SpecError, match=r"trial .*lr"):
        candidate.with_values({"method.lr": -1.0})


def bundled_specs() -> list[Path]:
    return sorted(SPECS.glob("*.yaml"))


def test_the_bundled_specs_are_all_here() -> None:
    assert len(bundled_specs()) == 10, "update the number when a spec is added"


@pytest.mark.parametrize("path", bundled_specs(), ids=lambda path: path.stem)
def test_a_bundled_spec_is_valid(path: Path) -> None:
    loaded = load_file(path)
    for spec in loaded.sweeps if isinstance(loaded, SweepMatrix) else [loaded]:
        assert load_resolved(spec.resolved()) == spec


def validator() -> Any:
    jsonschema = pytest.importorskip("jsonschema", reason="not a dependency of this project")
    jsonschema.Draft202012Validator.check_schema(schema())
    return jsonschema.Draft202012Validator(schema())


def plain(text: str) -> Any:
    """YAML as the language server of an editor reads it."""
    return parse_yaml(text).document


@pytest.mark.parametrize("path", bundled_specs(), ids=lambda path: path.stem)
def test_a_bundled_spec_satisfies_the_json_schema(path: Path) -> None:
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
def test_the_json_schema_refuses_invalid_files(before: str, after: str) -> None:
    assert before in GOOD
    assert list(validator().iter_errors(plain(GOOD.replace(before, after, 1))))


def test_the_json_schema_covers_shorthands_and_describes_every_field() -> None:
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


def test_a_sweep_is_built_in_python_from_words_lists_mappings_and_instances(tmp_path: Path) -> None:
    space = {"method.lr": {"loguniform": [1e-4, 1e-1]}, "method.smooth_factor": {"uniform": (0.2, 0.98)}}
    sections: dict[str, Any] = {
        "name": "good",
        "dataset": "digits_lt",
        "backbone": "small_cnn",
        "stage1": {"kind": "ce"},
        "search": {"trials": 4, "space": space},
    }
    expected = load(tmp_path, GOOD)
    assert SweepSpec(method="los", **sections) == expected
    assert SweepSpec.model_validate({"method": LOS(), **sections}) == expected
    stopping = {"kind": "successive_halving", "rungs": [3, 9]}
    search = SearchSpec(trials=4, early_stopping=stopping, space=space)
    spec = SweepSpec(method=LOS(head="cosine"), **sections | {"search": search}, storage=tmp_path)
    assert spec.search == search
    assert spec.search.early_stopping.model_dump()["rungs"] == (3, 9)
    assert isinstance(spec.method, LOS)
    assert (spec.method.head, spec.storage) == (Cosine(), str(tmp_path))
    entry = MethodEntry(method="ce", training={"epochs": 3})
    _, one = SweepSpec(methods=["los", entry], training={"batch_size": 8}, **sections).candidates()
    assert (one.training.epochs, one.training.batch_size) == (3, 8)


def test_a_sweep_built_in_python_reports_all_problems_by_their_path() -> None:
    with pytest.raises(SpecError) as caught:
        SweepSpec(name="x", dataset="digits_tl", method={"kind": "los", "lr": -1}, search={"trials": object()})
    paths = [problem.split(": ")[0] for problem in caught.value.problems]
    assert paths == ["dataset.kind", "method.lr", "search.trials", "search.space"]
    assert "did you mean 'digits_lt'" in caught.value.problems[0]
    with pytest.raises(ValidationError, match="less than 1"):
        LOS(smooth_factor=1.0)


@pytest.mark.parametrize(
    ("missing", "backend", "tracking"),
    [((), "ray", "mlflow"), (("ray",), "inline", "mlflow"), (("ray", "mlflow"), "inline", "none")],
)
def test_default_backend_and_tracker_depend_on_what_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...], backend: str, tracking: str
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else found(name))
    spec = load(tmp_path, GOOD)
    assert (spec.resolved()["backend"]["kind"], spec.resolved()["tracking"]["kind"]) == (backend, tracking)
    monkeypatch.undo()
    assert load_resolved(spec.resolved()) == spec
    assert load(tmp_path, GOOD).fingerprint() == spec.fingerprint()


def test_paths_become_absolute_and_urls_are_kept(tmp_path: Path) -> None:
    text = GOOD.replace("{kind: digits_lt}", "{kind: fashion_mnist_lt, root: data}").replace("stage1: {kind: ce}\n", "")
    text = text.replace("{kind: small_cnn}", "{kind: small_cnn, checkpoint: ~/c.pt}")
    text += "tracking: {uri: 'sqlite:///t.db'}\nbackend: {kind: ray, bank_store: 's3://bucket/banks'}\n"
    spec = load(tmp_path, text)
    assert spec.files() == {"dataset.root": "data", "backbone.checkpoint": "~/c.pt"}
    document = spec.with_absolute_paths(Path("/base")).resolved()
    assert document["storage"] == "/base/runs"
    assert document["dataset"]["root"] == "/base/data"
    assert document["backbone"]["checkpoint"] == str(Path.home() / "c.pt")
    assert (document["tracking"]["uri"], document["tracking"]["experiment"]) == ("sqlite:////base/t.db", "good")
    assert document["backend"]["bank_store"] == "s3://bucket/banks"
    assert spec.with_absolute_paths("/base").fingerprint() == spec.fingerprint()


def test_the_public_names_are_listed_and_exist() -> None:
    assert len(pydoc.plain(pydoc.render_doc(sweeps)).splitlines()) <= 48, "help(sweeps) fits two screens"
    assert all(getattr(sweeps, name) is not None for name in dir(sweeps))
    assert sweeps.__version__
    with pytest.raises(AttributeError, match="no_such_name"):
        sweeps.no_such_name  # noqa: B018


def test_a_method_stands_for_its_entry(tmp_path: Path) -> None:
    text = GOOD.replace("method: {kind: los}", "methods: [los, {kind: ce, init: random}]")
    spec = load(tmp_path, text)
    assert [one.method.kind for one in spec.methods] == ["los", "ce"]
    assert spec.methods[1].method.init == "random"
    document = spec.resolved() | {"methods": ["los", spec.methods[1].method]}
    assert SweepSpec(**document) == spec


class Weighted(MetricSpec):
    """A metric with a field of any type."""

    kind: Literal["weighted"] = "weighted"
    weights: Any = Field(default=None, description="weights")

    def __call__(self, probabilities: Any, predictions: Any, labels: Any, class_counts: Any) -> float:
        return 0.0


@pytest.mark.usefixtures("own_kinds")
@pytest.mark.parametrize("weights", [{5: 1.0}, {1, 2}, print, float("nan"), threading.Lock(), (1, 2)])
def test_an_instance_that_json_would_change_is_refused(tmp_path: Path, weights: Any) -> None:
    document = load(tmp_path, GOOD).resolved()
    assert SweepSpec(**document | {"metrics": [Weighted(weights={"a": [1.0, None]})]}).metrics[0].weights == {
        "a": [1.0, None]
    }
    with pytest.raises(SpecError, match=r"metrics\[0\]\.weights: must be a value that JSON has"):
        SweepSpec(**document | {"metrics": [Weighted(weights=weights)]})
