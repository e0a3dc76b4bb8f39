"""Damaged files of a finished sweep, through the command line: each is named, set aside, and costs only itself.

Each case returns what the program did wrong. It is run with the program as it is, which does nothing wrong, and with
the check that protects it removed, which shows that the case does damage something.
"""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import damage
import numpy as np
import pytest

import sweeps
from sweeps.cli.app import main
from sweeps.config.spec import SweepSpec, load_resolved
from sweeps.experiment import runner
from sweeps.store import lines, pack_files
from sweeps.store.layout import sweep_directory

MakeSweep = Callable[..., SweepSpec]
pytestmark = pytest.mark.slow


@dataclass
class Finished:
    """A finished sweep and the program's outputs."""

    spec: SweepSpec
    capture: pytest.CaptureFixture[str]

    @property
    def directory(self) -> Path:
        return Path(self.spec.storage) / self.spec.name

    def lines(self, event: str) -> list[dict[str, Any]]:
        text = (self.directory / "ledger.jsonl").read_text()
        return [line for line in map(json.loads, text.splitlines()) if line["event"] == event]

    def result(self) -> dict[str, Any]:
        document = json.loads((self.directory / "result.json").read_text())
        del document["seconds"]
        return document

    def winners_head(self) -> Path:
        trial = f"finalist-{self.result()['winner']['trial']:04d}"
        pack = next(line["pack"] for line in self.lines("run") if line["trial"] == trial)
        return next((self.directory / "heads").glob(f"{pack}.*"))

    def run(self, *words: object) -> tuple[int, str, str]:
        """Exit code, output and errors of a command; -1 and the exception for what would be a traceback."""
        try:
            code = main([str(word) for word in words])
        except Exception as error:
            return -1, "", repr(error)
        captured = self.capture.readouterr()
        return code, captured.out, captured.err


@pytest.fixture
def finished(small_sweep: MakeSweep, capfd: pytest.CaptureFixture[str]) -> Finished:
    spec = small_sweep(
        search={"trials": 4, "algorithm": "random"},
        selection={"seeds": 2, "finalists": 2},
        resources={"lanes_per_pack": 2},
    )
    sweeps.run(spec)
    return Finished(spec, capfd)


