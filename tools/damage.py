"""Damage the files of a storage and check how the program handles it: `python tools/damage.py`.

A matrix of two small sweeps is run once, from images to results, and its storage is kept twice: finished, and as an
interruption of the second sweep leaves it. Each case restores one of the two (the unfinished one in every third case),
flips one bit of a random file or cuts off the end of the file, reads the sweeps, and resumes them.

- Before the resume, table, comparison and reports show the right numbers, or say what is missing or damaged. A number
  that is shown is always right. (Not compared are figures of logits if a head is damaged, because they show other
  methods, and the order of classes if the bank is damaged.)
- The resume ends with the same results, table, comparison, artifacts and reports as an undisturbed run, apart from
  times, and with one version of Optuna.
- Runs are trained again only if they were in the damaged file.
- The damaged file is named, by an error, a statement about missing data, or a record in the log of the resume. This is
  not required where damage has no effect: the content is still the same (a JSON document with `1E-05` instead of
  `1e-05`), or the file is derived from others or describes a process that has ended: `result.json`, `artifacts/`,
  `progress.json`, and released leases. Readers do not use these files, so they must show everything.

The ledger of an unfinished sweep that is cut short by one pack looks like that of an earlier time; readers call it
unfinished.

Any violation is printed, and the program ends with 1. Figures are not drawn, only their data is compared; with
`--commands` the last of these cases go through the command line, which draws them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

import sweeps
from lt_train.core.errors import LongtailError
from sweeps.analysis.load import read_sweep
from sweeps.analysis.matrix_table import matrix_table
from sweeps.config.matrix import SweepMatrix, load_matrix
from sweeps.experiment.events import Event, SweepStarted, TrialFinished
from sweeps.reporting import artifacts, write
from sweeps.store import lease
from sweeps.store.directory import load_matrix_directory

SWEEPS = """
version: 1
name: small
dataset: {kind: digits_lt, n_max: 60}
backbone: {kind: small_cnn, width: 4}
stage1: {kind: ce, epochs: 1}
features: {views: 1}
method: los
matrix:
  training.epochs: [2, 3]
search:
  algorithm: tpe
  trials: 4
  proposal_batch: 2
  space:
    method.smooth_factor: {uniform: [0.2, 0.98]}
    method.lr: {loguniform: [1.0e-3, 1.0e-1]}
