"""SIGTERM interrupts a sweep wherever it arrives."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import os, signal, time
from sweeps.experiment.signals import interrupt

signal.signal(signal.SIGTERM, interrupt)

class Collected:
    def __del__(self):
        self.clean_up()

    def clean_up(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)

try:
    {action}
    time.sleep(30)
except KeyboardInterrupt:
    print("stopped")
"""


def stopped(action: str) -> subprocess.CompletedProcess[str]:
    code = CODE.replace("{action}", action)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False)


def test_sigterm_is_an_interrupt() -> None:
    done = stopped("os.kill(os.getpid(), signal.SIGTERM)")
    assert (done.stdout, done.stderr) == ("stopped\n", "")


def test_sigterm_during_garbage_collection_is_not_lost() -> None:
    """Python discards an exception raised within `__del__`."""
    done = stopped("Collected()")
    assert (done.stdout, done.stderr) == ("stopped\n", "")
