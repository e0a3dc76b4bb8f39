"""A bare word for a mapping, or a mapping without its kind, at any depth; what is no short form is left alone."""

import json
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field, ValidationError
from support.compositions import EVERY_PART

from lt_train.core.errors import SpecError
from lt_train.core.shorthand import Shorthand, expand
from lt_train.methods.base import METHODS


class Small(BaseModel):
    """A part."""

    kind: str = "small"
    size: int = 1


class Large(BaseModel):
    """Another, with a part of its own that may be written short."""

    kind: str = "large"
    part: Annotated[Small, Shorthand(("small", "tiny"))] = Small()


class Tree(BaseModel):
    """Every place where a short form may stand."""

    plain: Annotated[Small, Shorthand(("small",))] = Small()
    maybe: Annotated[Small | None, Shorthand(("small",))] = None
    named: Annotated[Small, Shorthand(("best",), meanings={"best": {"kind": "small", "size": 9}})] = Small()
    default: Annotated[Small, Shorthand((), default_kind="small")] = Small()
    items: Annotated[list[Small | Large], Shorthand(("small", "large"), each=True)] = Field(default_factory=list)
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
    assert json.dumps(short) == before, "the document itself is left as it is"


def test_what_is_written_out_stays_as_it_is() -> None:
    long = expand(Tree, {"plain": "small", "items": ["large"], "inside": "small", "named": "best"})
    assert expand(Tree, long) == long


@pytest.mark.parametrize(("kind", "part", "word"), EVERY_PART)
def test_every_part_of_a_method_may_be_a_word(kind: str, part: str, word: str) -> None:
    """What the word means is what the mapping means, refusals included."""

    def parsed(value: object) -> object:
        try:
            return METHODS.parse({"kind": kind, part: value})
        except SpecError as error:
            return str(error)

    assert parsed(word) == parsed({"kind": word})


@pytest.mark.parametrize("kind", METHODS.kinds())
def test_the_schema_of_a_method_takes_the_words_too(kind: str) -> None:
    """An editor that checks a sweep file by the schema must not mark what is allowed."""
    properties = METHODS.kinds()[kind].model_json_schema()["properties"]
    for part, field in METHODS.kinds()[kind].model_fields.items():
        for mark in field.metadata:
            if isinstance(mark, Shorthand):
                assert {"type": "string", "enum": list(mark.words)} in properties[part]["anyOf"], part


def test_a_word_that_is_no_kind_is_told_by_its_field() -> None:
    with pytest.raises(SpecError, match=r"ce\.head\.kind: unknown kind 'linaer'; did you mean 'linear'"):
        METHODS.parse({"kind": "ce", "head": "linaer"})


def test_a_short_form_is_for_documents_alone() -> None:
    """In Python a part is an object; a word there is a mistake."""
    with pytest.raises(ValidationError, match="head"):
        METHODS.kinds()["ce"](head="linear")
