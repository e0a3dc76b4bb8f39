"""The ledger: what is finished, durably. The truth for resume; search and tracking only ever follow it.

One sweep directory holds one `ledger.jsonl`, one line a pack, appended and synced in one write before anything else
hears of the pack; a line cut short by a crash is dropped when the ledger is next opened. Whoever opens it to write
begins a term with a line of its own, and lines of an earlier term that come after it are void: a driver that was taken
for dead and was not can do no harm. Heads lie beside it, one file a pack, and are removed once they can no longer win.
Knows runs and results; knows no search and no tracking.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from lt_train.core.errors import LongtailError
from lt_train.core.io import atomic_file, fingerprint, sync, writing
from lt_train.core.tensor_file import write_tensors
from lt_train.metrics.accuracy import loma_cv
from lt_train.retrain.base import NUMERICS_VERSION, EpochSelection, Halving, Pack, Run, RunResult
from sweeps.store.lease import LeaseLost

__all__ = ["FinishedRuns", "Ledger", "Record", "run_key"]


def run_key(
    bank_fingerprint: str, run: Run, rule: EpochSelection, halving: Halving | None = None, pool: str = ""
) -> str:
    """The identity of a run: everything that decides its numbers, and nothing else. 64 hex digits.

    Which runs share its pack is not in it: among the runs of a `pool` that follows from the sweep file.
    """
    counts: list[Any] = [rule.epoch, rule.on, rule.metric] if rule.epoch == "best" else ["last"]
    if halving is not None:
        # Judged along the way, so what it is judged on counts even where the last epoch does.
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
    """A finished run as the ledger keeps it. Accuracies are fractions `[E][4]` over all/many/medium/few; None is NaN.

    `epoch` is the epoch that counts (from 0), -1 for a failed run, whose `failure` says why. `stopped` is None, or the
    epochs after which a scheduler stopped the run.
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
        """What is kept of a run's result."""
        kept = result.kept
        return cls(
            key=key,
            seed=seed,
            failure=result.failure,
            epoch=-1 if kept is None else kept.epoch,
            val=None if result.val_accuracy is None else _plain(result.val_accuracy),
            test=_plain(result.test_accuracy),
            loss=_plain(result.train_loss),
            class_accuracy=[] if kept is None else _plain(kept.class_accuracy),
            loma=[] if kept is None else _plain(kept.loma),
            regularised_std=[] if kept is None else _plain(kept.regularised_std),
            loma_mean=None if kept is None else _number(float(np.nanmean(kept.loma))),
            loma_cv=None if kept is None else _number(float(loma_cv(torch.tensor(kept.loma)))),
            stopped=result.stopped,
        )


