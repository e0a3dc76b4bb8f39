"""The ledger: the durable record of finished runs, from which search and tracking are resumed.

A sweep directory holds one `ledger.jsonl` with one line per pack. The line is written and synced before the pack is
reported to the search or tracking; a line cut short by a crash is dropped when the ledger is next opened.

Opening the ledger for writing appends a fencing token, `term`. Records with an older token that follow it are ignored,
so a driver that lost its lease cannot corrupt the ledger.

Trained heads are kept in `heads/`, one file per pack, and removed once their runs can no longer win.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lt_train.core.errors import LongtailError
from lt_train.core.imports import torch
from lt_train.core.io import atomic_file, fingerprint, sync, write_tensors, writing
from lt_train.metrics import loma_cv
from lt_train.retrain.base import NUMERICS_VERSION, EpochSelection, Halving, Pack, Run, RunResult
from sweeps.store.lease import LeaseLost

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FinishedRuns", "Ledger", "Record", "run_key"]


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


@dataclass(frozen=True)
class Record:
    """A finished run in the ledger. Accuracies are fractions `[E][4]` over all/many/medium/few; None stands for NaN.

    Attributes:
        failure: why the run failed; None if it did not.
        epoch: the selected epoch, from 0; -1 for a failed run.
        stopped: number of epochs after which the run was stopped early; None if it was not.
    """

    key: str
    seed: int
    failure: str | None
    epoch: int
    val: list[list[float | None]] | None
    test: list[list[float | None]]
    loss: list[float | None]
    class_accuracy: list[float | None]
    loma: list[float | None]
    regularised_std: list[float | None]
    loma_mean: float | None
    loma_cv: float | None
    stopped: int | None = None
    pack: str = ""
    at_ms: int = 0

    @classmethod
    def of(cls, key: str, seed: int, result: RunResult) -> Record:
        """The record of a run's result."""
        kept = result.kept
        return cls(
            key=key,
            seed=seed,
            failure=result.failure,
            epoch=-1 if kept is None else kept.epoch,
            val=None if result.val_accuracy is None else _json_list(result.val_accuracy),
            test=_json_list(result.test_accuracy),
            loss=_json_list(result.train_loss),
            class_accuracy=[] if kept is None else _json_list(kept.class_accuracy),
            loma=[] if kept is None else _json_list(kept.loma),
            regularised_std=[] if kept is None else _json_list(kept.regularised_std),
            loma_mean=None if kept is None else _finite(float(np.nanmean(kept.loma))),
            loma_cv=None if kept is None else _finite(float(loma_cv(torch.tensor(kept.loma)))),
            stopped=result.stopped,
        )


