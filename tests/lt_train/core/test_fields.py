"""Declarations of fields: markers, lane values, and short forms at any depth of a document."""

import json
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, ValidationError
from support.compositions import ALLOWED, DEFAULTS, EVERY_PART, OPTIONS, PARTS, searchable

from lt_train.core.errors import SpecError
from lt_train.core.fields import (
    BATCHED,
    NOT_IDENTITY,
    PATH,
    STATIC,
    Shorthand,
    expand,
    lane_values,
    marked_fields,
    part_of,
    static_fields,
    substitute,
)
from lt_train.core.registry import KindSpec, Registry, Spec
from lt_train.methods import LOS, LogitAdjustLoss, heads
from lt_train.methods.base import METHODS, MethodSpec, TrainedMethod
from lt_train.methods.constraints import CONSTRAINTS
from lt_train.methods.heads.base import HEADS
from lt_train.methods.post_hoc import POST_HOC
from lt_train.methods.samplers import SAMPLERS

Positive = Annotated[float, BATCHED, Field(gt=0)]
EVERY = {**ALLOWED, **OPTIONS, **PARTS}


class Inner(Spec):
    """A part of a part."""

    tau: Annotated[float, BATCHED] = 1.0
    steps: int = 3


class Part(Spec):
    """A part with a float, annotated, and a part of its own."""

    scale: Positive = 30.0
    squash: bool = False
    inner: Inner = Inner()


class Whole(Spec):
    """Batched floats, also in parts, and floats that are not: declared static, undeclared, in a tuple, absent."""

    lr: Positive = 0.1
    wd: Annotated[float, BATCHED] = 0.0
    fixed: Annotated[float, STATIC] = 7.0
    plain: float = 8.0
    epochs: int = 2
    mode: Literal["one", "other"] = "one"
    maybe: float | None = 0.5
    shares: tuple[float, ...] | None = (0.5, 0.5)
    part: Part = Part()
    other: Inner | None = None


def test_batched_fields_are_lane_values_by_dotted_path() -> None:
    assert lane_values(Whole()) == {"lr": 0.1, "wd": 0.0, "part.scale": 30.0, "part.inner.tau": 1.0}
    assert lane_values(Whole(other=Inner(tau=2.0))).keys() == {*lane_values(Whole()), "other.tau"}


def test_everything_else_is_static() -> None:
    assert static_fields(Whole()) == {
        "fixed": 7.0,
        "plain": 8.0,
        "epochs": 2,
        "mode": "one",
        "maybe": 0.5,
        "shares": [0.5, 0.5],
        "part": {"squash": False, "inner": {"steps": 3}},
        "other": None,
    }
    assert static_fields(Whole(other=Inner(steps=4)))["other"] == {"steps": 4}


def test_a_part_gets_its_values_by_their_own_names() -> None:
    lanes = {"lr": 1, "part.scale": 2, "part.inner.tau": 3, "particle.tau": 4}
    assert part_of(lanes, "part") == {"scale": 2, "inner.tau": 3}
    assert part_of(part_of(lanes, "part"), "inner") == {"tau": 3}
    assert part_of(lanes, "head") == {}


@pytest.mark.parametrize("method", EVERY.values(), ids=EVERY)
def test_lane_values_and_static_fields_are_the_whole_method(method: MethodSpec) -> None:
    """Together they restore the method, and they are disjoint."""
    values, document = method.lane_values(), method.static_fields()
    for path, value in values.items():
        *parts, name = path.split(".")
        inner = document
        for part in parts:
            inner = inner[part]
        assert name not in inner
        inner[name] = value
    assert METHODS.parse(document) == method


@pytest.mark.parametrize("method", EVERY.values(), ids=EVERY)
def test_another_lane_value_leaves_the_static_fields(method: MethodSpec) -> None:
    for path in searchable(method):
        other = substitute(method, {path: method.lane_values()[path] * 0.5 + 0.001})
        assert other != method
        assert other.static_fields() == method.static_fields()


def test_the_hyperparameters_that_the_paper_searches_are_lane_values() -> None:
    for method in DEFAULTS.values():
        if isinstance(method, TrainedMethod):
            assert {"lr", "weight_decay", "momentum"} <= method.lane_values().keys()
    found = {path for method in EVERY.values() for path in searchable(method)}
    assert {
        "smooth_factor",
        "gamma",
        "beta",
        "tau",
        "max_margin",
        "rho",
        "smooth_head",
        "smooth_tail",
        "head.scale",
        "constraint.fraction",
        "post_hoc.tau",
    } <= found


@pytest.mark.parametrize("group", [METHODS, HEADS, SAMPLERS, CONSTRAINTS, POST_HOC], ids=lambda group: group.name)
def test_every_number_of_a_method_or_part_declares_whether_it_is_batched(group: Registry[KindSpec]) -> None:
    for kind, spec in group.kinds().items():
        batched, static = marked_fields(spec, BATCHED), marked_fields(spec, STATIC)
        numbers = {name for name, field in spec.model_fields.items() if field.annotation in (float, int)}
        assert {*batched, *static} >= numbers, f"{kind}: {numbers - {*batched, *static}} must declare BATCHED or STATIC"
        assert not {*batched} & {*static}, kind
        assert all(spec.model_fields[name].annotation is float for name in batched), kind


