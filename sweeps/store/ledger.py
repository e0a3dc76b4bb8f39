"""The ledger: the durable record of a sweep, from which everything that is shown is computed.

`ledger.jsonl` holds one JSON line per event, in the order of events:

- `driver`: a process opened the ledger for writing, with the version of Optuna that it uses.
- `sweep`: the content of `sweep.json`.
- `trial`: a trial was proposed, with its searched values (by dotted path), seeds, and the keys of its runs.
- `run`: a run ended, with its status and metrics. Accuracies are fractions of 1 at the selected epoch.
- `pack`: ends the lines of the runs of one pack. They were written at once and count only if all of them are sound.
- `finished`: every run of the sweep is recorded; seconds by activity.

`pandas.read_json(path, lines=True)` reads it as a table. Curves and values by class are in `packs/`, trained heads in
`heads/`, one file per pack. Heads are removed once their runs can no longer win.

A pack is finished once its file in `packs/` is complete; only then are its lines written and synced, and only then do
the search and tracking hear of it. A line cut short by a crash is dropped when the ledger is next opened.

Nothing is believed unchecked. Every line ends with a digest of its own bytes; the name of every file contains the
digest of the file. `FinishedRuns` leaves damaged lines out and names them; readers of sweeps refuse such a ledger.
`Ledger` moves them to `damaged/`, with damaged files, and restores lines from `packs/`, where every file has a copy of
the lines of its runs. Only the runs of a damaged file in `packs/`, or of damaged heads that are still needed, are
trained again.

Opening the ledger for writing appends a fencing token, `term`. Lines with an older token that follow it are ignored, so
a driver that lost its lease cannot corrupt the ledger.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import re
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lt_train.core.errors import LongtailError, StorageError
from lt_train.core.imports import torch
from lt_train.core.io import atomic_file, digest, digest_file, fingerprint, sync, write_tensors, writing
from lt_train.metrics import SPLITS, loma_cv
from lt_train.retrain.base import NUMERICS_VERSION, EpochSelection, Halving, Pack, Run, RunResult
from sweeps.store.lease import LeaseLost

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from sweeps.config.trials import Phase, Trial

__all__ = ["FinishedRuns", "Ledger", "Record", "RecordedTrial", "RunArrays", "SweepEnd", "run_key"]

logger = logging.getLogger(__name__)

Accuracies = tuple[float | None, ...]
"""By split, in the order of `SPLITS`; None stands for NaN: a split without classes."""


def run_key(
    bank_fingerprint: str, run: Run, rule: EpochSelection, halving: Halving | None = None, pool: str = ""
) -> str:
    """The identity of a run: a fingerprint of everything that determines its numbers, 64 hex digits.

    Which runs share its pack is not part of it; within a `pool`, such as one candidate, that follows from the sweep
    file.
    """
    counts: list[Any] = [rule.epoch, rule.on, rule.metric] if rule.epoch == "best" else ["last"]
    if halving is not None:
        # The rungs compare trials by this rule, so it matters even where the last epoch counts.
        counts = [rule.epoch, rule.on, rule.metric, {"rungs": halving.rungs, "factor": halving.factor}]
    return fingerprint(
        {
            "numerics": NUMERICS_VERSION,
            "bank": bank_fingerprint,
            "method": run.method.model_dump(mode="json"),
            "training": run.training.model_dump(mode="json"),
            "seed": run.seed,
            "rule": counts,
            **({"pool": pool} if pool else {}),
        }
    )


@dataclass(frozen=True, slots=True)
class Record:
    """A recorded run. Accuracies are fractions at the selected epoch.

    Attributes:
        failure: why the run failed; None if it did not.
        epochs: number of finished epochs.
        epoch: the selected epoch, from 0; -1 for a failed run.
        val: class-balanced accuracy on the validation set; None without one, and for a failed run.
        test: top-1 accuracy on the test set; None for a failed run.
        at_ms: when it was recorded, in milliseconds since 1970.
    """

    key: str
    seed: int
    status: Literal["finished", "stopped", "failed"]
    failure: str | None
    epochs: int
    epoch: int
    val: Accuracies | None
    test: Accuracies | None
    loma_mean: float | None
    loma_cv: float | None
    pack: str
    at_ms: int

    @property
    def stopped(self) -> int | None:
        """Number of epochs after which the run was stopped early; None if it was not."""
        return self.epochs if self.status == "stopped" else None

    @classmethod
    def of(cls, key: str, seed: int, result: RunResult, pack: str, at_ms: int) -> Record:
        """The record of a run's result."""
        kept = result.kept
        val = None if kept is None or result.val_accuracy is None else result.val_accuracy[kept.epoch]
        return cls(
            key=key,
            seed=seed,
            status="failed" if kept is None else "finished" if result.stopped is None else "stopped",
            failure=result.failure,
            epochs=len(result.test_accuracy) if result.stopped is None else result.stopped,
            epoch=-1 if kept is None else kept.epoch,
            val=None if val is None else _accuracies(val),
            test=None if kept is None else _accuracies(result.test_accuracy[kept.epoch]),
            loma_mean=None if kept is None else _finite(float(np.nanmean(kept.loma))),
            loma_cv=None if kept is None else _finite(float(loma_cv(torch.tensor(kept.loma)))),
            pack=pack,
            at_ms=at_ms,
        )

    @classmethod
    def read(cls, line: Mapping[str, Any]) -> Record:
        """The record in a line of the ledger."""
        test, val = (
            tuple(line[f"{prefix}acc_{split}"] for split in SPLITS) if f"{prefix}acc_all" in line else None
            for prefix in ("", "val_")
        )
        return cls(
            key=line["key"],
            seed=line["seed"],
            status=line["status"],
            failure=line.get("failure"),
            epochs=line["epochs"],
            epoch=-1 if line["epoch"] is None else line["epoch"] - 1,
            val=val,
            test=test,
            loma_mean=line["loma_mean"],
            loma_cv=line["loma_cv"],
            pack=line["pack"],
            at_ms=line["at_ms"],
        )

    def line(self, trial: Trial) -> dict[str, Any]:
        """The line of this run, which `trial` was the first to request. Epochs are counted from 1."""
        return {
            "event": "run",
            "at_ms": self.at_ms,
            **_about(trial),
            "seed": self.seed,
            "status": self.status,
            **({} if self.failure is None else {"failure": self.failure}),
            "epochs": self.epochs,
            "epoch": None if self.epoch < 0 else self.epoch + 1,
            **_by_split("acc_", self.test),
            **_by_split("val_acc_", self.val),
            "loma_mean": self.loma_mean,
            "loma_cv": self.loma_cv,
            "key": self.key,
            "pack": self.pack,
        }


