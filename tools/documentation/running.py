"""Runs the commands of a documentation page with bash, in a separate directory, with this tree's programs.

The output is normalized: progress and temporary directories are removed. `alike` compares two outputs except for
numbers.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from documentation.pages import ROOT, Block, commands

import lt_train.cli.app
import sweeps.cli.app

__all__ = ["Ended", "alike", "run", "run_here", "serve", "walk", "without_notes"]

BIN = Path(sys.executable).parent
PROGRAMS = {"lt-sweep": sweeps.cli.app.main, "lt-train": lt_train.cli.app.main}

_PROGRESS = re.compile(r"^.*: \d+/\d+ (images|runs|epochs|packs)\b.*\n", re.MULTILINE)
_NUMBER = re.compile(r"[+-]?\d+(?:[.,]\d+)*(?:e[+-]?\d+)?")
_OUTCOME = re.compile(r"^(winner:|trained #x as long:|\w+: (?=.*right over)).*")
_JUDGED = re.compile(r"\b(?:better|worse|tied|gained|lost|level|above|below|gains|falls)\b")
_AMOUNT = re.compile(r"# (?:s|ms|min|h|minutes|hours|B|KiB|MiB|GiB)\b")


@dataclass(frozen=True)
class Ended:
    """Exit code and output of commands."""

    code: int
    printed: str


def run(commands: str, place: Path) -> Ended:
    """Run commands with bash until one fails."""
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", commands],
        cwd=place,
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=300,
    )
    return Ended(done.returncode, _seen(done.stdout, place))


def run_here(commands: str, place: Path) -> Ended:
    """Run commands of this project in this process, which is faster, and others with `run`.

    The current directory must be `place`.
    """
    lines = commands.splitlines()
    if any(line.split()[0] not in PROGRAMS or re.search(r"[*$|<>;&]|--allow-import", line) for line in lines):
        return run(commands, place)
    assert Path.cwd() == place
    printed, code = io.StringIO(), 0
    handler = signal.getsignal(signal.SIGTERM)
    for line in lines:
        program, *arguments = shlex.split(line)
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            code = code or PROGRAMS[program](arguments)
    signal.signal(signal.SIGTERM, handler)
    return Ended(code, _seen(printed.getvalue(), place))


def serve(command: str, place: Path) -> Ended:
    """Run a command that serves a web page: request the page, then interrupt the command."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    # Port 5000 of the page may be in use.
    process = subprocess.Popen(
        [BIN / shlex.split(command)[0], *shlex.split(command)[1:], "--port", port],
        cwd=place,
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        printed = ""
        while not printed.endswith("(Ctrl-C stops the server)\n") and (line := process.stdout.readline()):
            printed += re.sub(r"\b(lt-)?[0-9a-f]{16,}\b", r"\1...", line)  # ids differ between sweeps
        opened = _opens(f"http://127.0.0.1:{port}/")
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(60)
    assert opened, printed
    return Ended(0 if process.returncode in (0, 130) else process.returncode, printed.replace(port, "5000"))


def walk(
    page: Iterable[Block],
    place: Path,
    *,
    how: Callable[[str, Path], Ended] = run,
    typed: Callable[[str], str | None] = lambda command: command,
) -> Iterator[tuple[Block, str]]:
    """Run the blocks of a page in order; yields each block of commands with its output.

    Args:
        page: the blocks. Blocks that are files are written to the current directory of the commands.
        place: home directory of the reader, where the first command is run.
        how: runs commands.
        typed: replaces a command, or returns None to leave it out.

    Raises:
        AssertionError: the exit code of a block is not 0.
    """
    here = place
    for block in page:
        if block.file is not None:
            (here / block.file).parent.mkdir(parents=True, exist_ok=True)
            (here / block.file).write_text(block.text)
        lines = [line for command in commands(block) if (line := typed(command)) is not None]
        printed = ""
        for serving, some in itertools.groupby(lines, key=lambda line: line.startswith("lt-sweep ui ")):
            text = "\n".join(some)
            ended = (serve if serving else how)(text, here)
            assert ended.code == 0, f"{text}\nended with {ended.code}:\n{ended.printed}"
            printed += ended.printed
            if moved := re.search(r"^cd ~/(\S+)$", text, re.MULTILINE):
                here = place / moved[1]
        if lines:
            yield block, printed


def alike(one: str, other: str) -> bool:
    """Whether two outputs are equal except for numbers, column widths and verdicts.

    Rounding differs between processors, and so may the best trial or method.
    """
    return _masked(one) == _masked(other)


def without_notes(printed: str) -> str:
    """Output without the lines that begin with `note:`, which a page may leave out."""
    return "".join(line for line in printed.splitlines(keepends=True) if not line.startswith("note: "))


def _masked(text: str) -> list[str]:
    """The lines with numbers and verdicts masked, sorted: the order of table rows depends on the results."""
    text = re.sub(r"\b[0-9a-f]{64}\b", "FINGERPRINT", text)
    text = _AMOUNT.sub("# s", _NUMBER.sub("#", text))
    text = _JUDGED.sub("JUDGED", re.sub(r"[─━═┄█#]+", "#", text))
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    return sorted({_OUTCOME.sub(r"\1", line) for line in lines})


def _seen(printed: str, place: Path) -> str:
    """Output without progress lines and without directories of this machine."""
    lines = [line.rstrip() for line in _PROGRESS.sub("", printed).splitlines()]
    return "".join(f"{line}\n" for line in lines).replace(f"{place}/", "").replace(f"{BIN}/", "")


def _environment() -> dict[str, str]:
    """The environment of a reader's shell, with the programs on the PATH. One thread, as in all tests."""
    own = {"PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    own["COLUMNS"] = "100"
    return {**os.environ, **own}


def _opens(url: str) -> bool:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with (
            contextlib.suppress(urllib.error.URLError, ConnectionError),
            urllib.request.urlopen(url, timeout=30) as page,
        ):
            return bool(page.status == 200)
        time.sleep(0.2)
    return False
