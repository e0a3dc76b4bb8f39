"""Random search: deaf to results and to the order of the file."""

from __future__ import annotations

from pydantic import TypeAdapter

from sweeps.search.base import Space
from sweeps.search.random_search import RandomSearch
from sweeps.search.tpe import TreeParzen


def space(text: str) -> Space:
    result: Space = TypeAdapter(Space).validate_json(text)
    return result


def test_random_takes_no_notice_of_results() -> None:
    dimensions = space('{"a": {"uniform": [0, 1]}}')
    good, bad = RandomSearch().start(dimensions, 3), RandomSearch().start(dimensions, 3)
    for number in range(20):
        assert good.ask(number) == bad.ask(number)
        good.tell(number, 1.0)
        bad.tell(number, *((None,) if number % 2 else (0.5, 3)))
    assert RandomSearch().start(dimensions, 3).ask(0) != RandomSearch().start(dimensions, 4).ask(0)


def test_optuna_samplers_take_no_notice_of_the_order_of_the_file() -> None:
    one = space('{"a": {"uniform": [0, 1]}, "b": {"uniform": [0, 1]}}')
    other = space('{"b": {"uniform": [0, 1]}, "a": {"uniform": [0, 1]}}')
    for sampler in (TreeParzen(), RandomSearch()):
        assert sampler.start(one, 0).ask(0) == sampler.start(other, 0).ask(0)
