"""Grid search: the product, in the order of the file."""

from __future__ import annotations

from pydantic import TypeAdapter

from sweeps.search.base import Space
from sweeps.search.grid import Grid


def space(text: str) -> Space:
    result: Space = TypeAdapter(Space).validate_json(text)
    return result


def test_grid_walks_the_product_in_the_order_of_the_file() -> None:
    points = space('{"b": {"choice": ["x", "y"]}, "a": {"int": [1, 3]}}')
    search = Grid().start(points, seed=0)
    walked = [search.ask(number) for number in range(7)]
    assert walked == [
        {"b": "x", "a": 1},
        {"b": "x", "a": 2},
        {"b": "x", "a": 3},
        {"b": "y", "a": 1},
        {"b": "y", "a": 2},
        {"b": "y", "a": 3},
        None,
    ]
    assert Grid().size(points) == 6


def test_grid_refuses_ranges_of_decimals() -> None:
    problems = dict(Grid().check(space('{"a": {"int": [1, 3]}, "b": {"uniform": [0, 1]}}')))
    assert problems == {"b": "a grid needs {choice: [...]} or {int: [low, high]}, got {uniform: ...}"}


def test_grid_writes_no_huge_product_out() -> None:
    huge = space('{"a": {"int": [0, 1000000000]}, "b": {"int": [0, 1000000000]}}')
    assert Grid().start(huge, 0).ask(1_000_000_001) == {"a": 1, "b": 0}