class FinishedRuns:
    """The finished runs of a sweep directory, read-only: needs no lease, writes and removes nothing.

    Attributes:
        finished: every record by key, in the order of the ledger.
        seconds: time spent in training, summed over packs, and time that this process spent in writing the ledger.

    Raises:
        LongtailError: a line other than the last is damaged.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / "ledger.jsonl"
        self.heads = directory / "heads"
        self.finished: dict[str, Record] = {}
        self.seconds = {"train": 0.0, "ledger": 0.0}
        self._term = self._end = 0
        for line, records, end in _lines(self.path) if self.path.exists() else ():
            self._term, self._end = max(self._term, line["term"]), end
            if "pack" in line:
                self._add(line, records)

    def append(self, pack: Pack, keys: Sequence[str], results: Sequence[RunResult], seconds: float) -> list[Record]:
        """Not possible; see `Ledger.append`."""
        raise AssertionError(f"{self.path} is open for reading, not for writing")

    def head(self, key: str) -> dict[str, Tensor]:
        """The head of a finished run, in the form that `MethodSpec.classifier` takes.

        Raises:
            LongtailError: its file is missing.
        """
        file = self.heads / f"{self.finished[key].pack}.safetensors"
        if not file.exists():
            raise LongtailError(f"head {file} is missing; start the sweep over with --fresh to train it again")
        from safetensors.torch import load_file

        tensors = load_file(file)
        prefix = f"{key}/"
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

    def drop_heads(self, keys: Iterable[str]) -> None:
        """Does nothing; see `Ledger.drop_heads`."""

    def _add(self, line: dict[str, Any], records: list[Record]) -> list[Record]:
        self.finished |= {record.key: record for record in records}
        self.seconds["train"] += line["seconds"]
        return records


class Ledger(FinishedRuns):
    """The ledger of a sweep directory, open for writing. The caller holds the sweep's lease.

    Args:
        directory: the sweep directory.
        check: called before every write; raises if the lease is lost.
        driver: description of this process, recorded for people who read the file.

    Raises:
        LeaseLost: another driver has taken over the sweep.
        LongtailError: a line other than the last is damaged.
        StorageError: the ledger cannot be written.
    """

    def __init__(self, directory: Path, check: Callable[[], None] = lambda: None, driver: str = "") -> None:
        self._check, path = check, directory / "ledger.jsonl"
        with writing(path):
            (directory / "heads").mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            sync(directory)
        try:
            super().__init__(directory)
            os.ftruncate(self._file, self._end)
            self._check()  # a new term fences off the driver before, so only the owner of the lease may begin one
            self._write({"term": self._term + 1, "driver": driver, "at_ms": time.time_ns() // 1_000_000})
            self._term += 1
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def append(self, pack: Pack, keys: Sequence[str], results: Sequence[RunResult], seconds: float) -> list[Record]:
        """Record the results of a pack durably and atomically, heads first.

        Raises:
            LeaseLost: another driver has taken over the sweep.
            StorageError: the disk is full; the ledger is unchanged.
        """
        self._check()
        start = time.perf_counter()
        records = [Record.of(key, run.seed, result) for key, run, result in zip(keys, pack.runs, results, strict=True)]
        self._save_heads(pack, keys, results)
        at_ms = time.time_ns() // 1_000_000
        line = {
            "term": self._term,
            "pack": pack.name,
            "at_ms": at_ms,
            "seconds": round(seconds, 4),
            "runs": [{k: v for k, v in vars(record).items() if k not in ("pack", "at_ms")} for record in records],
        }
        self._write(line)
        self.seconds["ledger"] += time.perf_counter() - start
        return self._add(line, [replace(record, pack=pack.name, at_ms=at_ms) for record in records])

    def drop_heads(self, keys: Iterable[str]) -> None:
        """Remove the heads of every pack whose runs are all among `keys`, which can no longer win."""
        dropped = set(keys)
        still_wanted = {record.pack for record in self.finished.values() if record.key not in dropped}
        for pack in {self.finished[key].pack for key in dropped} - still_wanted:
            (self.heads / f"{pack}.safetensors").unlink(missing_ok=True)

    def _save_heads(self, pack: Pack, keys: Sequence[str], results: Sequence[RunResult]) -> None:
        tensors: dict[str, Tensor] = {}
        for key, result in zip(keys, results, strict=True):
            if result.kept is not None and result.stopped is None:  # a stopped run cannot win
                # Copied, because arrays from a worker's shared memory are not writable.
                state = {name: torch.from_numpy(np.array(array)) for name, array in result.kept.state.items()}
                tensors |= {f"{key}/{name}": tensor for name, tensor in state.items()}
        with atomic_file(self.heads / f"{pack.name}.safetensors") as file:
            write_tensors(file, tensors)

    def _write(self, line: dict[str, Any]) -> None:
        """Append a line and sync it; on failure remove the part that was written."""
        text = json.dumps(line, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        if os.fstat(self._file).st_size != self._end:
            self._check_other_writers()
        with writing(self.path):
            try:
                rest = text
                while rest:
                    rest = rest[os.write(self._file, rest) :]
                os.fsync(self._file)
            except OSError:
                self._truncate(len(text))
                raise
        self._end += len(text)

    def _truncate(self, length: int) -> None:
        """Remove what was written of a line of this length, unless another driver may be writing by now."""
        with contextlib.suppress(LongtailError, OSError):  # readers skip an incomplete last line
            self._check()
            if os.fstat(self._file).st_size <= self._end + length:
                os.ftruncate(self._file, self._end)

    def _check_other_writers(self) -> None:
        """Raise if another driver has begun a newer term; skip lines of a driver with an older one."""
        end = term = 0
        for line, _, line_end in _lines(self.path):
            term, end = max(term, line["term"]), line_end
        if term != self._term:
            raise LeaseLost(
                f"{self.path} is now written by another driver; this process stops, its finished runs are kept"
            )
        os.ftruncate(self._file, end)
        self._end = end


def _lines(path: Path) -> Iterator[tuple[dict[str, Any], list[Record], int]]:
    """The complete lines, their records and the offsets at which they end; fenced-off lines come without records."""
    term = end = 0
    for number, text in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        if not text.endswith(b"\n"):
            return  # cut short by a crash, before the pack was reported to the search or tracking
        end += len(text)
        try:
            line = json.loads(text)
            own, records = line["term"], []
            if type(own) is not int:
                raise TypeError("a term must be an integer")
            if "pack" in line:
                records = [Record(**run, pack=line["pack"], at_ms=line["at_ms"]) for run in line["runs"]]
                if type(line["seconds"]) not in (int, float) or not all(isinstance(one.key, str) for one in records):
                    raise TypeError("seconds must be a number and keys must be text")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise LongtailError(
                f"{path}:{number}: this line is damaged; remove it to train its pack again, or remove the directory to "
                "start over"
            ) from None
        if own >= term:
            term = own
            yield line, records, end
        else:
            yield {"term": own}, [], end  # written by a driver that had lost its lease


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _json_list(array: np.ndarray) -> Any:
    """Nested lists with None in place of NaN and infinities, which JSON does not have."""
    values = np.round(array.astype(np.float64), 7).astype(object)
    values[~np.isfinite(array)] = None
    return values.tolist()
