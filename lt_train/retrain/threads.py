"""Independent tasks over the threads torch was given: one core each, instead of all cores for one small product.

A stack's products are too small to divide well: with a barrier at every operation two threads wait for each other. So
stacks are trained side by side, and cores are divided inside an operation only when there are fewer stacks than cores.
Knows torch's thread settings and nothing of training.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

import torch

__all__ = ["in_parallel"]


def in_parallel(tasks: Sequence[Iterator[None]], device: str) -> None:
    """Run every task to its end, on a CPU side by side with `torch.get_num_threads()` threads in all.

    Tasks are advanced a step (one `yield`) at a time, in turn, so that they end together even where they are not a
    multiple of the threads. An error in one of them, or Ctrl-C, ends the others at their next step and is raised.
    """
    threads = torch.get_num_threads()
    workers = min(threads, len(tasks)) if torch.device(device).type == "cpu" else 1
    waiting = deque(tasks)
    errors: list[BaseException] = []

    def work() -> None:
        while not errors:
            try:
                task = waiting.popleft()
            except IndexError:  # another thread took the last one
                return
            try:
                next(task)
            except StopIteration:
                continue
            except BaseException as error:
                errors.append(error)
                return
            waiting.append(task)

    if workers <= 1:
        work()
    else:
        torch.set_num_threads(threads // workers)
        try:
            with ThreadPoolExecutor(workers, thread_name_prefix="stack") as pool:
                try:
                    wait([pool.submit(work) for _ in range(workers)])
                except BaseException as error:  # Ctrl-C, which reaches this thread alone
                    errors.append(error)
        finally:
            torch.set_num_threads(threads)
    if errors:
        # Nothing here may go on holding an error, whose traceback holds all that was in training: memory may be short.
        del errors[1:]
        raise errors.pop()