@dataclass(frozen=True, slots=True)
class RecordedTrial:
    """A proposed trial. The fields are those of `sweeps.config.trials.Trial`; `keys` are those of its runs, by seed."""

    name: str
    phase: Phase
    method: str
    number: int
    params: dict[str, Any]
    keys: tuple[str, ...]


@dataclass(frozen=True)
class RunArrays:
    """The arrays of one run: E epochs, K classes. Accuracies are fractions; NaN for a split or class without images.

    Attributes:
        val: `[E, 4]`, class-balanced accuracy after every epoch; None without a validation set.
        test: `[E, 4]`, top-1 accuracy.
        loss: `[E]`, mean training loss.
        class_accuracy, loma, regularised_std: `[K]`, on test at the selected epoch; empty for a failed run.
    """

    val: NDArray[np.float64] | None
    test: NDArray[np.float64]
    loss: NDArray[np.float64]
    class_accuracy: NDArray[np.float64]
    loma: NDArray[np.float64]
    regularised_std: NDArray[np.float64]


@dataclass(frozen=True)
class SweepEnd:
    """The end of a sweep: seconds by activity of the call that trained its last runs, and remarks on the data."""

    seconds: Mapping[str, float]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Pack:
    """A recorded pack: the keys of its runs, the digests of its files, and the seconds of its training."""

    keys: tuple[str, ...]
    arrays: str
    heads: str | None
    seconds: float


