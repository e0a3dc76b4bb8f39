"""Damage every kind of file of finished sweeps and check what the program makes of it: `python tools/damage.py`.

A matrix of two small sweeps is run once, from images to results. Then, again and again, one bit of a random file of its
storage is flipped or the end of the file is cut off; the sweeps are resumed, and their report, table and comparison are
made. Everything must be as it was before the damage, to the last digit, apart from times. In between, before the
resume, readers must give the right numbers, say what is damaged, or refuse. Runs are trained again only if they were in
the damaged file. Any violation is printed, and the program ends with 1.

Figures are not drawn, only their data is compared; with `--commands` the last of these cases go through the command
line, which draws them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import sweeps
from lt_train.core.errors import LongtailError
from sweeps.analysis.load import read_sweep
from sweeps.config.matrix import SweepMatrix, load_matrix
from sweeps.reporting import artifacts, write

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

NOT_COMPARED = {"cost.csv", "cost.md", "cost.tex", "index.html"}
"""Files of a report that contain times."""

IGNORED = re.compile(r"\.lease$|/damaged/|/report/|\.damaged")


class Wrong(Exception):
    """The program did not do what it promises."""


class Storage:
    """A finished matrix, kept unharmed in `saved`, and its working copy at the place where it ran."""

    def __init__(self, place: Path) -> None:
        self.place, self.saved = place / "runs", place / "saved"
        file = place / "small.yaml"
        file.write_text(f"{SWEEPS}storage: {self.place}\n")
        self.matrix: SweepMatrix = load_matrix(file)
        sweeps.run_matrix(self.matrix)
        self.members = [self.place / spec.name for spec in self.matrix.sweeps]
        self.truth = self.everything()
        self.packs = self.recorded_packs()
        for member in self.members:
            shutil.rmtree(member / "report")
        shutil.copytree(self.place, self.saved)
        self.files = [
            file.relative_to(self.saved)
            for file in sorted(self.saved.rglob("*"))
            if file.is_file() and file.stat().st_size and not IGNORED.search(str(file))
        ]

    def choose(self, stream: random.Random) -> Path:
        """A random file, every kind of file with equal probability."""
        kind = stream.choice(sorted({_kind(file) for file in self.files}))
        return stream.choice([file for file in self.files if _kind(file) == kind])

    def restore(self) -> None:
        """A fresh working copy. Files that are only ever replaced as a whole are hard links."""
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(self.saved, self.place, copy_function=_link_or_copy)

    def recorded_packs(self) -> dict[str, int]:
        """Number of runs of each recorded pack, by sweep, name and time of recording."""
        lines = [(member.name, line) for member in self.members for line in _lines(member / "ledger.jsonl")]
        return {f"{name}/{one['pack']}/{one['at_ms']}": one["runs"] for name, one in lines if one["event"] == "pack"}

    def everything(self) -> dict[str, Any]:
        """All numbers that the program shows, without times: results, table, comparison, and the files of reports."""
        shown: dict[str, Any] = {"table": sweeps.matrix_table(self.matrix).model_dump(mode="json")}
        shown["comparison"] = sweeps.compare(*self.members).model_dump(mode="json")
        for member in self.members:
            result = json.loads((member / "result.json").read_text())
            del result["seconds"], result["runs"]["cached"]
            shown[f"{member.name} result"] = result
            page = sweeps.report(member)
            for file in sorted(page.parent.rglob("*")):
                if file.is_file() and file.name not in NOT_COMPARED:
                    shown[f"{member.name} {file.relative_to(page.parent)}"] = file.read_text()
        return shown

    def check_readers(self) -> str:
        """Before the resume: right numbers, or a statement of what is damaged."""
        said = ""
        try:
            table = sweeps.matrix_table(self.matrix).model_dump(mode="json")
            for row, true in zip(table["rows"], self.truth["table"]["rows"], strict=True):
                if row["missing"]:
                    said = str(row["missing"])
                elif row != true:
                    raise Wrong(f"the table shows other numbers: {_difference(true, row)}")
            found = sweeps.compare(*self.members).model_dump(mode="json")
            read = [read_sweep(member) for member in self.members]
            if any(one.missing or one.state == "unfinished" for one in read):  # shown beside the numbers
                said = said or "reported as missing or unfinished"
            elif found != self.truth["comparison"]:
                raise Wrong(f"the comparison shows other numbers: {_difference(self.truth['comparison'], found)}")
        except LongtailError as error:
            said = str(error)
        return said

    def check(self, damaged: Path) -> int:
        """After the resume: everything as before. Returns how many runs were trained again."""
        shown = self.everything()
        if shown != self.truth:
            raise Wrong(f"after the resume: {_difference(self.truth, shown)}")
        again = {name: runs for name, runs in self.recorded_packs().items() if name not in self.packs}
        hurt = {"/".join((damaged.parts[0], damaged.name.rsplit(".", 2)[0]))}
        allowed = hurt if len(damaged.parts) > 1 and damaged.parts[1] in ("packs", "heads") else set()
        trained = {name.rsplit("/", 1)[0] for name in again}
        if not trained <= allowed:
            raise Wrong(f"{', '.join(sorted(trained - allowed))} was trained again, though it was not damaged")
        return sum(again.values())

    def resume(self) -> None:
        """Resume the matrix; if its own file is damaged, run its file again."""
        try:
            sweeps.resume_matrix(self.place / "small")
        except LongtailError as error:
            if "matrix.json is damaged" not in str(error):
                raise
            sweeps.run_matrix(self.matrix)

    def check_commands(self, damaged: Path) -> int:
        """The same through the command line."""
        environment = os.environ | {"OMP_NUM_THREADS": "1"}

        def command(*words: object) -> subprocess.CompletedProcess[str]:
            line = [str(Path(sys.executable).with_name("lt-sweep")), *map(str, words)]
            done = subprocess.run(line, capture_output=True, text=True, env=environment)
            if "Traceback" in done.stderr:
                raise Wrong(f"{words[0]} gives a traceback: {done.stderr.splitlines()[-1]}")
            return done

        for words in (("report", *self.members, "--out", self.place / "before"), ("table", self.place / "small")):
            command(*words)
        if "matrix.json is damaged" in command("resume", self.place / "small").stderr:
            command("run", self.place.parent / "small.yaml")
        for words in (("report", self.members[0]), ("table", self.place / "small"), ("compare", *self.members)):
            if (done := command(*words)).returncode:
                raise Wrong(f"{words[0]} ends with {done.returncode} after the resume: {done.stderr}")
        return self.check(damaged)


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
        drawn = artifacts.draw_png, write.draw_svg
        artifacts.draw_png = lambda figure, path: path.write_text(figure.title)  # type: ignore[assignment]
        write.draw_svg = lambda figure, prefix: ""  # type: ignore[assignment]
        storage = Storage(Path(directory))
        cases = [False] * options.flips + [True] * options.cuts
        stream.shuffle(cases)
        for number, cut in enumerate(cases):
            storage.restore()
            name = storage.choose(stream)
            what = f"{name}, {damage(storage.place / name, stream, cut=cut)}"
            try:
                if number >= len(cases) - options.commands:
                    trained = storage.check_commands(name)
                else:
                    outcomes["named by readers"] += bool(storage.check_readers())
                    storage.resume()
                    trained = storage.check(name)
                outcomes["runs trained again"] += trained
                outcomes["cases with runs trained again"] += bool(trained)
            except Exception as error:  # a traceback is a fault, too
                faults.append(f"{what}: {type(error).__name__}: {error}")
                print(f"FAULT: {faults[-1]}", flush=True)
            outcomes[_kind(name)] += 1
            if number % 100 == 99:
                print(f"{number + 1} of {len(cases)} cases, {time.monotonic() - began:.0f} s", flush=True)
        artifacts.draw_png, write.draw_svg = drawn
    for kind, count in sorted(outcomes.items()):
        print(f"{count:6} {kind}")
    print(f"{len(cases)} cases, {len(faults)} faults, {time.monotonic() - began:.0f} s")
    return bool(faults)


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
