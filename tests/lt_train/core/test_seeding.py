"""Streams: named, independent of the global generator, and distinct."""

import torch

from lt_train.core import seeding


def test_equal_names_give_equal_streams() -> None:
    names = [("a", 0, 1), ("a", 1, 0), ("b", 0, 1), ("a", 0), ("a", 0, 2)]
    drawn = [torch.rand(4, generator=seeding.generator(*name)) for name in names]  # type: ignore[arg-type]
    assert torch.equal(drawn[0], torch.rand(4, generator=seeding.generator("a", 0, 1)))
    assert len({tuple(numbers.tolist()) for numbers in drawn}) == len(names)


def test_the_global_generator_is_restored() -> None:
    before = torch.get_rng_state()
    with seeding.global_stream("cpu", "initialisation", 7):
        first = torch.rand(3)
    with seeding.global_stream("cpu", "initialisation", 7):
        second = torch.rand(3)
    assert torch.equal(first, second)
    assert torch.equal(before, torch.get_rng_state())