class FinishedRuns:
    """The ledger of a sweep directory, read-only: needs no lease, writes and removes nothing.

    Attributes:
        finished: every recorded run by key, in the order of the ledger.
        trials: every proposed trial by name, in the order of the ledger.
        identity: the content of `sweep.json` as recorded; None if it is not.
        end: None until every run is recorded.
        damage: the damaged lines, such as `line 17`; they are left out.
        optuna: the versions of Optuna that proposed trials, the first one first.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / "ledger.jsonl"
        self.packs, self.heads = directory / "packs", directory / "heads"
        self._read()

    def _read(self) -> None:
        self.finished: dict[str, Record] = {}
        self.trials: dict[str, RecordedTrial] = {}
        self.identity: dict[str, Any] | None = None
        self.end: SweepEnd | None = None
        self._recorded_end: SweepEnd | None = None
        self.optuna: dict[str, None] = {}
        self.damage: list[str] = []
        self._recorded: dict[str, _Pack] = {}
        self._open: dict[str, list[Record]] = defaultdict(list)
        self._cached: tuple[str, dict[str, NDArray[Any]]] = ("", {})
        self._version = ""
        self._term = self._end = 0
        for line in _lines(self.path):
            self._end = line.end
            if line.document is None:
                self.damage.append(f"line {line.number}")
            else:
                self._add(line.document)

    def _add(self, line: Mapping[str, Any]) -> None:
        """Take in a sound line; lines of a driver that had lost its lease are ignored."""
        if line["term"] < self._term:
            return
        self._term = line["term"]
        match line["event"]:
            case "driver":
                self._version = line["optuna"]
            case "sweep":
                self.identity = {name: value for name, value in line.items() if name not in ("event", "term", "check")}
            case "trial":
                self.end = None
                if line["phase"] == "search" and line["trial"] not in self.trials:
                    self.optuna[self._version] = None
                self.trials[line["trial"]] = RecordedTrial(
                    line["trial"], line["phase"], line["method"], line["number"], _params(line), tuple(line["keys"])
                )
            case "run":
                self._open[line["pack"]].append(Record.read(line))
            case "pack":
                runs = {record.key: record for record in self._open[line["pack"]][-line["runs"] :]}
                if len(runs) == line["runs"]:
                    del self._open[line["pack"]]
                    self.end = self._recorded_end = None
                    self.finished |= runs
                    self._recorded[line["pack"]] = _Pack(tuple(runs), line["arrays"], line["heads"], line["seconds"])
            case "finished":
                self._recorded_end = SweepEnd(line["times"], tuple(line["notes"]))
                complete = line["trials"] <= len(self.trials) and line["runs"] <= len(self.finished)
                self.end = self._recorded_end if complete else None  # a line is missing

    @property
    def train_seconds(self) -> float:
        """Time spent in training, summed over packs."""
        return sum(pack.seconds for pack in self._recorded.values())

    def arrays(self, key: str) -> RunArrays:
        """The arrays of a recorded run.

        Raises:
            LongtailError: their file is missing or altered.
        """
        pack, (cached, tensors) = self.finished[key].pack, self._cached
        if cached != pack:
            tensors = self._load(pack)
            self._cached = pack, tensors
        found = {name: _rounded(tensors[f"{key}/{name}"]) for name in _arrays_of(key, tensors)}
        by_class = {name: found.get(name, np.empty(0)) for name in ("class_accuracy", "loma", "regularised_std")}
        return RunArrays(found.get("val"), found["test"], found["loss"], **by_class)

    def _load(self, pack: str) -> dict[str, NDArray[Any]]:
        from safetensors.numpy import load

        file = _file(self.packs, pack, self._recorded[pack].arrays)
        with contextlib.suppress(OSError):
            content = file.read_bytes()
            if digest(content) == self._recorded[pack].arrays:
                tensors: dict[str, NDArray[Any]] = load(content)
                return tensors
        raise LongtailError(f"{file} is missing or altered; {_REMEDY.format(self.path.parent)}")

    def is_head_lost(self, key: str) -> bool:
        """Whether the head of a recorded run was stored and is missing now, removed or damaged."""
        name = self.finished[key].pack
        heads = self._recorded[name].heads
        return heads is not None and not _file(self.heads, name, heads).is_file()

    def head(self, key: str) -> dict[str, Tensor]:
        """The head of a recorded run, in the form that `MethodSpec.classifier` takes.

        Raises:
            LongtailError: it was not stored, or its file is missing or altered.
        """
        from safetensors.torch import load_file

        name = self.finished[key].pack
        heads = self._recorded[name].heads
        if heads is None:
            raise LongtailError(f"{self.heads} has no head of run {key[:12]}: it failed or was stopped early")
        file = _file(self.heads, name, heads)
        if not _is_sound(file, heads):
            raise LongtailError(f"{file} is missing or altered; {_REMEDY.format(self.path.parent)}")
        prefix = f"{key}/"
        tensors = load_file(file)
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


class Ledger(FinishedRuns):
    """The ledger of a sweep directory, open for writing. The caller holds the sweep's lease.

    Args:
        directory: the sweep directory.
        check: called before every write; raises if the lease is lost.
        driver: description of this process, recorded for people who read the file.
        identity: the content of `sweep.json`, recorded unless it is already.

    Attributes:
        seconds: time that this process spent in recording packs.

    Raises:
        LeaseLost: another driver has taken over the sweep.
        StorageError: the ledger cannot be written.
    """

    def __init__(
        self,
        directory: Path,
        check: Callable[[], None] = lambda: None,
        driver: str = "",
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        self._check, self.seconds, path = check, 0.0, directory / "ledger.jsonl"
        for place in (directory / "packs", directory / "heads"):
            if place.exists() and not place.is_dir():
                raise StorageError(f"{place} must be a directory, but it is a file; move it away and run again")
            with writing(place):
                place.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise StorageError(f"{path} must be a file, but it is a directory; move it away and run again")
        with writing(path):
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            sync(directory)
        try:
            super().__init__(directory)
            self._earlier_end = self._recorded_end
            self._check()  # a new term fences off the driver before, so only the owner of the lease may begin one
            restored = self._repair()
            self._cut(self._end)
            self._term += 1
            started = {"event": "driver", "at_ms": _now(), "driver": driver, "optuna": version("optuna")}
            known = identity is None or self.identity == identity
            self._write([started, *([] if known else [{"event": "sweep", **(identity or {})}]), *restored])
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def propose(self, trials: Iterable[tuple[Trial, Sequence[str]]]) -> None:
        """Record proposed trials with the keys of their runs, unless they are recorded already.

        Raises:
            LeaseLost: another driver has taken over the sweep.
            StorageError: the disk is full; the ledger is unchanged.
        """
        lines = [
            {"event": "trial", "at_ms": _now(), **_about(trial), "seeds": list(trial.seeds), "keys": list(keys)}
            for trial, keys in trials
            if trial.name not in self.trials or self.trials[trial.name].keys != tuple(keys)
        ]
        if lines:
            self._check()
            self._write(lines)

    def append(
        self, pack: Pack, trials: Sequence[Trial], keys: Sequence[str], results: Sequence[RunResult], seconds: float
    ) -> list[Record]:
        """Record the results of a pack durably and atomically, its files first.

        Args:
            pack: the pack.
            trials: for each run, the trial that was the first to request it.
            keys: of the runs.
            results: of the runs.
            seconds: of training.

        Raises:
            LeaseLost: another driver has taken over the sweep.
            StorageError: the disk is full; the ledger is unchanged.
        """
        self._check()
        start, at_ms = time.perf_counter(), _now()
        records = [
            Record.of(key, run.seed, result, pack.name, at_ms)
            for key, run, result in zip(keys, pack.runs, results, strict=True)
        ]
        lines = [record.line(trial) for record, trial in zip(records, trials, strict=True)]
        about = {"event": "pack", "at_ms": at_ms, "pack": pack.name, "runs": len(records), "seconds": round(seconds, 4)}
        lines.append(about | {"heads": self._save(self.heads, pack.name, _head_tensors(keys, results))})
        arrays = self._save(self.packs, pack.name, _run_tensors(keys, results), {_LINES: json.dumps(lines)})
        earlier = self._recorded.get(pack.name)
        self._write([*lines[:-1], lines[-1] | {"arrays": arrays}])
        if earlier is not None and earlier.arrays != arrays:  # trained again because its heads were missing
            _file(self.packs, pack.name, earlier.arrays).unlink(missing_ok=True)
        self._earlier_end = None
        self.seconds += time.perf_counter() - start
        return records

    def finish(self, seconds: Mapping[str, float], notes: Sequence[str]) -> None:
        """Record that every run is recorded. The seconds of an earlier end are kept if nothing was trained since.

        Raises:
            LeaseLost: another driver has taken over the sweep.
            StorageError: the disk is full; the ledger is unchanged.
        """
        end = self._earlier_end or SweepEnd(seconds, tuple(notes))
        if self.end != end:
            self._check()
            counts = {"trials": len(self.trials), "runs": len(self.finished)}
            times = {"times": dict(end.seconds), "notes": list(end.notes)}
            self._write([{"event": "finished", "at_ms": _now(), **counts, **times}])

    def drop_heads(self, keys: Iterable[str]) -> None:
        """Remove the heads of every pack whose runs are all among `keys`, which can no longer win."""
        dropped = set(keys)
        for name in {self.finished[key].pack for key in dropped}:
            pack = self._recorded[name]
            if pack.heads is not None and dropped.issuperset(pack.keys):
                _file(self.heads, name, pack.heads).unlink(missing_ok=True)

    def _save(
        self, place: Path, pack: str, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
    ) -> str | None:
        """Write tensors to a file whose name contains its digest, and return the digest; None without tensors."""
        if not tensors:
            return None
        staged = place / f"{pack}.staged"
        with atomic_file(staged) as file:
            write_tensors(file, tensors, metadata)
        with writing(place):
            found = digest_file(staged)
            staged.replace(_file(place, pack, found))
            sync(place)
        return found

    def _repair(self) -> list[dict[str, Any]]:
        """Set aside what is damaged, and return the lines that can be restored from the files in `packs/`."""
        damaged = [f"{self.path.name}, {what}" for what in self.damage]
        for file in (*sorted(self.packs.iterdir()), *sorted(self.heads.iterdir())):
            _, checked = _name_parts(file)
            if not checked:
                if file.suffix in (".staged", ".tmp"):  # not finished
                    _remove(file)
            elif not _is_sound(file, checked):
                damaged.append(f"{file.parent.name}/{file.name}")
                self._set_aside(file)
        lost = {*self._open}  # a line is damaged, or was not written
        for name, pack in self._recorded.items():
            file = _file(self.packs, name, pack.arrays)
            if not file.exists():
                lost.add(name)
                if f"packs/{file.name}" not in damaged:
                    damaged.append(f"packs/{file.name} (missing)")
        if damaged or lost:
            self._rewrite(lost)
        restored = self._restored()
        if damaged:
            logger.warning(
                "%s is damaged and was repaired: %s. Damaged parts are kept in %s; runs that cannot be restored are "
                "trained again",
                self.path.parent,
                "; ".join(damaged),
                self._aside,
            )
        return restored

    def _rewrite(self, lost: set[str]) -> None:
        """Set aside the damaged lines, those of lost packs, and the end of the sweep, which is recorded again."""
        lines = list(_lines(self.path))
        sound = [
            line.document is not None
            and not (line.document["event"] in ("run", "pack") and line.document["pack"] in lost)
            for line in lines
        ]
        if all(sound):
            return
        sound = [
            one and line.document is not None and line.document["event"] != "finished"
            for one, line in zip(sound, lines, strict=True)
        ]
        self._check()
        with writing(self._aside):
            self._aside.mkdir(exist_ok=True)
            with (self._aside / self.path.name).open("ab") as file:
                file.writelines(line.text + b"\n" for line, kept in zip(lines, sound, strict=True) if not kept)
        with atomic_file(self.path) as temporary:
            temporary.write_bytes(b"".join(line.text + b"\n" for line, kept in zip(lines, sound, strict=True) if kept))
        with writing(self.path):
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND)
        os.close(self._descriptor)
        self._descriptor = descriptor
        self._read()

    def _restored(self) -> list[dict[str, Any]]:
        """The lines of packs whose files are complete but whose lines are missing; removes files that are not used."""
        lines: list[dict[str, Any]] = []
        known, heads = set(self.finished), {name: pack.heads for name, pack in self._recorded.items()}
        for file in sorted(self.packs.iterdir()):
            name, checked = _name_parts(file)
            if not checked or (name in self._recorded and self._recorded[name].arrays == checked):
                continue
            *runs, end = _lines_in(file)
            keys = {run["key"] for run in runs}
            if keys <= known:
                _remove(file)  # a pack that was trained twice
                continue
            known |= keys
            heads[name] = end["heads"]
            lines += [*runs, end | {"arrays": checked}]
        for file in sorted(self.heads.iterdir()):
            name, checked = _name_parts(file)
            if checked and heads.get(name) != checked:
                _remove(file)
        return lines

    @property
    def _aside(self) -> Path:
        return self.path.parent / "damaged"

    def _set_aside(self, file: Path) -> None:
        with writing(self._aside):
            self._aside.mkdir(exist_ok=True)
            place = self._aside / file.name
            _remove(place)
            file.rename(place)

    def _write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Append lines at once, sync them and take them in; on failure remove the part that was written."""
        documents = [{"event": line["event"], "term": self._term, **line} for line in lines]
        text = b"".join(_with_check(document) for document in documents)
        if os.fstat(self._descriptor).st_size != self._end:
            self._check_other_writers()
        with writing(self.path):
            try:
                rest = text
                while rest:
                    rest = rest[os.write(self._descriptor, rest) :]
                os.fsync(self._descriptor)
            except OSError:
                self._truncate(len(text))
                raise
        self._end += len(text)
        for document in documents:
            self._add(document)

    def _truncate(self, length: int) -> None:
        """Remove what was written of lines of this length, unless another driver may be writing by now."""
        with contextlib.suppress(LongtailError, OSError):  # readers skip an incomplete last line
            self._check()
            if os.fstat(self._descriptor).st_size <= self._end + length:
                os.ftruncate(self._descriptor, self._end)

    def _check_other_writers(self) -> None:
        """Raise if another driver has begun a newer term; skip lines of a driver with an older one."""
        end = term = 0
        for line in _lines(self.path):
            term, end = max(term, line.document["term"] if line.document else 0), line.end
        if term != self._term:
            raise LeaseLost(
                f"{self.path} is now written by another driver; this process stops, its finished runs are kept"
            )
        self._cut(end)

    def _cut(self, end: int) -> None:
        """Remove what follows the last complete line, and add its newline if only that is missing."""
        with writing(self.path):
            os.ftruncate(self._descriptor, end)
            if end and os.pread(self._descriptor, 1, end - 1) != b"\n":
                end += os.write(self._descriptor, b"\n")
        self._end = end


