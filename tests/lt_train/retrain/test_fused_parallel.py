"""Stacks train in parallel on torch's threads; the number of threads affects only the time."""

import gc
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
from support.banks import make_bank
from support.engines import assert_same, make_runs, stack_bytes

from lt_train.retrain import fused
from lt_train.retrain.base import EpochSelection, Halving
from lt_train.retrain.fused import in_parallel
from lt_train.retrain.stack import Stack


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# Tasks


@pytest.mark.parametrize("number", [1, 2, 3, 8])
@pytest.mark.parametrize("tasks", [0, 1, 2, 5])
def test_every_task_runs_to_its_end(number: int, tasks: int, threads: Callable[[int], None]) -> None:
    threads(number)
    done = [0] * tasks

    def task(index: int) -> Iterator[None]:
        for _ in range(3 + index):
            done[index] += 1
            yield

    in_parallel([task(index) for index in range(tasks)], "cpu")
    assert done == [3 + index for index in range(tasks)]
    assert torch.get_num_threads() == number


def test_tasks_are_advanced_in_turn(threads: Callable[[int], None]) -> None:
    """With one thread, all tasks are always at the same step."""
    threads(1)
    steps: list[int] = []

    def task(index: int) -> Iterator[None]:
        for _ in range(3):
            steps.append(index)
            yield

    in_parallel([task(index) for index in range(3)], "cpu")
    assert steps == [0, 1, 2] * 3


@pytest.mark.parametrize(
    ("number", "tasks", "each"), [(2, 2, 1), (2, 5, 1), (4, 2, 2), (5, 2, 2), (4, 1, 4), (3, 8, 1)]
)
def test_threads_are_divided_among_the_tasks(
    number: int, tasks: int, each: int, threads: Callable[[int], None]
) -> None:
    threads(number)
    seen, names = [], set()

    def task() -> Iterator[None]:
        for _ in range(4):
            seen.append(torch.get_num_threads())
            names.add(threading.current_thread().name)
            yield

    in_parallel([task() for _ in range(tasks)], "cpu")
    assert set(seen) == {each}
    assert len(names) <= min(number, tasks)


def test_a_cuda_device_uses_one_thread(threads: Callable[[int], None]) -> None:
    threads(4)
    seen = set()

    def task() -> Iterator[None]:
        for _ in range(2):
            seen.add((threading.current_thread(), torch.get_num_threads()))
            yield

    in_parallel([task() for _ in range(3)], "cuda")
    assert seen == {(threading.current_thread(), 4)}


@pytest.mark.parametrize("number", [1, 2, 4])
def test_an_error_ends_all_tasks_and_is_raised(number: int, threads: Callable[[int], None]) -> None:
    threads(number)
    running, failed, steps = threading.Event(), threading.Event(), []

    def endless() -> Iterator[None]:
        while len(steps) < 100:
            running.set()
            failed.wait(0.2)  # with more than one thread the error is raised meanwhile
            steps.append(None)
            yield

    def failing() -> Iterator[None]:
        running.wait(10)
        failed.set()
        raise ZeroDivisionError("raised by the task")
        yield

    with pytest.raises(ZeroDivisionError, match="raised by the task"):
        in_parallel([endless(), failing(), endless()], "cpu")
    assert len(steps) <= 2, "the others must end at their next step"
    assert torch.get_num_threads() == number


@pytest.mark.parametrize("number", [1, 2])
def test_an_interrupt_ends_all_tasks(number: int, threads: Callable[[int], None]) -> None:
    """Ctrl-C reaches only the main thread, which waits for the others."""
    threads(number)
    steps: list[None] = []

    def task() -> Iterator[None]:
        while len(steps) < 100:
            time.sleep(0.02)
            if len(steps) == 4:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            steps.append(None)
            yield

    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        in_parallel([task(), task()], "cpu")
    assert len(steps) < 20
    assert torch.get_num_threads() == number