def flip(file: Path, place: int, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1 << bit
    file.write_bytes(content)


def a_carriage_return(sweep: Finished) -> Iterator[str]:
    """`-` in the name of a pack becomes a carriage return, which some readers take for the end of a line."""
    file, before = sweep.directory / "ledger.jsonl", len(sweep.lines("run"))
    flip(file, file.read_bytes().index(b'"pack":"search-0') + 14, 5)
    assert b"\r" in file.read_bytes()
    code, _, errors = sweep.run("report", sweep.directory)
    if code == 0 or "ledger.jsonl is damaged: line" not in errors:
        yield f"report: exit {code}, {errors}"
    code, _, errors = sweep.run("resume", sweep.directory)
    if code or "ledger.jsonl (line" not in errors:
        yield f"resume: exit {code}, {errors}"
    elif len(sweep.lines("run")) != before:
        yield f"{len(sweep.lines('run')) - before} runs were trained again"


def a_digit(sweep: Finished) -> Iterator[str]:
    """One bit of a digit of the test accuracy of every finalist."""
    file, true = sweep.directory / "ledger.jsonl", sweep.result()
    content = file.read_bytes()
    lines = content.split(b"\n")
    for number, line in enumerate(lines):
        if b'"event":"run"' in line and b'"phase":"finalist"' in line:
            flip(file, len(b"\n".join([*lines[:number], b""])) + line.index(b'"acc_all":0.') + 12, 0)
    assert file.read_bytes() != content
    code, output, _ = sweep.run("report", sweep.directory)
    if code == 0 and f"{100 * true['winner']['mean']['acc_all']['value']:.2f}" not in output:
        yield f"report: {output}"
    code, output, errors = sweep.run("resume", sweep.directory, "--json")
    if code or sweep.result() != true:
        yield f"resume: exit {code}, {errors}"


def half_a_result(sweep: Finished) -> Iterator[str]:
    """`result.json` cut in half."""
    file, true = sweep.directory / "result.json", sweep.result()
    file.write_text(file.read_text()[: file.stat().st_size // 2])
    code, _, errors = sweep.run("resume", sweep.directory)
    for one in (file, sweep.directory / "artifacts" / "result.json"):
        with contextlib.suppress(ValueError):
            if json.loads(one.read_text())["winner"] == true["winner"]:
                continue
        yield f"resume: exit {code}, {errors}; {one.name} is not written again"
    if sweep.run("table", sweep.directory)[0]:
        yield "table refuses"


def half_a_head(sweep: Finished) -> Iterator[str]:
    """The file with the winner's head cut to 100 bytes."""
    file, before = sweep.winners_head(), len(sweep.lines("pack"))
    assert file.stat().st_size > 100
    file.write_bytes(file.read_bytes()[:100])
    for word in ("report", "resume"):
        code, _, errors = sweep.run(word, sweep.directory)
        if code or (word == "report" and file.name not in errors):
            yield f"{word}: exit {code}, {errors}"
    if len(sweep.lines("pack")) > before + 1 or not sweep.winners_head().exists():
        yield "other packs were trained again, or the head was not"


def another_head(sweep: Finished) -> Iterator[str]:
    """One bit of a weight of the winner's head, before the sweep is first written to MLflow."""
    file, true = sweep.winners_head(), sweep.result()["winner"]["best_of"]
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    for name, about in json.loads(content[8 : 8 + size]).items():
        if name.endswith("/weight"):
            flip(file, 8 + size + about["data_offsets"][0] + 3, 6)  # the top bit of the first weight's exponent
    assert file.read_bytes() != content
    import mlflow

    try:
        sweeps.run(load_resolved(sweep.spec.resolved() | {"tracking": {"kind": "mlflow"}}))
    except Exception as error:
        yield f"run: {error!r}"
        return

    mlflow.set_tracking_uri(f"sqlite:///{sweep.spec.storage}/mlflow.db")
    features = np.load(sweep.spec.dataset.path)  # type: ignore[attr-defined]
    model = mlflow.pyfunc.load_model("models:/small@champion")
    logits = sum(np.asarray(model.predict(view)) for view in features["test_features"])  # the mean over views
    found = float((np.argmax(logits, axis=1) == features["test_labels"]).mean())
    if abs(found - true["acc_all"]) > 1e-6:
        yield f"the champion has {found}, the result says {true['acc_all']}"


def a_directory(sweep: Finished) -> Iterator[str]:
    """A directory in the place of a file."""
    storage = Path(sweep.spec.storage)
    cases = {
        "small/ledger.jsonl": ("report", "resume"),
        "small/result.json": ("report", "resume"),
        "small/sweep.json": ("report",),
        "small/packs/search*": ("resume",),
        "small/heads/finalist*": ("report", "resume"),
        "cache/locks/small.*.lease": ("resume",),
    }
    for pattern, words in cases.items():
        for word in words:
            file = next(storage.glob(pattern))
            content = file.read_bytes()
            file.unlink()
            file.mkdir()
            code, _, errors = sweep.run(word, sweep.directory)
            if code == -1:
                yield f"{word} with a directory as {file.name}: {errors}"
            if file.is_dir():
                file.rmdir()
                file.write_bytes(content)


def believe(text: bytes) -> dict[str, Any] | None:
    """A line of the ledger without a look at its digest."""
    try:
        document: dict[str, Any] = json.loads(text, strict=False)
    except ValueError:
        return None
    return document


CHECKS: dict[Callable[[Finished], Iterator[str]], tuple[Any, str, Any]] = {
    a_carriage_return: (lines, "_checked", believe),
    a_digit: (lines, "_checked", believe),
    half_a_result: (runner, "atomic_file", lambda path: contextlib.nullcontext(Path("/dev/null"))),
    half_a_head: (pack_files, "digest_file", lambda file: pack_files.name_parts(file)[1]),
    another_head: (pack_files, "digest_file", lambda file: pack_files.name_parts(file)[1]),
}
"""By case, what protects against it: a module, a name in it, and a replacement that does not."""


@pytest.mark.parametrize("case", [*CHECKS, a_directory], ids=lambda case: case.__name__)
def test_damage_costs_only_itself(case: Callable[[Finished], Iterator[str]], finished: Finished) -> None:
    assert list(case(finished)) == []


@pytest.mark.parametrize("case", CHECKS, ids=lambda case: case.__name__)
def test_each_case_fails_without_its_check(
    case: Callable[[Finished], Iterator[str]], finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, name, replacement = CHECKS[case]
    monkeypatch.setattr(module, name, replacement, raising=False)
    assert list(case(finished)) != []


@pytest.mark.parametrize("text", [None, "{}"], ids=["missing", "damaged"])
def test_the_state_of_a_sweep_without_progress_is_that_of_its_ledger(text: str | None, finished: Finished) -> None:
    file = finished.directory / "progress.json"
    file.unlink()
    if text is not None:
        file.write_text(text)
    _, listed, _ = finished.run("list", "--storage", finished.spec.storage, "--json")
    (row,) = json.loads(listed)
    assert (row["state"], row["started_ms"]) == ("finished", sweep_directory(finished.directory).started_ms)
    code, shown, _ = finished.run("status", finished.directory, "--json")
    progress = json.loads(shown)
    assert (code, progress["state"], progress["runs_finished"]) == (0, "finished", len(finished.lines("run")))
    assert f"progress.json is {'missing' if text is None else 'damaged'}; `lt-sweep resume" in progress["note"]


def test_a_finished_sweep_whose_ledger_is_cut_is_not_called_unfinished(finished: Finished) -> None:
    file = finished.directory / "ledger.jsonl"
    content = file.read_bytes()
    for length in (0, len(content) // 2, content.rindex(b"\n", 0, -1) + 1):
        file.write_bytes(content[:length])
        for word in ("report", "table"):
            code, output, errors = finished.run(word, finished.directory)
            assert (code, output) == (1, "")
            assert "ledger.jsonl is damaged: " in errors
    file.write_bytes(content)
    assert finished.run("table", finished.directory)[0] == 0


def test_random_damage_changes_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few of the cases of `tools/damage.py`."""
    monkeypatch.setattr(damage.artifacts, "draw_png", lambda figure, path: path.write_text(figure.title))
    monkeypatch.setattr(damage.write, "draw_svg", lambda figure, prefix: "")
    monkeypatch.setattr(damage.lease, "EXPIRY", 0.1)
    storage, stream = damage.Storage(tmp_path), random.Random(3)
    for number in range(20):
        storage.try_case(storage.draw(stream, cut=number % 5 == 0))
