"""A server of MLflow's pages on this machine, for as long as somebody looks at them. Knows processes; no MLflow.

`serve` runs a command that listens at a port, says where the pages are, and ends it and its workers whatever happens.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Sequence

from lt_train.core.errors import LongtailError, UserError

__all__ = ["serve"]

GRACE = 10.0
"""Seconds that a server which was told to end may take for it."""


def serve(command: Sequence[str], port: int, pages: Sequence[str]) -> int:
    """Run a server until it ends or this process is stopped; its exit code.

    Args:
        command: the server, which answers to `/health`.
        port: on this machine, where it will listen.
        pages: what to print once it answers.

    Raises:
        UserError: the port is taken.
        LongtailError: it ended by itself; with the end of what it said.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise UserError(f"port {port} cannot be had ({error.strerror}); choose another with --port") from None
    with tempfile.TemporaryFile("w+") as log:
        # In a group of its own, so that its workers end with it, and Ctrl-C is ours alone.
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            if _answers(server, port):
                print("\n".join([*pages, "(Ctrl-C stops the server)"]), flush=True)
            if server.wait():
                log.seek(0)
                raise LongtailError(f"MLflow's server ended with {server.returncode}:\n{log.read()[-2000:]}")
            return 0
        finally:
            _end(server)


def _answers(server: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until the server takes connections; False when it ended instead."""
    while server.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                return True
        except OSError:
            time.sleep(0.2)
    return False


def _end(server: subprocess.Popen[bytes]) -> None:
    """End the server and its workers; what is slow to end is killed."""
    server.terminate()
    try:
        server.wait(GRACE)
    except subprocess.TimeoutExpired:
        pass
    try:
        os.killpg(server.pid, signal.SIGKILL)
    except ProcessLookupError:  # all of them ended
        pass
    server.wait()