class FinishedRuns:
    """What is finished in a sweep directory, for those who only look: no lease is taken, nothing is written or removed.

    Attributes:
        finished: every record by key, in the order of the ledger.
        seconds: spent in training, summed over packs, and in writing the ledger by this process.

    Raises:
        LongtailError: a line in the ledger's middle is damaged.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / "ledger.jsonl"
        self.heads = directory / "heads"
        self.finished: dict[str, Record] = {}
        self.seconds = {"train": 0.0, "ledger": 0.0}
        if self.path.exists():
            for line, records, _ in _lines(self.path):
                if "pack" in line:
                    self._take(line, records)

    def append(self, pack: Pack, keys: Sequence[str], results: Sequence[RunResult], seconds: float) -> list[Record]:
        """See `Ledger.append`; here it is our own bug."""
        raise AssertionError(f"{self.path} is open to be read, not written")

    def head(self, key: str) -> dict[str, torch.Tensor]:
        """A finished run's classifier, as `MethodSpec.classifier` takes it.

        Raises:
            LongtailError: it is not there: dropped, or removed by hand.
        """
        file = self.heads / f"{self.finished[key].pack}.safetensors"
        if not file.exists():
            raise LongtailError(f"head {file} is missing; start the sweep over with --fresh to train it again")
        tensors = load_file(file)
        prefix = f"{key}/"
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

    def drop_heads(self, keys: Iterable[str]) -> None:
        """See `Ledger.drop_heads`; who only looks removes nothing."""

    def _take(self, line: dict[str, Any], records: list[Record]) -> list[Record]:
        self.finished |= {record.key: record for record in records}
        self.seconds["train"] += line["seconds"]
        return records


class Ledger(FinishedRuns):
    """The ledger of one sweep directory, open to be written; the caller holds the sweep's lease.

    Args:
        directory: of the sweep.
        check: called before every line; raises when the lease is lost.
        driver: who writes, for those who read the file.

    Raises:
        LeaseLost: another driver has taken over before this one had begun.
        LongtailError: a line in its middle is damaged.
        StorageError: it cannot be written.
    """

    def __init__(self, directory: Path, check: Callable[[], None] = lambda: None, driver: str = "") -> None:
        self.path = directory / "ledger.jsonl"
        self.heads = directory / "heads"
        self.finished: dict[str, Record] = {}
        self.seconds = {"train": 0.0, "ledger": 0.0}
        self._check = check
        self._term = self._end = 0
        with writing(self.path):
            self.heads.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            sync(directory)
        try:
            self._read()
            self._check()  # a term that begins ends the one before: only whoever holds the lease may begin one
            self._write({"term": self._term + 1, "driver": driver, "at_ms": time.time_ns() // 1_000_000})
            self._term += 1
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the sweep directory."""
        os.close(self._file)

    def append(self, pack: Pack, keys: Sequence[str], results: Sequence[RunResult], seconds: float) -> list[Record]:
        """Write the results of a pack, heads first, durably and all or nothing.

        Raises:
            LeaseLost: another driver writes this ledger now.
            StorageError: the disk is full; the ledger is as it was before.
        """
        self._check()
        start = time.perf_counter()
        records = [Record.of(key, run.seed, result) for key, run, result in zip(keys, pack.runs, results, strict=True)]
        self._save_heads(pack, keys, results)
        line = {
            "term": self._term,
            "pack": pack.name,
            "at_ms": time.time_ns() // 1_000_000,
            "seconds": round(seconds, 4),
            "runs": [{k: v for k, v in vars(record).items() if k not in ("pack", "at_ms")} for record in records],
        }
        self._write(line)
        self.seconds["ledger"] += time.perf_counter() - start
        return self._take(line, _records(line))

    def drop_heads(self, keys: Iterable[str]) -> None:
        """Remove the heads of every pack all of whose runs are among `keys`: runs that cannot win any more."""
        dropped = set(keys)
        still_wanted = {record.pack for record in self.finished.values() if record.key not in dropped}
        for pack in {self.finished[key].pack for key in dropped} - still_wanted:
            (self.heads / f"{pack}.safetensors").unlink(missing_ok=True)

    def _save_heads(self, pack: Pack, keys: Sequence[str], results: Sequence[RunResult]) -> None:
        tensors: dict[str, torch.Tensor] = {}
        for key, result in zip(keys, results, strict=True):
            if result.kept is not None and result.stopped is None:  # what was stopped cannot win
                # Copied, because what came from a worker through shared memory cannot be written to.
                state = {name: torch.from_numpy(np.array(array)) for name, array in result.kept.state.items()}
                tensors |= {f"{key}/{name}": tensor for name, tensor in state.items()}
        with atomic_file(self.heads / f"{pack.name}.safetensors") as file:
            write_tensors(file, tensors)

    def _write(self, line: dict[str, Any]) -> None:
        """Append and sync; on failure cut off whatever part of it was written."""
        text = json.dumps(line, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        if os.fstat(self._file).st_size != self._end:
            self._look_at_others()
        with writing(self.path):
            try:
                rest = text
                while rest:
                    rest = rest[os.write(self._file, rest) :]
                os.fsync(self._file)
            except OSError:
                self._cut_off(len(text))
                raise
        self._end += len(text)

    def _cut_off(self, length: int) -> None:
        """Take back what was written of a line of this length, unless another driver may write here by now."""
        with contextlib.suppress(LongtailError, OSError):  # what is left of it, readers step over
            self._check()
            if os.fstat(self._file).st_size <= self._end + length:
                os.ftruncate(self._file, self._end)

    def _look_at_others(self) -> None:
        """Stop if another driver has begun a term; step over what one wrote that had lost its own."""
        others = term = 0
        for line, _, end in _lines(self.path):
            term, others = max(term, line.get("term", 0)), end
        if term != self._term:
            raise LeaseLost(f"{self.path} is written by another driver; this one stops, and what it finished is kept")
        os.ftruncate(self._file, others)
        self._end = others

    def _read(self) -> None:
        for line, records, end in _lines(self.path):
            self._term, self._end = max(self._term, line.get("term", 0)), end
            if "pack" in line:
                self._take(line, records)
        os.ftruncate(self._file, self._end)


def _lines(path: Path) -> Iterator[tuple[dict[str, Any], list[Record], int]]:
    """The lines that count, with their records and where they end; what was cut short or came too late is left out."""
    term = end = 0
    for number, text in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
        if not text.endswith(b"\n"):
            return  # cut short by a crash; the pack was never told to anyone
        end += len(text)
        try:
            line = json.loads(text)
            own = line.get("term", 0)
            records = _records(line) if "pack" in line else []
        except (ValueError, KeyError, TypeError, AttributeError):
            raise LongtailError(
                f"{path}:{number}: this line is damaged; remove it to train its pack again, "
                "or remove the directory to start over"
            ) from None
        if own >= term:
            term = own
            yield line, records, end
        else:
            yield {"term": own}, [], end  # of a driver that had lost its lease


def _records(line: dict[str, Any]) -> list[Record]:
    return [Record(**run, pack=line["pack"], at_ms=line["at_ms"]) for run in line["runs"]]


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _plain(array: np.ndarray) -> Any:
    """Nested lists with None for every value that is not finite: JSON has no NaN."""
    plain = np.round(array.astype(np.float64), 7).astype(object)
    plain[~np.isfinite(array)] = None
    return plain.tolist()