class Files(Spec):
    """Paths, plain and nested, and a field that does not change the result."""

    data: Annotated[str, PATH] = "data"
    maybe: Annotated[str, PATH] | None = None
    lists: tuple[Annotated[str, PATH], ...] = ()
    workers: Annotated[int, NOT_IDENTITY, Field(ge=0, description="processes")] = 0
    cache: Annotated[str, PATH, NOT_IDENTITY] = Field(default="", description="a directory")
    name: str = ""


def test_marked_fields_are_found_inside_unions_and_lists() -> None:
    assert marked_fields(Files, PATH) == ("data", "maybe", "lists", "cache")
    assert marked_fields(Files, NOT_IDENTITY) == ("workers", "cache")
    assert Files.model_json_schema()["properties"]["workers"]["minimum"] == 0


class Small(BaseModel):
    """A part."""

    kind: str = "small"
    size: int = 1


class Large(BaseModel):
    """Another part, with a part of its own that has short forms."""

    kind: str = "large"
    part: Annotated[Small, Shorthand(("small", "tiny"))] = Small()


class Tree(BaseModel):
    """Every place where a short form is allowed."""

    plain: Annotated[Small, Shorthand(("small",))] = Small()
    maybe: Annotated[Small | None, Shorthand(("small",))] = None
    named: Annotated[Small, Shorthand(("best",), meanings={"best": {"kind": "small", "size": 9}})] = Small()
    default: Annotated[Small, Shorthand((), default_kind="small")] = Small()
    items: list[Annotated[Small | Large, Shorthand(("small", "large"))]] = Field(default_factory=list)
    inside: Annotated[Large, Shorthand(("small",), inside="part")] = Large()
    long: Large = Large()
    number: int = 0


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ({"plain": "small"}, {"plain": {"kind": "small"}}),
        ({"maybe": "small"}, {"maybe": {"kind": "small"}}),
        ({"maybe": None}, {"maybe": None}),
        ({"named": "best"}, {"named": {"kind": "small", "size": 9}}),
        ({"named": "worst"}, {"named": {"kind": "worst"}}),
        ({"default": {"size": 2}}, {"default": {"kind": "small", "size": 2}}),
        ({"default": {"kind": "other"}}, {"default": {"kind": "other"}}),
        ({"items": ["small", {"kind": "large"}]}, {"items": [{"kind": "small"}, {"kind": "large"}]}),
        ({"items": "small"}, {"items": "small"}),
        ({"items": [{"kind": "large", "part": "tiny"}]}, {"items": [{"kind": "large", "part": {"kind": "tiny"}}]}),
        ({"inside": "small"}, {"inside": {"part": {"kind": "small"}}}),
        ({"long": {"part": "small"}}, {"long": {"part": {"kind": "small"}}}),
        ({"plain": {"kind": "small", "size": 3}}, {"plain": {"kind": "small", "size": 3}}),
        ({"plain": 7, "number": "7"}, {"plain": 7, "number": "7"}),
        ({"unknown": "small"}, {"unknown": "small"}),
        ({}, {}),
        ("small", "small"),
        ([1], [1]),
        (None, None),
    ],
    ids=str,
)
def test_short_forms_are_written_out(short: Any, long: Any) -> None:
    before = json.dumps(short)
    assert expand(Tree, short) == long
    assert json.dumps(short) == before, "the document itself must not change"


def test_a_long_form_is_left_unchanged() -> None:
    long = expand(Tree, {"plain": "small", "items": ["large"], "inside": "small", "named": "best"})
    assert expand(Tree, long) == long


@pytest.mark.parametrize(("kind", "part", "word"), EVERY_PART)
def test_every_part_of_a_method_may_be_a_word(kind: str, part: str, word: str) -> None:
    """A word and the mapping that it stands for have the same result, errors included."""

    def parsed(value: object) -> object:
        try:
            return METHODS.parse({"kind": kind, part: value})
        except SpecError as error:
            return str(error)

    assert parsed(word) == parsed({"kind": word})


@pytest.mark.parametrize("kind", METHODS.kinds())
def test_the_schema_of_a_method_takes_the_words_too(kind: str) -> None:
    """Editors validate sweep files with the schema, so it must accept every allowed form."""
    properties = METHODS.kinds()[kind].model_json_schema()["properties"]
    for part, field in METHODS.kinds()[kind].model_fields.items():
        for mark in field.metadata:
            if isinstance(mark, Registry):
                assert {"type": "string", "enum": list(mark.kinds())} in properties[part]["anyOf"], part


def test_an_unknown_word_is_reported_with_its_field() -> None:
    with pytest.raises(SpecError, match=r"ce\.head\.kind: unknown kind 'linaer'; did you mean 'linear'"):
        METHODS.parse({"kind": "ce", "head": "linaer"})


def test_constructors_accept_short_forms_lists_and_dicts() -> None:
    assert LOS(head="cosine", sampler={"kind": "class_balanced"}) == METHODS.parse(  # type: ignore[arg-type]
        {"kind": "los", "head": "cosine", "sampler": "class_balanced"}
    )
    assert LogitAdjustLoss(prior=[0.5, 0.5], head=heads.Cosine()).prior == (0.5, 0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"head": "cosin"}, "head"),
        ({"head": object()}, "head"),
        ({"smooth_factor": "0.9"}, "valid number"),
        ({"lr": float("nan")}, "finite number"),
        ({"learning_rate": 0.1}, "Extra inputs"),
    ],
)
def test_constructors_reject_invalid_values(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LOS(**values)
