"""`check_kind`: what every kind must have, and the comparison of tensors for the other checks."""

from __future__ import annotations

import json
from typing import TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor

from lt_train.core.registry import KindSpec

__all__ = ["assert_close", "check_kind"]

SpecT = TypeVar("SpecT", bound=KindSpec)


def check_kind(kind: SpecT | type[SpecT], base: type[SpecT] | None = None) -> SpecT:
    """Check what every kind must have, and return the instance that was checked.

    The class names its kind, has a docstring and describes its fields; instances are immutable, hashable and the same
    after a round trip through JSON.

    Args:
        kind: an instance, or a class whose fields have defaults.
        base: the base class of its group, which it must have.

    Raises:
        AssertionError: a requirement is not met.
    """
    cls: type[SpecT] = kind if isinstance(kind, type) else type(kind)
    name = cls.__name__
    assert base is None or issubclass(cls, base), f"{name} must be a subclass of {base.__name__}"
    if isinstance(kind, type):
        try:
            kind = kind(**{})
        except ValidationError as error:
            problem = f"{name} has fields without valid defaults; pass an instance: {error}"
            raise AssertionError(problem) from None
    assert cls.kind_name(), f'{name} must name its kind: kind: Literal["..."] = "..."'
    assert kind.kind == cls.kind_name(), f"the default of {name}.kind must be {cls.kind_name()!r}"
    assert (cls.__doc__ or "").strip(), f"{name} needs a docstring; its first line is shown by `lt-sweep kinds`"
    for field, info in cls.model_fields.items():
        assert field == "kind" or info.description, f"{name}.{field} needs a description: Field(description=...)"
    text = kind.model_dump_json()
    assert cls.model_validate_json(text) == kind, f"{name} changes in a round trip through JSON: {text}"
    assert json.loads(text)["kind"] == kind.kind
    try:
        hash(kind)
    except TypeError as error:
        raise AssertionError(f"{name} must be hashable, so fields must be immutable: {error}") from None
    return kind


def assert_close(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], message: str) -> None:
    """Check that tensors are equal up to rounding in float64; otherwise `message` and the largest difference."""
    for one, other in zip(found, expected, strict=True):
        error = "" if one.shape == other.shape else f"shapes {tuple(one.shape)} and {tuple(other.shape)}"
        if not error and not torch.allclose(one, other, rtol=1e-5, atol=1e-8):
            error = f"largest difference {float((one - other).abs().max()):.3g}"
        assert not error, f"{message}: {error}"