selection: {on: val, seeds: 2, finalists: 1, extended_training: 2}
resources: {lanes_per_pack: 2}
backend: inline
tracking: none
"""

ReadT = TypeVar("ReadT")

NOT_COMPARED = {"cost.csv", "cost.md", "cost.tex", "index.html"}
"""Files of a report that contain times."""

DERIVED = ("result.json", "progress.json", "in artifacts/", "lease")
"""Kinds of files whose damage has no effect."""

TRIALS_BEFORE_INTERRUPTION = 4
"""Of 8: two baselines, four of the search, one finalist, and extended training."""


class Wrong(Exception):
    """The program did not do what it promises."""


@dataclass(frozen=True)
class State:
    """A storage before it is damaged.

    Attributes:
        saved: a copy that is kept unharmed.
        files: the files that are damaged, relative to the storage.
        runs: the pack of each recorded run, by sweep, key and time of recording.
        shown: what readers show.
    """

    saved: Path
    files: tuple[Path, ...]
    runs: Mapping[tuple[str, str, int], str]
    shown: Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """One damaged file in the working copy of a state."""

    state: State
    file: Path
    what: str
    cut: bool
    same_content: bool

    def __str__(self) -> str:
        return f"{self.state.saved.name}: {self.file}, {self.what}"

    @property
    def sweep(self) -> str:
        """The name of the sweep that the file belongs to; that of another directory if it belongs to none."""
        return self.file.parts[0]

    @property
    def has_effect(self) -> bool:
        """Whether the damage may change something, so that the program has to name the file."""
        return _kind(self.file) not in DERIVED and not self.same_content

    @property
    def is_cut_ledger(self) -> bool:
        """Whether the ledger may look like one of an earlier time."""
        return self.cut and self.file.name == "ledger.jsonl"

    def is_named(self, said: list[str]) -> bool:
        """Whether a statement contains the name and the directories of the file."""
        if self.is_cut_ledger:  # the resume names it only if it restores runs; less may be missing
            return True
        parts = [part for part in self.file.parts if part != "cache"]
        return any(all(part in "".join(one.split()) for part in parts) for one in said)


class Storage:
    """The states of a matrix, and a working copy at the place where it ran."""

    def __init__(self, place: Path) -> None:
        self.place = place / "runs"
        file = place / "small.yaml"
        file.write_text(f"{SWEEPS}storage: {self.place}\n")
        self.matrix: SweepMatrix = load_matrix(file)
        self.members = [self.place / spec.name for spec in self.matrix.sweeps]
        sweeps.run(self.matrix)
        self.finished = self._state(place / "finished")
        self.truth = self.everything()
        shutil.rmtree(self.place)
        try:
            sweeps.run(self.matrix, callbacks=[_interruption(self.members[1].name)])
        except KeyboardInterrupt:
            pass
        self.unfinished = self._state(place / "unfinished", self.members[0].name)

    def _state(self, saved: Path, left_out: str = "") -> State:
        shutil.copytree(self.place, saved)
        files = [file.relative_to(saved) for file in sorted(saved.rglob("*")) if file.is_file() and file.stat().st_size]
        files = [file for file in files if file.parts[0] != left_out]
        return State(saved, tuple(files), self.recorded_runs(), self.shown())

    def draw(self, stream: random.Random, *, cut: bool, leases: bool = True) -> Case:
        """Restore a random state and damage a random file; every kind of file has equal probability."""
        state = self.unfinished if stream.randrange(3) == 0 else self.finished
        kinds = sorted({_kind(file) for file in state.files if leases or _kind(file) != "lease"})
        kind = stream.choice(kinds)
        name = stream.choice([file for file in state.files if _kind(file) == kind])
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(state.saved, self.place, copy_function=_link_or_copy)
        what = damage(self.place / name, stream, cut=cut)
        same = _same_content(state.saved / name, self.place / name)
        return Case(state, name, what, cut, same)

    def recorded_runs(self) -> dict[tuple[str, str, int], str]:
        """The pack of each recorded run, by sweep, key and time of recording."""
        lines = [(member.name, line) for member in self.members for line in _lines(member / "ledger.jsonl")]
        return {(name, one["key"], one["at_ms"]): one["pack"] for name, one in lines if one["event"] == "run"}

    def shown(self) -> dict[str, Any]:
        """The numbers that readers show, without times: table, comparison, and the files of reports."""
        shown: dict[str, Any] = {"table": self.table(), "comparison": self.comparison()}
        for member in self.members:
            shown |= {f"{member.name} {name}": text for name, text in _report(member).items()}
        return shown

    def everything(self) -> dict[str, Any]:
        """All numbers of finished sweeps: what readers show, results, artifacts, and versions of libraries."""
        shown = self.shown()
        for member in self.members:
            shown[f"{member.name} proposed with"] = read_sweep(member).ledger.proposed_with
            for file in (member / "result.json", *sorted((member / "artifacts").rglob("*"))):
                if file.suffix != ".png":
                    shown[f"{member.name} {file.relative_to(member)}"] = _without_times(file)
        return shown

    def table(self) -> dict[str, Any]:
        """The table of the matrix."""
        return matrix_table(load_matrix_directory(self.place / "small")).model_dump(mode="json")

    def comparison(self) -> dict[str, Any]:
        """The comparison of the sweeps."""
        return sweeps.compare(*self.members).model_dump(mode="json")

    def check_readers(self, case: Case) -> list[str]:
        """Before the resume: right numbers, or a statement of what is damaged. Returns the statements."""
        said: list[str] = []
        true = case.state.shown
        if (table := _attempt(self.table, said)) is not None:
            for row, expected in zip(table["rows"], true["table"]["rows"], strict=True):
                if row != expected:
                    if not row["missing"]:
                        raise Wrong(f"the table shows other numbers: {_difference(expected, row)}")
                    said.append(row["missing"])
        partial = {member.name for member in self.members if self._check_report(member, case, said)}
        if (found := _attempt(self.comparison, said)) is not None:
            expected = true["comparison"]
            said += [text for sweep in found["sweeps"] for text in sweep["missing"]]
            for name, one, other in zip(self.members, expected["sweeps"], found["sweeps"], strict=True):
                if name.name not in partial:
                    _check_shown(one, other, "the comparison")
            if not partial:
                _check_shown(expected, found, "the comparison")
        if said and not case.has_effect:
            raise Wrong(f"readers complain about damage without effect: {said[0]}")
        return said

    def _check_report(self, member: Path, case: Case, said: list[str]) -> bool:
        """Check the report of a sweep; returns whether its ledger lacks its end, so that it has other numbers."""
        if (sweep := _attempt(lambda: read_sweep(member), said)) is None:
            return False
        said += [*sweep.missing, *([sweep.test_error] if sweep.test_error else [])]
        partial = case.is_cut_ledger and case.sweep == member.name and sweep.state == "unfinished"
        if partial and (member / "result.json").exists():
            raise Wrong("readers call a finished sweep unfinished")
        if (files := _attempt(lambda: _report(member), said)) is None or partial:
            return partial
        true = {name: text for name, text in case.state.shown.items() if name.startswith(f"{member.name} ")}
        shown = {f"{member.name} {name}": text for name, text in files.items()}
        if sweep.manifest is None:  # classes are in the order of their numbers instead of their sizes
            for name in ("class_accuracy.csv", "loma.csv"):
                shown.pop(f"{member.name} data/{name}", None)
        lost_head = _kind(case.file) == "in heads/"
        if lost_head:  # the figures of logits show other methods instead
            for name in ("logits.csv", "one_image.csv"):
                shown.pop(f"{member.name} data/{name}", None)
        may_lack = sweep.manifest is None or sweep.test_error or lost_head
        if not shown.items() <= true.items() or (not may_lack and shown != true):
            raise Wrong(f"the report shows other numbers: {_difference(true, shown)}")
        return False

    def resume(self) -> list[str]:
        """Resume the matrix; if its own file is damaged, run its file again. Returns errors and the log."""
        with _log() as said:
            try:
                sweeps.resume(self.place / "small")
            except LongtailError as error:
                if "matrix.json is damaged" not in str(error):
                    raise
                said.append(str(error))
                sweeps.run(self.matrix)
        return said

    def check(self, case: Case, said: list[str]) -> int:
        """After the resume: everything as in an undisturbed run. Returns how many runs were trained again."""
        everything = self.everything()
        if everything != self.truth:
            raise Wrong(f"after the resume: {_difference(self.truth, everything)}")
        if found := [one for one in said if "proposed with" in one]:
            raise Wrong(f"the resume says that trials were proposed with another version: {found[0]}")
        if case.has_effect and not case.is_named(said):
            raise Wrong(f"nothing names the damaged file; said was: {said}")
        runs = self.recorded_runs()
        before = {(sweep, key): pack for (sweep, key, _), pack in case.state.runs.items()}
        again = {(sweep, key) for sweep, key, at_ms in runs if (sweep, key, at_ms) not in case.state.runs}
        if case.state is self.unfinished:
            again &= before.keys()
        hurt = case.file.name.rsplit(".", 2)[0] if _kind(case.file) in ("in packs/", "in heads/") else None
        for sweep, key in sorted(again):
            if (sweep, before.get((sweep, key))) != (case.sweep, hurt):
                raise Wrong(f"run {key[:12]} of {sweep} was trained again, though it was not damaged")
        return len(again)

    def try_case(self, case: Case) -> tuple[bool, int]:
        """Check a case; returns whether readers named the damage, and how many runs were trained again."""
        said = self.check_readers(case)
        return bool(said), self.check(case, said + self.resume())

    def try_commands(self, case: Case) -> int:
        """Check a case through the command line; returns how many runs were trained again."""
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        said: list[str] = []

        def command(*words: object) -> subprocess.CompletedProcess[str]:
            line = [str(Path(sys.executable).with_name("lt-sweep")), *map(str, words)]
            done = subprocess.run(line, capture_output=True, text=True, env=environment)
            if "Traceback" in done.stderr:
                raise Wrong(f"{words[0]} gives a traceback: {done.stderr.splitlines()[-1]}")
            said.append(done.stdout + done.stderr)
            return done

        for words in (("report", *self.members, "--out", self.place / "before"), ("table", self.place / "small")):
            command(*words)
        if "matrix.json is damaged" in command("resume", self.place / "small").stderr:
            command("run", self.place.parent / "small.yaml")
        before = said.copy()
        for words in (("report", self.members[0]), ("table", self.place / "small"), ("compare", *self.members)):
            if (done := command(*words)).returncode:
                raise Wrong(f"{words[0]} ends with {done.returncode} after the resume: {done.stderr}")
        return self.check(case, before)


def damage(file: Path, stream: random.Random, *, cut: bool) -> str:
    """Flip one bit of a file or cut off its end; returns what was done."""
    content = bytearray(file.read_bytes())
    place = stream.randrange(len(content))
    file.unlink()  # it may be a hard link
    if cut:
        file.write_bytes(content[:place])
        return f"cut to {place} of {len(content)} bytes"
    bit = stream.randrange(8)
    content[place] ^= 1 << bit
    file.write_bytes(content)
    return f"bit {bit} of byte {place} of {len(content)} flipped"


def main() -> int:
    """Run all cases and print a summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=2000, help="cases with one flipped bit (default: 2000)")
    parser.add_argument("--cuts", type=int, default=200, help="cases with a file cut short (default: 200)")
    parser.add_argument("--commands", type=int, default=50, help="of these, through the command line (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="of the random cases (default: 0)")
    options = parser.parse_args()
    torch.set_num_threads(1)  # their number may change the last bit of a result
    stream, began = random.Random(options.seed), time.monotonic()
    faults: list[str] = []
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as directory:
        drawn = artifacts.draw_png, write.draw_svg, lease.EXPIRY
        artifacts.draw_png = lambda figure, path: path.write_text(figure.title)  # type: ignore[assignment]
        write.draw_svg = lambda figure, prefix: ""  # type: ignore[assignment]
        lease.EXPIRY = 0.1  # an owner whose lease is damaged may be alive
        storage = Storage(Path(directory))
        cases = [False] * options.flips + [True] * options.cuts
        stream.shuffle(cases)
        for number, cut in enumerate(cases):
            commands = number >= len(cases) - options.commands
            case = storage.draw(stream, cut=cut, leases=not commands)  # a command waits 30 s for a damaged lease
            try:
                if commands:
                    trained = storage.try_commands(case)
                else:
                    named, trained = storage.try_case(case)
                    outcomes["named by readers"] += named
                outcomes["runs trained again"] += trained
                outcomes["cases with runs trained again"] += bool(trained)
            except Exception as error:  # a traceback is a fault, too
                faults.append(f"{case}: {type(error).__name__}: {error}")
                print(f"FAULT: {faults[-1]}", flush=True)
            outcomes[f"{case.state.saved.name}: {_kind(case.file)}"] += 1
            if number % 100 == 99:
                print(f"{number + 1} of {len(cases)} cases, {time.monotonic() - began:.0f} s", flush=True)
        artifacts.draw_png, write.draw_svg, lease.EXPIRY = drawn
    for kind, count in sorted(outcomes.items()):
        print(f"{count:6} {kind}")
    print(f"{len(cases)} cases, {len(faults)} faults, {time.monotonic() - began:.0f} s")
    return bool(faults)


def _interruption(sweep: str) -> Callable[[Event], None]:
    """A callback that interrupts a sweep of a matrix after some of its trials."""
    running, finished = "", 0

    def callback(event: Event) -> None:
        nonlocal running, finished
        if isinstance(event, SweepStarted):
            running = event.spec.name
        if isinstance(event, TrialFinished) and running == sweep:
            finished += 1
            if finished == TRIALS_BEFORE_INTERRUPTION:
                raise KeyboardInterrupt

    return callback


@contextlib.contextmanager
def _log() -> Iterator[list[str]]:
    """Collect the records of the program's loggers."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    loggers = [logging.getLogger(name) for name in ("sweeps", "lt_train")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield messages
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


def _attempt(read: Callable[[], ReadT], said: list[str]) -> ReadT | None:
    """What `read` returns; if it refuses, None, and its error is added to `said`."""
    with _log() as messages:
        try:
            return read()
        except LongtailError as error:
            messages.append(str(error))
            return None
        finally:
            said += messages


def _report(member: Path) -> dict[str, str]:
    """The data and tables of a sweep's report by name, without times."""
    place = sweeps.report(member).parent
    files = {str(file.relative_to(place)): file for file in sorted(place.rglob("*")) if file.is_file()}
    shown = {name: file.read_text() for name, file in files.items() if file.name not in NOT_COMPARED}
    shutil.rmtree(place)
    return shown


def _without_times(file: Path) -> Any:
    if file.name != "result.json":
        return file.read_text()
    result = json.loads(file.read_text())
    del result["seconds"]
    return result


def _check_shown(true: Any, found: Any, where: str) -> None:
    """Every value in `found` is the true one or absent; statements about missing data are not compared."""
    if isinstance(true, dict) and isinstance(found, dict):
        for key in found.keys() - {"missing", "cautions"}:
            _check_shown(true.get(key), found[key], f"{where}.{key}")
    elif isinstance(true, list) and isinstance(found, list) and len(true) == len(found):
        for number, (one, other) in enumerate(zip(true, found, strict=True)):
            _check_shown(one, other, f"{where}[{number}]")
    elif found not in (true, None, [], {}):
        raise Wrong(f"other numbers are shown: {_difference(true, found, where)}")


def _same_content(before: Path, after: Path) -> bool:
    """Whether a JSON document or a checkpoint has the same content as before."""
    try:
        return bool(_content(before) == _content(after))
    except (ValueError, KeyError):
        return False


def _content(file: Path) -> Any:
    """A file without the freedom that JSON leaves to notation."""
    content = file.read_bytes()
    if file.suffix == ".json":
        return json.dumps(json.loads(content), sort_keys=True)
    if file.parent.name == "checkpoints":
        size = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:size])
        header["__metadata__"] = {name: json.loads(text) for name, text in header["__metadata__"].items()}
        return json.dumps(header, sort_keys=True), content[size:]
    return content


def _link_or_copy(source: str, target: str) -> None:
    if source.endswith(".safetensors"):
        os.link(source, target)
    else:
        shutil.copy2(source, target)


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    for text in file.read_bytes().split(b"\n"):
        if text:
            yield json.loads(text)


def _kind(name: Path) -> str:
    """What a file is: its folder, and its name unless that differs between sweeps."""
    folder = name.parent.name
    if folder == "locks":
        return "lease"
    return f"in {folder}/" if folder in ("packs", "heads", "checkpoints", "artifacts") else name.name


def _difference(before: Any, after: Any, where: str = "") -> str:
    """The first place in which two documents differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in before.keys() | after.keys():
            if before.get(key) != after.get(key):
                return _difference(before.get(key), after.get(key), f"{where}.{key}")
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for number, (one, other) in enumerate(zip(before, after, strict=True)):
            if one != other:
                return _difference(one, other, f"{where}[{number}]")
    return f"{where}: {str(before)[:200]!r} became {str(after)[:200]!r}"


if __name__ == "__main__":
    sys.exit(main())