_DECIMALS = 7

_REMEDY = "`lt-sweep resume {}` trains its runs again"

_LINES = "lines"
"""Key of the metadata of a file in `packs/`: the lines of its pack in the ledger, as JSON."""

_CHECK = re.compile(rb'(.*),"check":"([0-9a-f]{32})"\}', re.DOTALL)
"""A line; the digest is that of the JSON object without `check`."""

_SOUND = re.compile(rb'\{"event"(?:(?!\{"event").)*?,"check":"[0-9a-f]{32}"\}', re.DOTALL)
"""A line anywhere in a text, also where the end of the line before it is damaged."""


@dataclass(frozen=True, slots=True)
class _Line:
    """A line, and where it ends in the file, in bytes; a damaged one has no document."""

    number: int
    text: bytes
    end: int
    document: dict[str, Any] | None


def _lines(path: Path) -> Iterator[_Line]:
    """The lines of a ledger. What a crash has cut short at the end is left out. Only a newline ends a line."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return
    except OSError as error:
        raise LongtailError(
            f"{path} cannot be read ({error.strerror}); restore it, or start over with --fresh"
        ) from None
    end = 0
    texts = content.split(b"\n")
    for number, text in enumerate(texts, start=1):
        document, is_last = _checked(text), number == len(texts)  # only a line that is cut short is not ended
        sound = [] if document is not None else [(one, _checked(one)) for one in _SOUND.findall(text)]
        if is_last and document is None and not any(found for _, found in sound):
            return
        end += len(text) + (not is_last)
        for one, found in sound:
            if found is not None:
                yield _Line(number, one, end, found)
        yield _Line(number, text, end, document)


def _checked(text: bytes) -> dict[str, Any] | None:
    """The document in a line; None if it is damaged."""
    found = _CHECK.fullmatch(text)
    if found is None or digest(found[1] + b"}") != found[2].decode():
        return None
    document: dict[str, Any] = json.loads(found[1] + b"}")
    return document


def _with_check(document: Mapping[str, Any]) -> bytes:
    text = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    return text[:-1] + b',"check":"' + digest(text).encode() + b'"}\n'


def _file(place: Path, pack: str, checked: str) -> Path:
    return place / f"{pack}.{checked}.safetensors"


def _name_parts(file: Path) -> tuple[str, str]:
    """The pack and the digest in the name of a file; no digest for an unfinished file."""
    found = re.fullmatch(r"(.+)\.([0-9a-f]{32})\.safetensors", file.name)
    return (found[1], found[2]) if found else (file.name, "")


def _is_sound(file: Path, checked: str) -> bool:
    try:
        return digest_file(file) == checked
    except OSError:
        return False


def _remove(path: Path) -> None:
    with writing(path):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _lines_in(file: Path) -> list[dict[str, Any]]:
    from safetensors import safe_open

    with safe_open(file, framework="np") as opened:
        lines: list[dict[str, Any]] = json.loads(opened.metadata()[_LINES])
    return lines


def _about(trial: Trial) -> dict[str, Any]:
    """The fields of a trial, and its searched values by dotted path."""
    return {
        "trial": trial.name,
        "phase": trial.phase,
        "method": trial.display_name,
        "number": trial.number,
        **trial.params,
    }


def _params(line: Mapping[str, Any]) -> dict[str, Any]:
    """The searched values in a line: the fields whose names are dotted paths."""
    return {name: value for name, value in line.items() if "." in name}


def _run_tensors(keys: Sequence[str], results: Sequence[RunResult]) -> dict[str, Tensor]:
    """The arrays of runs, as `<key>/<name of the field of RunArrays>`."""
    tensors: dict[str, Tensor] = {}
    for key, result in zip(keys, results, strict=True):
        arrays = {"val": result.val_accuracy, "test": result.test_accuracy, "loss": result.train_loss}
        kept = result.kept
        if kept is not None:
            arrays |= {
                "class_accuracy": kept.class_accuracy,
                "loma": kept.loma,
                "regularised_std": kept.regularised_std,
            }
        # Copied, because arrays from a worker's shared memory are not writable.
        known = {name: np.array(array, dtype=np.float32) for name, array in arrays.items() if array is not None}
        tensors |= {f"{key}/{name}": torch.from_numpy(array) for name, array in known.items()}
    return tensors


def _head_tensors(keys: Sequence[str], results: Sequence[RunResult]) -> dict[str, Tensor]:
    """The heads of the runs that neither failed nor were stopped, which cannot win, as `<key>/<name>`."""
    return {
        f"{key}/{name}": torch.from_numpy(np.array(array))
        for key, result in zip(keys, results, strict=True)
        if result.kept is not None and result.stopped is None
        for name, array in result.kept.state.items()
    }


def _arrays_of(key: str, tensors: Mapping[str, Any]) -> Iterator[str]:
    """The names of a run's arrays."""
    return (field.name for field in fields(RunArrays) if f"{key}/{field.name}" in tensors)


def _accuracies(row: NDArray[np.float32]) -> Accuracies:
    return tuple(_finite(round(float(value), _DECIMALS)) for value in row)


def _rounded(array: NDArray[Any]) -> NDArray[np.float64]:
    """In double precision with the decimals that lines have, so that numbers from both sources agree."""
    return np.round(array.astype(np.float64), _DECIMALS).astype(np.float64)


def _by_split(prefix: str, values: Accuracies | None) -> dict[str, float | None]:
    if values is None:
        return {}
    return {f"{prefix}{split}": value for split, value in zip(SPLITS, values, strict=True)}


def _finite(value: float) -> float | None:
    """None for NaN and infinities, which JSON does not have."""
    return value if math.isfinite(value) else None


def _now() -> int:
    return time.time_ns() // 1_000_000