@pytest.mark.parametrize("number", [1, 2])
def test_an_error_keeps_no_tensor_alive(number: int, threads: Callable[[int], None]) -> None:
    """A failed attempt must release its memory before a smaller one starts, without the garbage collector."""
    threads(number)
    alive: list[weakref.ref[torch.Tensor]] = []

    def task() -> Iterator[None]:
        held = torch.zeros(3)
        alive.append(weakref.ref(held))
        yield
        raise MemoryError(f"with {len(held)} held")

    def attempt() -> None:
        try:
            in_parallel([task(), task()], "cpu")
        except MemoryError:
            return
        pytest.fail("the error was lost")

    gc.disable()
    try:
        attempt()
        assert [reference() for reference in alive if reference() is not None] == []
    finally:
        gc.enable()


# Training


@pytest.mark.parametrize("number", [2, 3, 7])
@pytest.mark.parametrize("halving", [None, Halving((1, 3))], ids=["whole", "halved"])
def test_results_do_not_depend_on_the_number_of_threads(
    number: int, halving: Halving | None, threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    bank, rule = make_bank(), EpochSelection("best")
    monkeypatch.setattr(fused, "STACK_BYTES", stack_bytes(bank, make_runs("los")[0], 2))
    runs = [*make_runs("los"), *make_runs("lws"), *make_runs("disalign"), *make_runs("tau_norm")]
    threads(1)
    expected = fused.fit(bank, runs, rule=rule, halving=halving)
    threads(number)
    for run, found, wanted in zip(runs, fused.fit(bank, runs, rule=rule, halving=halving), expected, strict=True):
        assert_same(bank, run, found, wanted, 1e-6, rule)


@pytest.mark.parametrize("number", [1, 2])
def test_an_error_in_one_stack_is_raised(
    number: int, threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    train_epoch = Stack.train_epoch

    def failing(self: Stack) -> torch.Tensor:
        if self.runs_ST[0][0].seed == 7 and self.finished == 1:
            raise ZeroDivisionError("in the second epoch of seed 7")
        return train_epoch(self)

    monkeypatch.setattr(Stack, "train_epoch", failing)
    monkeypatch.setattr(fused, "STACK_BYTES", {"cpu": 1})
    threads(number)
    with pytest.raises(ZeroDivisionError, match="in the second epoch of seed 7"):
        fused.fit(make_bank(), make_runs("los"))
    assert torch.get_num_threads() == number


@pytest.mark.parametrize("lanes", [0, 1, 2, 4])
@pytest.mark.parametrize("kind", ["los", "cosine"])
def test_the_size_of_stacks_does_not_affect_results(kind: str, lanes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    bank, rule = make_bank(), EpochSelection("best")
    runs = make_runs(kind, epochs=2, seeds=(*(0, 7, 9) * 7, 0, 7))
    expected = fused.fit(bank, runs, rule=rule)
    shapes: list[tuple[int, int]] = []
    make = Stack.__init__

    def recorded(self: Stack, *arguments: object) -> None:
        make(self, *arguments)  # type: ignore[arg-type]
        shapes.append(self.shape)

    monkeypatch.setattr(Stack, "__init__", recorded)
    monkeypatch.setattr(fused, "STACK_BYTES", stack_bytes(bank, runs[0], lanes))
    for run, found, wanted in zip(runs, fused.fit(bank, runs, rule=rule), expected, strict=True):
        assert_same(bank, run, found, wanted, 1e-5, rule)
    sizes = [seeds * width for seeds, width in shapes]
    assert sum(sizes) == len(runs) == 23
    assert max(sizes) == max(1, lanes)


def test_a_stack_holds_all_that_fits() -> None:
    """Two seeds of three lanes are one stack; the third seed, of two, is another."""
    pack = fused._PackTraining(
        make_bank(), make_runs("los", seeds=(0, 7, 9, 0, 7, 9, 0, 7)), "cpu", EpochSelection(), None
    )
    assert [stack.shape for stack in pack._stacks(range(8))] == [(2, 3), (1, 2)]
