"""Streams: named, independent of the global generator, and distinct."""

from dataclasses import replace

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


def test_the_numbers_of_a_step_are_those_of_its_seed_name_and_position() -> None:
    def sample(stream: torch.Generator, images: int) -> torch.Tensor:
        return torch.rand(images, 2, generator=stream)

    step = seeding.Step((3, 8), epoch=1, epochs=4, number=2, images=5)
    stacked = step.draw("noise", sample)
    assert stacked.shape == (2, 5, 1, 2)
    for s, seed in enumerate((3, 8)):
        assert torch.equal(stacked[s, :, 0], step.of(seed).draw("noise", sample))
    others = [replace(step, epoch=2), replace(step, number=1), step.of((3, 9)), replace(step, seed=(8, 3))]
    assert not any(torch.equal(other.draw("noise", sample), stacked) for other in others)
    assert not torch.equal(step.draw("other", sample), stacked)
    assert step.draw("one", lambda stream, images: torch.rand(images, generator=stream)).shape == (2, 5, 1)
