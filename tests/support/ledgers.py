"""A sweep's ledger, read as JSON and independently of the code under test, and cut as by an interruption."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file
from xxhash import xxh3_128_hexdigest

from sweeps.config.spec import SweepSpec

__all__ = ["cut", "lines_of", "pack_lines", "run_lines", "runs_by_key", "runs_of", "without_extended_training"]

OF_THE_WRITING = ("at_ms", "term", "check", "sweep_id")
"""Fields of a line that differ between two sweeps with equal results."""


def lines_of(directory: Path) -> list[dict[str, Any]]:
    """The valid lines of a sweep directory: complete, and not written by a driver that had been replaced."""
    file = directory / "ledger.jsonl"
    term, found = 0, []
    for text in file.read_bytes().splitlines(keepends=True) if file.exists() else ():
        if not text.endswith(b"\n"):
            break
        line = json.loads(text)
        if line["term"] >= term:
            term = line["term"]
            found.append(line)
    return found


def pack_lines(directory: Path) -> list[dict[str, Any]]:
    """The line of every recorded pack."""
    return [line for line in lines_of(directory) if line["event"] == "pack"]


def run_lines(directory: Path) -> list[dict[str, Any]]:
    """The line of every run of a recorded pack, in the order of the ledger; a run trained twice has two."""
    found, open_lines = [], []
    for line in lines_of(directory):
        if line["event"] == "run":
            open_lines.append(line)
        elif line["event"] == "pack":
            assert {run["pack"] for run in open_lines} == {line["pack"]}
            assert len(open_lines) == line["runs"]
            found += open_lines
            open_lines = []
    return found


def runs_of(spec: SweepSpec) -> list[dict[str, Any]]:
    """Every recorded run of a sweep, in the order of the ledger: its line, and `arrays` from the file of its pack."""
    directory = Path(spec.storage) / spec.name
    arrays: dict[str, dict[str, Any]] = {}
    for file in sorted((directory / "packs").glob("*.safetensors")):
        for path, array in load_file(file).items():
            key, name = path.split("/")
            arrays.setdefault(key, {})[name] = _plain(array)
    return [line | {"arrays": arrays[line["key"]]} for line in run_lines(directory)]


def runs_by_key(spec: SweepSpec) -> dict[str, dict[str, Any]]:
    """Every recorded run of a sweep by its key, with everything that follows from its training."""
    return {
        run["key"]: {name: value for name, value in run.items() if name not in OF_THE_WRITING} for run in runs_of(spec)
    }


def cut(directory: Path, packs: int, *, proposed: bool = False) -> None:
    """Reduce a sweep directory to what an interruption leaves right after its first `packs` packs are recorded.

    With `proposed`, the interruption comes later: the trials that were proposed before the next pack are recorded too.
    """
    file = directory / "ledger.jsonl"
    texts = file.read_bytes().splitlines(keepends=True)
    events = [json.loads(text)["event"] for text in texts]
    ends = [number for number, event in enumerate(events) if event == "pack"]
    if packs >= len(ends):
        return
    next_run = events.index("run", ends[packs - 1] + 1 if packs else 0)
    kept = texts[: next_run if proposed or not packs else ends[packs - 1] + 1]
    file.write_bytes(b"".join(kept))
    (directory / "result.json").unlink(missing_ok=True)
    names = {line["pack"] for line in map(json.loads, kept) if line["event"] == "pack"}
    for place in (directory / "packs", directory / "heads"):
        for one in place.iterdir():
            if one.name.rsplit(".", 2)[0] not in names:
                one.unlink()


def without_extended_training(directory: Path) -> None:
    """Turn a finished sweep into one that was finished without extended training of its winner."""
    file = directory / "ledger.jsonl"
    lines = lines_of(directory)
    kept = [line for line in lines if line.get("phase") != "extended" and line.get("pack") != "extended-0"]
    assert kept[-1]["event"] == "finished"
    removed = [line["event"] for line in lines if line not in kept]
    kept[-1] |= {"trials": kept[-1]["trials"] - 1, "runs": kept[-1]["runs"] - removed.count("run")}
    file.write_bytes(b"".join(map(_with_check, kept)))
    (arrays,) = (directory / "packs").glob("extended-*")
    arrays.unlink()
    result = json.loads((directory / "result.json").read_text())
    (directory / "result.json").write_text(json.dumps(result | {"extended": None}))


def _with_check(line: dict[str, Any]) -> bytes:
    text = json.dumps({name: value for name, value in line.items() if name != "check"}, separators=(",", ":")).encode()
    return text[:-1] + b',"check":"' + xxh3_128_hexdigest(text).encode() + b'"}\n'


def _plain(array: np.ndarray) -> Any:
    """An array as lists, with None for NaN so that equal arrays are equal."""
    assert array.dtype == np.float32
    return np.where(np.isnan(array), None, array.astype(object)).tolist()
