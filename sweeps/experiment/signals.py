"""SIGTERM taken as Ctrl-C, so that `lt-sweep stop`, Kubernetes or a shutdown end a sweep in good order.

Knows signals, and nothing of sweeps.
"""

from __future__ import annotations

import os
import threading
from types import FrameType

__all__ = ["interrupt"]

AGAIN_SECONDS = 0.1


def interrupt(number: int, frame: FrameType | None) -> None:
    """A signal handler that raises KeyboardInterrupt; a moment later where Python would drop it.

    Python only reports what is raised within a `__del__`, and goes on: a stop that came while something of Ray's was
    being collected was lost.
    """
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            again = threading.Timer(AGAIN_SECONDS, os.kill, (os.getpid(), number))
            again.daemon = True
            again.start()
            return
        frame = frame.f_back
    raise KeyboardInterrupt
