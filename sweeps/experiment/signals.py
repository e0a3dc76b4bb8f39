"""SIGTERM as Ctrl-C, so that `lt-sweep stop`, Kubernetes or a shutdown end a sweep in an orderly way."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = ["interrupt", "sigterm_as_interrupt"]

RETRY_SECONDS = 0.1


def interrupt(number: int, frame: FrameType | None) -> None:
    """A signal handler that raises KeyboardInterrupt, or within a `__del__` sends the signal again a little later.

    Python reports an exception raised within a `__del__` and discards it, so a stop would be lost.
    """
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            timer = threading.Timer(RETRY_SECONDS, os.kill, (os.getpid(), number))
            timer.daemon = True
            timer.start()
            return
        frame = frame.f_back
    raise KeyboardInterrupt


@contextlib.contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Handle SIGTERM with `interrupt` in the block, unless this is not the main thread or a handler is set already."""
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
