"""YAML files: scalars of YAML 1.2, duplicate keys, line numbers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from lt_train.core.errors import SpecError
from sweeps.config.yaml_source import load_yaml, parse_yaml


def value(text: str) -> object:
    return parse_yaml(f"key: {text}\n").document["key"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-3", 0.001),
        ("5e-4", 0.0005),
        ("1E+2", 100.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("-7", -7),
        ("010", 10),
        ("0o17", 15),
        ("0x1F", 31),
        ("no", "no"),
        ("on", "on"),
        ("Yes", "Yes"),
        ("off", "off"),
        ("True", True),
        ("false", False),
        ("~", None),
        ("", None),
        ("12:30:00", "12:30:00"),
        ("2020-01-01", "2020-01-01"),
        ("1_000", "1_000"),
        ("'1'", "1"),
        ("!!str 1", "1"),
        ("!!float 1", 1.0),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, expected: object) -> None:
    found = value(text)
    assert found == expected
    assert type(found) is type(expected)


def test_infinities_and_nan_reach_the_schema_as_floats() -> None:
    assert value("-.INF") == -math.inf
    assert math.isnan(value(".nan"))  # type: ignore[arg-type]


def test_every_duplicate_key_is_reported_with_both_lines() -> None:
    with pytest.raises(SpecError, match="duplicate") as caught:
        parse_yaml("a: 1\nb: {c: 1,\n  c: 2}\na: 2\n", "x.yaml")
    assert caught.value.problems == [
        "x.yaml:3: duplicate key 'c', first given on line 2",
        "x.yaml:4: duplicate key 'a', first given on line 1",
    ]


def test_merge_keys_never_override_own_keys() -> None:
    document = parse_yaml("x: &x {a: 1, b: 2}\ny: &y {b: 3, c: 4}\nz: {<<: [*x, *y], a: 9}\n").document
    assert document["z"] == {"a": 9, "b": 2, "c": 4}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"f\.yaml:1: the file is empty"),
        ("# only a comment\n", r"f\.yaml:1: the file is empty"),
        ("- 1\n", r"f\.yaml:1: the file must be a mapping of keys to values, got a list"),
        ("a: 1\n\tb: 2\n", r"f\.yaml:2: not valid YAML: tabs must not be used"),
        ("a: [1\nb: 2\n", r"f\.yaml:2: not valid YAML: while parsing a flow sequence"),
        ("a: 1\n---\nb: 2\n", r"f\.yaml:2: .* one document; a second one starts here"),
        ("a: 1\nb: !!python/object:os.system x\n", r"f\.yaml:2: the tag !!python/object:os\.system is not allowed"),
        ("a: !mine {b: 1}\n", r"f\.yaml:1: the tag !mine is not allowed"),
        ("a: !!int x\n", r"f\.yaml:1: 'x' is not a valid int"),
        ("a: 1\n2: b\n", r"f\.yaml:2: a key must be text, got 2"),
        ("a: &a [*a]\n", r"f\.yaml:1: nested too deeply, or an alias contains itself"),
        ("a: " + "[" * 200 + "]" * 200, r"f\.yaml:1: nested too deeply"),
        ("a: " + "9" * 5000, r"f\.yaml:1: the number has too many digits"),
        ("a: \x01\n", r"f\.yaml:1: not valid YAML: unacceptable character"),
    ],
)
def test_refusals_name_the_line(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_yaml(text, "f.yaml")


def test_the_expansion_of_aliases_is_limited() -> None:
    lines = ["a0: &a0 [x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]" for i in range(1, 30)]
    with pytest.raises(SpecError, match="more than 100000 entries once aliases are expanded"):
        parse_yaml("\n".join(lines))


def test_unreadable_files_are_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"absent\.yaml: no such file"):
        load_yaml(tmp_path / "absent.yaml")
    with pytest.raises(SpecError, match="is a directory, not a YAML file"):
        load_yaml(tmp_path)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"a: \xff\n")
    with pytest.raises(SpecError, match=r"is not UTF-8 text \(byte 3\)"):
        load_yaml(binary)


def test_a_byte_order_mark_and_windows_line_ends_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "windows.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    source = load_yaml(path)
    assert source.document == {"a": 1, "b": 2}
    assert source.position(("b",)) == 2


def test_positions_follow_pydantic_locations() -> None:
    source = parse_yaml(
        "a: 1\nm:\n  kind: los\n  lr: 2\ns:\n  space:\n    m.lr:\n      uniform:\n        - 0\n        - 1\n"
    )
    assert source.position(("m", "lr")) == 4
    assert source.position(("m", "los", "lr")) == 4, "tags of unions are skipped"
    assert source.position(("s", "space", "m.lr", "uniform", "uniform", 1)) == 10
    assert source.position(("m", "missing")) == 2, "the line of the nearest ancestor"
    assert source.position(("absent",)) == 1
    assert source.position(()) == 1
