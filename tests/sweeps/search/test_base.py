"""Invalid search dimensions are refused."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from sweeps.search.base import Space


def space(text: str) -> Space:
    result: Space = TypeAdapter(Space).validate_json(text)
    return result


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"uniform": [0.5, 0.2]}', r"low must be below high, got \[0\.5, 0\.2\]"),
        ('{"uniform": [0.5, 0.5]}', r"low must be below high, got \[0\.5, 0\.5\]"),
        ('{"loguniform": [0, 1]}', r"low must be above 0 on a logarithmic scale, got \[0\.0, 1\.0\]"),
        ('{"int": [2, 1]}', r"low must be below high, got \[2, 1\]"),
        ('{"choice": []}', "at least 1 item"),
        ('{"choice": [1, 2, 1]}', "choices must differ, got 1 twice"),
        ('{"choice": [[1], 2]}', r"choices must be numbers, text, true, false or null, got \[1\]"),
        ('{"uniform": [0, Infinity]}', "finite number"),
    ],
)
def test_invalid_dimensions_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        space(f'{{"method.lr": {text}}}')
