"""The ledger: the durable record of a sweep, from which everything that is shown is computed.

`ledger.jsonl` holds one JSON line per event, in the order of events:

- `driver`: a process opened the ledger for writing.
- `sweep`: the content of `sweep.json`.
- `trial`: a trial was proposed, with its searched values (by dotted path), its seeds, the keys of its runs, and the
  version of the library that proposed it.
- `run`: a run ended, with its status and metrics. Accuracies are fractions of 1 at the selected epoch.
- `pack`: ends the lines of the runs of one pack. They were written at once and count only if all of them are sound.
- `finished`: every run of the sweep is recorded; seconds by activity.

`pandas.read_json(path, lines=True)` reads it as a table. Curves and values by class are in `packs/`, trained heads in
`heads/`, one file per pack. Heads are removed once their runs can no longer win.

A pack is finished once its file in `packs/` is complete; only then are its lines written and synced, and only then do
the search and tracking hear of it. A line cut short by a crash is dropped when the ledger is next opened.

Nothing is believed unchecked. Every line ends with a digest of its own bytes and has the id of its sweep; the name of
every file contains the digest of the file. `LedgerReader` leaves damaged lines, and those of another sweep, out and
names them; readers of sweeps refuse such a ledger.
`Ledger` moves them to `damaged/`, with damaged files, and restores lines from `packs/`, where every file has a copy of
the lines of its runs and their trials. Only the runs of a damaged file in `packs/`, or of damaged heads that are still
needed, are trained again.

Opening the ledger for writing appends a fencing token, `term`. Lines with an older token that follow it are ignored, so
a driver that lost its lease cannot corrupt the ledger.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lt_train.core.clock import now_ms
from lt_train.core.errors import LongtailError, StorageError
from lt_train.core.io import atomic_file, remove, sync, writing
from lt_train.core.validation import named
from lt_train.retrain.base import Pack, RunResult
from sweeps.store.layout import RESULT, check_place
from sweeps.store.lease import LeaseLost
from sweeps.store.lines import read_lines, with_check
from sweeps.store.pack_files import (
    is_sound,
    lines_in,
    name_parts,
    pack_file,
    read_arrays,
    read_head,
    run_arrays,
    save_arrays,
    save_heads,
)
from sweeps.store.records import Record, RecordedTrial, RunArrays, SweepEnd

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from sweeps.config.trials import Trial

__all__ = ["Ledger", "LedgerReader", "recorded_sweep_id"]

logger = logging.getLogger(__name__)

FORMAT = 1
"""Of the ledger and the files of its packs."""


@dataclass(frozen=True, slots=True)
class _Pack:
    """A recorded pack: the keys of its runs, the digests of its files, and the seconds of its training."""

    keys: tuple[str, ...]
    arrays_digest: str
    heads_digest: str | None
    seconds: float


class LedgerReader:
    """The ledger of a sweep directory, read-only: needs no lease, writes and removes nothing.

    Args:
        directory: the sweep directory.
        sweep_id: the sweep's id according to `sweep.json`; if empty, that of the first line.

    Attributes:
        runs: every recorded run by key, in the order of the ledger.
        trials: every proposed trial by name, in the order of the ledger.
        identity: the content of `sweep.json` as recorded; None if it is not.
        end: None until every run is recorded.
        damage: the damaged lines, such as `line 17`, which are left out; and `lines of 2 packs are missing` or `its end
            is missing`, if files that are written later than the lines show that there were more.

    Raises:
        LongtailError: the ledger cannot be read, is that of another sweep, or has another format.
    """

    def __init__(self, directory: Path, sweep_id: str = "") -> None:
        self.path, self.sweep_id = directory / "ledger.jsonl", sweep_id
        self.packs, self.heads = directory / "packs", directory / "heads"
        self._read()

    def _read(self) -> None:
        self.runs: dict[str, Record] = {}
        self.trials: dict[str, RecordedTrial] = {}
        self.identity: dict[str, Any] | None = None
        self.end: SweepEnd | None = None
        self._recorded_end: SweepEnd | None = None
        self._has_ended = False
        self.damage: list[str] = []
        self._unsound: set[bytes] = set()
        self._recorded: dict[str, _Pack] = {}
        self._open: dict[str, list[Record]] = defaultdict(list)
        self._cached: tuple[str, dict[str, NDArray[Any]]] = ("", {})
        self._orphans: dict[str, str] = {}
        self._term = self._size = 0
        own = others = 0
        # Before the ledger is read, because a driver may add lines to it at the same time.
        files, has_result = self._pack_files(), (self.path.parent / RESULT).is_file()
        for line in read_lines(self.path):
            self._size = line.end
            what = ""
            if line.document is None:
                what = f"line {line.number}"
            elif line.document["event"] == "driver" and line.document.get("format") != FORMAT:
                raise LongtailError(
                    f"{self.path} has format {line.document.get('format')}, and this version of the program has format "
                    f"{FORMAT}; use the version that wrote it, or start over with --fresh"
                )
            elif self._is_of_another_sweep(line.document):
                what = f"line {line.number} (of another sweep)"
                others += 1
            else:
                own += 1
                try:
                    self._add(line.document)
                except (KeyError, TypeError, ValueError):
                    what = f"line {line.number} (not understood)"
            if what:
                self.damage.append(what)
                self._unsound.add(line.text)
        self.damage = self.damage or list(self._missing(files, has_result))
        if others and not own:
            raise LongtailError(
                f"{self.path} and sweep.json beside it belong to different sweeps; put the right file back, or start "
                "over with --fresh"
            )

    def _pack_files(self) -> list[Path]:
        try:
            return sorted(file for file in self.packs.iterdir() if name_parts(file)[1])
        except OSError:
            return []

    def _missing(self, files: Sequence[Path], has_result: bool) -> Iterator[str]:
        """What the ledger lacks compared with files that are written later, or at most one pack earlier."""
        unlisted = [file for file in files if name_parts(file)[0] not in self._recorded]
        packs = sum(any(self._is_missing(line) for line in lines_in(file)) for file in unlisted)
        if packs > 1:
            yield f"lines of {packs} packs are missing"
        elif has_result and not self._has_ended:
            yield "its end is missing"

    def _is_missing(self, line: Any) -> bool:
        """Whether a line of any file in `packs/` is that of a run of this sweep that the ledger lacks."""
        is_run = isinstance(line, dict) and line.get("event") == "run" and line.get("sweep_id", "") == self.sweep_id
        return is_run and line["key"] not in self.runs

    def _is_of_another_sweep(self, line: Mapping[str, Any]) -> bool:
        found = line.get("sweep_id", "")
        self.sweep_id = self.sweep_id or found
        return bool(found != self.sweep_id)

    def _add(self, line: Mapping[str, Any]) -> None:
        """Take in a sound line; lines of a driver that had lost its lease are ignored."""
        if line["term"] < self._term:
            return
        self._term = line["term"]
        match line["event"]:
            case "sweep":
                self.identity = {name: value for name, value in line.items() if name not in ("event", "term", "check")}
            case "trial":
                self.trials[line["trial"]] = RecordedTrial.read(line)
                self._orphans.pop(line["trial"], None)
                self.end = None
            case "run":
                self._open[line["pack"]].append(Record.read(line))
                if line["trial"] not in self.trials:
                    self._orphans[line["trial"]] = line["pack"]
            case "pack":
                runs = {record.key: record for record in self._open[line["pack"]][-line["runs"] :]}
                pack = _Pack(tuple(runs), line["arrays"], line["heads"], line["seconds"])
                if len(runs) == line["runs"]:
                    del self._open[line["pack"]]
                    self.end = self._recorded_end = None
                    self.runs |= runs
                    self._recorded[line["pack"]] = pack
            case "finished":
                self._has_ended = True
                self._recorded_end = SweepEnd(line["times"], tuple(line["notes"]))
                complete = line["trials"] <= len(self.trials) and line["runs"] <= len(self.runs)
                self.end = self._recorded_end if complete else None  # a line is missing

    @property
    def train_seconds(self) -> float:
        """Time spent in training, summed over packs."""
        return sum(pack.seconds for pack in self._recorded.values())

    @property
    def proposed_with(self) -> list[str]:
        """The versions of libraries that proposed trials of the search, such as `optuna 5.0.0`, the first one first."""
        trials = (trial for trial in self.trials.values() if trial.phase == "search")
        return list(dict.fromkeys(trial.proposed_with for trial in trials if trial.proposed_with))

    def arrays(self, key: str) -> RunArrays:
        """The arrays of a recorded run.

        Raises:
            LongtailError: their file is missing or altered.
        """
        pack, (cached, tensors) = self.runs[key].pack, self._cached
        if cached != pack:
            recorded = self._recorded[pack].arrays_digest
            tensors = read_arrays(pack_file(self.packs, pack, recorded), recorded)
            self._cached = pack, tensors
        return run_arrays(key, tensors)

    def is_head_lost(self, key: str) -> bool:
        """Whether the head of a recorded run was stored and is missing now, removed or damaged."""
        name = self.runs[key].pack
        heads = self._recorded[name].heads_digest
        return heads is not None and not pack_file(self.heads, name, heads).is_file()

    def head(self, key: str) -> dict[str, Tensor]:
        """The head of a recorded run, in the form that `MethodSpec.classifier` takes.

        Raises:
            LongtailError: it was not stored, or its file is missing or altered.
        """
        name = self.runs[key].pack
        heads = self._recorded[name].heads_digest
        if heads is None:
            raise LongtailError(f"{self.heads} has no head of run {key[:12]}: it failed or was stopped early")
        return read_head(pack_file(self.heads, name, heads), heads, key)


def recorded_sweep_id(directory: Path) -> str:
    """The id of the sweep whose ledger, or whose files in `packs/`, are in a directory; empty if there are none.

    Raises:
        LongtailError: the ledger cannot be read or has another format.
    """
    reader = LedgerReader(directory)
    lines = (line for file in sorted(reader.packs.glob("*.safetensors")) for line in lines_in(file))
    return reader.sweep_id or next((line["sweep_id"] for line in lines if "sweep_id" in line), "")


class Ledger(LedgerReader):
    """The ledger of a sweep directory, open for writing. The caller holds the sweep's lease.

    Args:
        directory: the sweep directory.
        check_lease: called before every write; raises if the lease is lost.
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
        check_lease: Callable[[], None] = lambda: None,
        driver: str = "",
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        self._check_lease, self.seconds, path = check_lease, 0.0, directory / "ledger.jsonl"
        self._unneeded: set[str] = set()
        self._has_set_aside = False
        for place in (directory / "packs", directory / "heads"):
            check_place(place, directory=True)
            with writing(place):
                place.mkdir(parents=True, exist_ok=True)
        check_place(path)
        with writing(path):
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            sync(directory)
        try:
            super().__init__(directory, str((identity or {}).get("sweep_id", "")))
            self._earlier_end = self._recorded_end
            self._check_lease()  # a new term fences off the driver before, so only the owner of the lease may begin one
            restored = self._repair()
            self._cut(self._size)
            self._term += 1
            started = {"event": "driver", "at_ms": now_ms(), "format": FORMAT, "driver": driver}
            known = identity is None or self.identity == identity
            self._write([started, *([] if known else [{"event": "sweep", **(identity or {})}]), *restored])
            self.damage = []
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def propose(self, trials: Iterable[tuple[Trial, Sequence[str]]], proposed_with: str = "") -> None:
        """Record proposed trials with the keys of their runs, unless they are recorded already.

        Args:
            trials: the trials and the keys of their runs, by seed.
            proposed_with: name and version of the library that proposed their values; empty if there is none.

        Raises:
            LeaseLost: another driver has taken over the sweep.
            StorageError: the disk is full; the ledger is unchanged.
        """
        lines = [
            RecordedTrial.of(trial, keys, proposed_with, now_ms()).line()
            for trial, keys in trials
            if trial.name not in self.trials or self.trials[trial.name].keys != tuple(keys)
        ]
        if lines:
            self._check_lease()
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
        self._check_lease()
        start, at_ms = time.perf_counter(), now_ms()
        records = [
            Record.of(key, run.seed, result, pack.name, at_ms, pack.rule.scores)
            for key, run, result in zip(keys, pack.runs, results, strict=True)
        ]
        lines = [record.line(trial) for record, trial in zip(records, trials, strict=True)]
        heads = save_heads(self.heads, pack.name, keys, results)
        lines.append(
            {
                "event": "pack",
                "at_ms": at_ms,
                "pack": pack.name,
                "runs": len(records),
                "seconds": round(seconds, 4),
                "heads": heads,
            }
        )
        names = dict.fromkeys(trial.name for trial in trials)
        copied = [self.trials[name].line() for name in names if name in self.trials] + lines
        copied = [self._line(line) for line in copied]
        arrays = save_arrays(self.packs, pack.name, keys, results, copied)
        earlier = self._recorded.get(pack.name)
        self._write([*lines[:-1], lines[-1] | {"arrays": arrays}])
        if earlier is not None and earlier.arrays_digest != arrays:  # trained again because its heads were missing
            pack_file(self.packs, pack.name, earlier.arrays_digest).unlink(missing_ok=True)
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
            self._check_lease()
            counts = {"trials": len(self.trials), "runs": len(self.runs)}
            times = {"times": dict(end.seconds), "notes": list(end.notes)}
            self._write([{"event": "finished", "at_ms": now_ms(), **counts, **times}])

    def drop_heads(self, keys: Iterable[str]) -> None:
        """Remove the heads of every pack whose runs can no longer win; `keys` are those that have just become known."""
        new = set(keys)
        self._unneeded |= new
        for name in {self.runs[key].pack for key in new}:
            pack = self._recorded[name]
            if pack.heads_digest is not None and self._unneeded.issuperset(pack.keys):
                pack_file(self.heads, name, pack.heads_digest).unlink(missing_ok=True)

    def _repair(self) -> list[dict[str, Any]]:
        """Set aside what is damaged, and return the lines that can be restored from the files in `packs/`."""
        damaged = [f"{self.path.name} ({named(self.damage, 5)})"] if self.damage else []
        for file in (*sorted(self.packs.iterdir()), *sorted(self.heads.iterdir())):
            name, recorded = name_parts(file)
            if not recorded:
                if file.suffix in (".staged", ".tmp"):  # not finished
                    remove(file)
            elif not is_sound(file, recorded) or not self._is_own(file, name, recorded):
                damaged.append(f"{file.parent.name}/{file.name}")
                self._keep_damaged(file)
        lost: dict[str, tuple[str, ...]] = {}
        for name, pack in self._recorded.items():
            file = pack_file(self.packs, name, pack.arrays_digest)
            if not file.exists():
                lost[name] = pack.keys
                if f"packs/{file.name}" not in damaged:
                    damaged.append(f"packs/{file.name} (missing)")
        if damaged or self._open:
            self._rewrite(lost.keys())
        restored = self._restored()
        keys = {line["key"] for line in restored if line["event"] == "run"}
        again = {key for pack in lost.values() for key in pack} - keys
        outcome = f"{_runs(keys, 'was', 'were')} restored from packs/" if keys else ""
        if damaged:
            remove(self.path.parent / RESULT)  # written again at the end
            outcome += f"{' and ' if outcome else ''}{_runs(again, 'is', 'are')} trained again" if again else ""
            logger.warning(
                "%s was damaged: %s. It is repaired%s%s",
                self.path.parent,
                named(damaged, 5),
                f": {outcome}" if outcome else ", nothing was lost",
                "; replaced lines and files are in damaged/" if self._has_set_aside else "",
            )
        elif keys:
            logger.warning("%s missing from %s: %s", _runs(keys, "was", "were"), self.path, outcome)
        return restored

    def _is_own(self, file: Path, pack: str, recorded: str) -> bool:
        """Whether a sound file is one that the ledger names, or may restore: of this sweep, under its own name."""
        known = self._recorded.get(pack)
        if file.parent == self.heads or (known is not None and known.arrays_digest == recorded):
            return True
        lines = lines_in(file)
        names = {line.get("pack", pack) for line in lines}
        return names == {pack} and not any(self._is_of_another_sweep(line) for line in lines)

    def _rewrite(self, lost: Collection[str]) -> None:
        """Remove damaged lines, those of incomplete or lost packs, and the end of the sweep, which is recorded again.

        Damaged lines and those of lost packs are kept in `damaged/`.
        """
        kept, aside = [], []
        for line in read_lines(self.path):
            document = line.document or {}
            pack = document.get("pack")
            if line.text in self._unsound or pack in lost:
                aside.append(line.text + b"\n")
            elif pack not in self._open and document["event"] != "finished":
                kept.append(line.text + b"\n")
        if not aside and not self._open:
            return
        self._check_lease()
        if aside:
            place = self._aside() / self.path.name
            with writing(place), place.open("ab") as file:
                file.writelines(aside)
        with atomic_file(self.path) as temporary:
            temporary.write_bytes(b"".join(kept))
        with writing(self.path):
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND)
        os.close(self._descriptor)
        self._descriptor = descriptor
        self._read()

    def _restored(self) -> list[dict[str, Any]]:
        """The missing lines of complete packs and of the trials of their runs; removes files that are not used."""
        trials: dict[str, dict[str, Any]] = {}
        others: list[dict[str, Any]] = []
        known, heads = set(self.runs), {name: pack.heads_digest for name, pack in self._recorded.items()}
        incomplete = set(self._orphans.values())  # the line of a trial is missing, those of its runs are not
        for file in sorted(self.packs.iterdir()):
            name, recorded = name_parts(file)
            if not recorded:
                continue
            is_used = name in self._recorded and self._recorded[name].arrays_digest == recorded
            if is_used and name not in incomplete:
                continue
            lines = lines_in(file)
            trials |= {
                line["trial"]: line for line in lines if line["event"] == "trial" and line["trial"] not in self.trials
            }
            if is_used:
                continue
            runs, end = [line for line in lines if line["event"] == "run"], lines[-1]
            keys = {run["key"] for run in runs}
            if keys <= known:
                remove(file)  # a pack that was trained twice
                continue
            known |= keys
            heads[name] = end["heads"]
            others += [*runs, end | {"arrays": recorded}]
        for file in sorted(self.heads.iterdir()):
            name, recorded = name_parts(file)
            if recorded and heads.get(name) != recorded:
                remove(file)
        return [*trials.values(), *others]

    def _aside(self) -> Path:
        """The directory for what is damaged, created if it is missing."""
        self._has_set_aside = True
        place = self.path.parent / "damaged"
        check_place(place, directory=True)
        with writing(place):
            place.mkdir(exist_ok=True)
        return place

    def _keep_damaged(self, file: Path) -> None:
        place = self._aside() / file.name
        with writing(place):
            remove(place)
            file.rename(place)

    def _write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Append lines at once, sync them and take them in; on failure remove the part that was written."""
        documents = [self._line(line) for line in lines]
        text = b"".join(with_check(document) for document in documents)
        if os.fstat(self._descriptor).st_size != self._size:
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
        self._size += len(text)
        for document in documents:
            self._add(document)

    def _line(self, line: Mapping[str, Any]) -> dict[str, Any]:
        """A line with the fields that all lines have."""
        own = {"sweep_id": self.sweep_id} if self.sweep_id else {}
        return {"event": line["event"], **own, **line, "term": self._term}

    def _truncate(self, length: int) -> None:
        """Remove what was written of lines of this length, unless another driver may be writing by now."""
        with contextlib.suppress(LongtailError, OSError):  # readers skip an incomplete last line
            self._check_lease()
            if os.fstat(self._descriptor).st_size <= self._size + length:
                os.ftruncate(self._descriptor, self._size)

    def _check_other_writers(self) -> None:
        """Raise if another driver has begun a newer term; skip lines of a driver with an older one."""
        end = term = 0
        for line in read_lines(self.path):
            term, end = max(term, line.document["term"] if line.document else 0), line.end
        if term < self._term:
            raise StorageError(f"{self.path} was changed by another program while the sweep was running; run it again")
        if term > self._term:
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
        self._size = end


def _runs(keys: Collection[str], one: str, several: str) -> str:
    """`1 run was`, `3 runs were`."""
    return f"1 run {one}" if len(keys) == 1 else f"{len(keys)} runs {several}"
