"""Requirements for every kind of every plugin group: docstrings, strict frozen specs, JSON round trip, a test file."""

import inspect
import json
import typing
from pathlib import Path

import pytest
from pydantic import ValidationError

from lt_train.core.registry import KindSpec, Spec
from sweeps.config.plugin_groups import plugin_groups

TESTS = Path(__file__).parent.parent
GROUPS = plugin_groups()
KINDS = [pytest.param(spec, id=f"{group}-{name}") for group, specs in GROUPS.items() for name, spec in specs.items()]

every_kind = pytest.mark.parametrize("spec", KINDS)


def example(spec: type[KindSpec]) -> KindSpec:
    """An instance with all defaults. Required fields must be text; their value is the first example of the field."""
    required = [name for name, field in spec.model_fields.items() if field.is_required()]
    for name in required:
        assert spec.model_fields[name].annotation is str, f"{name} needs a default, or an example value here"
    given = {name: (spec.model_fields[name].examples or ["somewhere"])[0] for name in required}
    return spec.model_validate_json(json.dumps({"kind": spec.kind_name()} | given))


@pytest.mark.parametrize("group", GROUPS)
def test_no_group_is_empty(group: str) -> None:
    assert GROUPS[group], f"no kind was found in the group {group}"


def test_names_are_unique_within_a_group_and_valid_in_yaml() -> None:
    for group, specs in GROUPS.items():
        for name, spec in specs.items():
            assert spec.kind_name() == name, group
            assert name.isidentifier(), name
            assert name == name.lower(), name


@every_kind
def test_has_docstrings(spec: type[KindSpec]) -> None:
    assert vars(spec).get("__doc__"), f"{spec.__qualname__} has no docstring"
    assert inspect.getmodule(spec).__doc__, f"{spec.__module__} has no docstring"


@every_kind
def test_documents_every_field(spec: type[KindSpec]) -> None:
    for name, field in spec.model_fields.items():
        nested = field.annotation
        documented = inspect.isclass(nested) and issubclass(nested, Spec) and bool(vars(nested).get("__doc__"))
        assert name == "kind" or field.description or documented, f"{spec.__qualname__}.{name} has no description"


@every_kind
def test_is_frozen_and_strict(spec: type[KindSpec]) -> None:
    one = example(spec)
    with pytest.raises(ValidationError, match="frozen"):
        one.kind = "other"
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        spec.model_validate_json(json.dumps(one.model_dump(mode="json") | {"no_such_field": 1}))
    assert hash(one) == hash(example(spec))


@every_kind
def test_rejects_nan_and_text_for_numbers(spec: type[KindSpec]) -> None:
    document = example(spec).model_dump(mode="json")
    numbers = [name for name, field in spec.model_fields.items() if field.annotation in (int, float)]
    for name in numbers:
        with pytest.raises(ValidationError, match=r"finite number|integer"):
            spec.model_validate_json(json.dumps(document | {name: float("nan")}))
        with pytest.raises(ValidationError, match=r"valid number|valid integer"):
            spec.model_validate_json(json.dumps(document | {name: "1"}))


@every_kind
def test_json_round_trip(spec: type[KindSpec]) -> None:
    one = example(spec)
    text = one.model_dump_json()
    restored = spec.model_validate_json(text)
    assert restored == one
    assert restored.model_dump_json() == text
    assert json.loads(text)["kind"] == spec.kind_name()


@every_kind
def test_schema_contains_the_kind(spec: type[KindSpec]) -> None:
    schema = spec.model_json_schema()
    assert schema["properties"]["kind"]["const"] == spec.kind_name()
    assert schema["additionalProperties"] is False


@every_kind
def test_kind_is_a_literal_with_default(spec: type[KindSpec]) -> None:
    assert typing.get_args(spec.model_fields["kind"].annotation) == (spec.kind_name(),)
    assert spec.model_fields["kind"].default == spec.kind_name(), "kind must have its own name as its default"


def without_test(modules: list[str], tests: Path) -> list[str]:
    """Modules without `test_<stem>.py` or `test_<stem>_<more>.py` in the folder that mirrors them or above it."""
    missing = []
    for module in modules:
        *packages, stem = module.split(".")
        folders = [tests.joinpath(*packages[:depth]) for depth in range(1, len(packages) + 1)]
        if not any([*folder.glob(f"test_{stem}.py"), *folder.glob(f"test_{stem}_*.py")] for folder in folders):
            missing.append(f"{module}: expected {folders[-1] / f'test_{stem}.py'}")
    return missing


def test_every_module_with_kinds_has_a_test_file() -> None:
    modules = sorted({spec.__module__ for specs in GROUPS.values() for spec in specs.values()})
    missing = without_test(modules, TESTS)
    assert not missing, "modules without a test file:\n" + "\n".join(missing)


def test_a_module_without_a_test_file_is_reported(tmp_path: Path) -> None:
    folder = tmp_path / "lt_train" / "methods"
    folder.mkdir(parents=True)
    (folder / "test_ce.py").touch()
    (folder.parent / "test_grid_search.py").touch()
    found = without_test(["lt_train.methods.ce", "lt_train.pretrain.ce", "lt_train.search.grid"], tmp_path)
    assert found == [f"lt_train.pretrain.ce: expected {tmp_path / 'lt_train' / 'pretrain' / 'test_ce.py'}"]
