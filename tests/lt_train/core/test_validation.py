"""Error messages for invalid values."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from lt_train.core.errors import SpecError
from lt_train.core.registry import Spec
from lt_train.core.validation import Problem, dotted, explain, offer
from lt_train.methods.base import METHODS


class Cat(Spec):
    kind: Literal["cat"] = "cat"
    lives: Annotated[int, Field(ge=1, le=9)] = 9


class Dog(Spec):
    kind: Literal["dog"] = "dog"
    name: str = Field(default="Rex", pattern="^[A-Z]", description="text that starts with a capital")


class Home(Spec):
    pet: Annotated[Cat | Dog, Field(discriminator="kind")] | None = None
    guests: dict[str, Cat] = Field(default={})
    ages: list[int] = Field(default=[1], min_length=1, max_length=3)
    rooms: str | Annotated[tuple[str, ...], Field(min_length=1)] = "all"
    corners: list[float] = Field(default=[0.0, 1.0], min_length=2, max_length=2)
    mood: Literal["calm", "wild"] = "calm"
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    most: Annotated[float, Field(le=5)] = 5
    open: bool = True

    @model_validator(mode="after")
    def _quiet(self) -> Home:
        if self.mood == "wild" and not self.open:
            raise PydanticCustomError("rules", "rules", {"problems": [Problem(("mood",), "one"), Problem((), "two")]})
        return self


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            '{"pett": 1}',
            "pett: unknown key; did you mean 'pet'? known: pet, guests, ages, rooms, corners, mood, share, most, open",
        ),
        ('{"pet": {"kind": "dogg"}}', "pet.kind: unknown kind 'dogg'; did you mean 'dog'? known: cat, dog"),
        ('{"pet": {"lives": 3}}', "pet: kind is required; known: cat, dog"),
        ('{"pet": 3}', "pet: must be a mapping with the key kind, got 3"),
        ('{"pet": {"kind": "cat", "lives": 10}}', "pet.lives: must be in [1, 9], got 10"),
        ('{"pet": {"kind": "cat", "lives": 1.5}}', "pet.lives: must be a whole number, got 1.5"),
        ('{"pet": {"kind": "cat", "zzz": 1}}', "pet.zzz: unknown key; known: kind, lives"),
        ('{"pet": {"kind": "dog", "name": "x"}}', "pet.name: must be text that starts with a capital, got 'x'"),
        ('{"guests": {"tom": {"lives": 0}}}', "guests.tom.lives: must be in [1, 9], got 0"),
        ('{"ages": []}', "ages: must have at least 1 and at most 3 entries, got []"),
        ('{"ages": [1, "x"]}', "ages[1]: must be a whole number, got 'x'"),
        ('{"ages": 1}', "ages: must be a list, got 1"),
        ('{"rooms": 3}', "rooms: must be text or a list, got 3"),
        ('{"rooms": []}', "rooms: must have at least 1 entry, got []"),
        ('{"rooms": ["hall", 3]}', "rooms[1]: must be text, got 3"),
        ('{"corners": [1]}', "corners: must have 2 entries, got [1]"),
        ('{"mood": "clam"}', "mood: must be 'calm' or 'wild', got 'clam'; did you mean 'calm'?"),
        ('{"share": 1.0}', "share: must be in (0, 1), got 1.0"),
        ('{"share": NaN}', "share: must be a finite number, got NaN"),
        ('{"most": 6}', "most: must be at most 5, got 6"),
        ('{"open": "yes"}', "open: must be true or false, got 'yes'"),
    ],
)
def test_messages(text: str, expected: str) -> None:
    with pytest.raises(ValidationError, match="validation error") as caught:
        Home.model_validate_json(text)
    assert [f"{dotted(loc)}: {message}" for loc, message in explain(caught.value, Home)] == [expected]


def test_a_validator_may_report_several_problems() -> None:
    with pytest.raises(ValidationError, match="validation error") as caught:
        Home.model_validate_json('{"mood": "wild", "open": false}')
    assert explain(caught.value, Home) == [Problem(("mood",), "one"), Problem((), "two")]


def test_long_values_are_shortened() -> None:
    with pytest.raises(ValidationError, match="validation error") as caught:
        Home.model_validate_json('{"ages": "' + "x" * 500 + '"}')
    assert len(explain(caught.value, Home)[0].message) < 100


def test_registries_use_the_same_messages() -> None:
    with pytest.raises(SpecError, match="unknown") as caught:
        METHODS.parse({"kind": "los", "smooth_factor": 1.0, "smoth": 2})
    assert caught.value.problems == [
        "los.smooth_factor: must be in [0, 1), got 1.0",
        "los.smoth: unknown key; did you mean 'smooth_factor'? "
        "known: kind, head, post_hoc, lr, weight_decay, momentum, init, sampler, constraint, smooth_factor",
    ]
    with pytest.raises(SpecError, match=r"kind: 'loss' is unknown; did you mean 'los'\? known: "):
        METHODS.parse({"kind": "loss"})


def test_suggestions_start_with_the_nearest() -> None:
    assert offer("unifrom", ["int", "uniform"]) == "; did you mean 'uniform'? known: int, uniform"
    assert offer("zzz", ["int"]) == "; known: int"
