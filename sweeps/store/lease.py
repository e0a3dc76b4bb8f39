"""One driver a sweep: a lease that is renewed while its holder lives, and taken over when the holder is gone.

A lease is a numbered file in a directory that every machine of a cluster may share. To take one over is to create the
next number, which on any file system one process alone can do. No two machines' clocks are compared: whether a holder
on another machine lives is seen by its file changing. A holder that only seemed dead finds out by `check`; that it
cannot do harm before is the ledger's business (`sweeps.store.ledger`). Knows files and processes; knows no sweep.
"""

from __future__ import annotations

import contextlib
import errno
import getpass
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from lt_train.core.errors import LongtailError, StorageError, UserError
from lt_train.core.io import writing
from sweeps.store.moments import shown_moment

__all__ = ["Holder", "Lease", "LeaseLost", "held", "holder"]

RENEWED_EVERY = 5.0
"""Seconds between two signs of life."""

LAPSE = 30.0
"""Seconds without a sign of life after which a holder on another machine is taken to be gone."""


class LeaseLost(LongtailError):
    """Another driver has taken over: this one must stop. Nothing that it finished is lost."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lease.

    Attributes:
        who: for people: user, host, process and, if it is one, Ray job.
        machine: equal for processes whose ids may be compared: host, its boot, and the name space of ids.
        process, born: id and start of the process; an id alone may be given again.
        since_ms: milliseconds since 1970, by its own clock.
        released: whether it has let go.
    """

    who: str
    machine: str
    process: int
    born: str
    since_ms: int
    released: bool = False

    def is_here(self) -> bool:
        """Whether its process could be one of this machine's."""
        return self.machine == _machine()

    def lives(self) -> bool:
        """Whether its process, one of this machine's, is still there."""
        return self.born == _born(self.process)


class Lease:
    """A lease that this process holds. Every method may be called from any thread.

    Attributes:
        who: this process, for people.
    """

    def __init__(self, directory: Path, name: str, number: int, me: Holder) -> None:
        self.who = me.who
        self._directory, self._name, self._number, self._me = directory, name, number, me
        self._ended = threading.Event()
        self._renewer = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._renewer.start()

    def check(self) -> None:
        """Return if this process still holds the lease.

        Raises:
            LeaseLost: another has taken it over; says who.
            StorageError: nobody can say: the leases cannot be read.
        """
        try:
            latest = _latest(self._directory, self._name)
        except OSError as error:
            raise StorageError(f"cannot read the leases in {self._directory}: {error.strerror}; run again") from error
        if latest is not None and latest[0] > self._number:
            raise LeaseLost(
                f"{latest[1].who} has taken over sweep {self._name}: it did not see this process alive for "
                f"{LAPSE:.0f} s; this one stops, and what it finished is kept"
            )

    def holds(self) -> bool:
        """Whether this process still holds the lease, as far as it knows."""
        try:
            self.check()
        except LeaseLost:
            return False
        except StorageError:
            pass  # a disk that stumbles has given it to nobody; the ledger asks again before it writes
        return True

    def release(self) -> None:
        """Let go; the next driver need not wait."""
        self._ended.set()
        self._renewer.join()
        path = _path(self._directory, self._name, self._number)
        with contextlib.suppress(OSError):  # the process's end says it too
            if not path.exists():
                return
            released = path.with_suffix(".released")
            try:
                released.write_text(json.dumps(asdict(self._me) | {"released": True}))
                released.replace(path)
            except OSError:  # a full disk, which still lets go of files
                path.unlink()
                released.unlink(missing_ok=True)

    def _renew(self) -> None:
        while not self._ended.wait(RENEWED_EVERY):
            with contextlib.suppress(OSError):  # not by writing, so that a full disk does not cost the lease
                os.utime(_path(self._directory, self._name, self._number))


@contextlib.contextmanager
def held(
    directory: Path, name: str, *, job: str | None = None, told: Callable[[str], None] = lambda text: None
) -> Iterator[Lease]:
    """Hold the lease of sweep `name`, whose files lie in `directory`.

    Args:
        directory: made if it is not there.
        name: of the sweep; no part of a path.
        job: the Ray job that this process is, for those who ask who holds the lease.
        told: hears why this takes long, when it does.

    Raises:
        UserError: a living process holds it; says which.
        StorageError: the directory cannot be written.
    """
    lease = _take(directory, name, job, told)
    try:
        yield lease
    finally:
        lease.release()


def holder(directory: Path, name: str) -> Holder | None:
    """Who holds the lease of a sweep as far as can be said at once; None when nobody does.

    A holder on another machine is named although it may be gone.
    """
    latest = _latest(directory, name)
    if latest is None or latest[1].released or (latest[1].is_here() and not latest[1].lives()):
        return None
    return latest[1]


def _take(directory: Path, name: str, job: str | None, told: Callable[[str], None]) -> Lease:
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
    while True:
        latest = _latest(directory, name)
        if latest is not None and not latest[1].released:
            _wait_until_gone(directory, name, *latest, told)
        number = 1 if latest is None else latest[0] + 1
        me = _me(job)
        if _create(_path(directory, name, number), me):
            for earlier in range(max(1, number - 10), number):
                with contextlib.suppress(OSError):
                    _path(directory, name, earlier).unlink()
            return Lease(directory, name, number, me)


def _wait_until_gone(directory: Path, name: str, number: int, other: Holder, told: Callable[[str], None]) -> None:
    """Return when `other` shows no sign of life.

    Raises:
        UserError: it shows one.
    """
    alive = UserError(
        f"sweep {name} is being run by {other.who}, since {shown_moment(other.since_ms)}; wait for it, or stop it with "
        "`lt-sweep stop`"
    )
    if other.is_here():
        if other.lives():
            raise alive
        return
    path = _path(directory, name, number)
    seen, deadline = _changed(path), time.monotonic() + LAPSE
    told(f"{other.who} was running this sweep; waiting {LAPSE:.0f} s for a sign of life from it")
    while time.monotonic() < deadline:
        time.sleep(min(0.5, LAPSE / 10))
        now = _changed(path)
        if now is None or _released(directory, name, number):
            return
        if now != seen:
            raise alive


def _released(directory: Path, name: str, number: int) -> bool:
    latest = _latest(directory, name)
    return latest is None or latest[0] != number or latest[1].released


def _create(path: Path, me: Holder) -> bool:
    """Create the file, whole, unless it is there; whether this process did."""
    with writing(path):
        draft = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        draft.write_text(json.dumps(asdict(me)))
        try:
            os.link(draft, path)
            return True
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            return _create_without_links(path, draft)
        finally:
            draft.unlink(missing_ok=True)


def _create_without_links(path: Path, draft: Path) -> bool:
    """The same where a file cannot have two names; there, for a moment, it may be seen empty."""
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    with os.fdopen(handle, "w") as file:
        file.write(draft.read_text())
    return True


def _latest(directory: Path, name: str) -> tuple[int, Holder] | None:
    """The highest number and who made it."""
    pattern = re.compile(rf"{re.escape(name)}\.(\d+)\.lease")
    while True:
        try:
            numbers = [int(match[1]) for entry in os.listdir(directory) if (match := pattern.fullmatch(entry))]
        except FileNotFoundError:
            return None
        if not numbers:
            return None
        path = _path(directory, name, max(numbers))
        try:
            return max(numbers), Holder(**json.loads(path.read_text()))
        except FileNotFoundError:
            continue  # taken over just now: there is a higher one
        except (ValueError, TypeError):
            # Being written where files cannot be created whole, or damaged: whoever it is shows life by changing it.
            return max(numbers), Holder(f"a process that left {path} unreadable", "", 0, "", 0)


def _path(directory: Path, name: str, number: int) -> Path:
    return directory / f"{name}.{number}.lease"


def _changed(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _me(job: str | None) -> Holder:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = str(os.getuid())
    who = f"{user}@{socket.gethostname()}, process {os.getpid()}" + (f", Ray job {job}" if job else "")
    return Holder(who, _machine(), os.getpid(), _born(os.getpid()), time.time_ns() // 1_000_000)


def _machine() -> str:
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _born(process: int) -> str:
    """When a process of this machine started, as its system says it; empty when there is none of this id."""
    try:
        text = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        if Path("/proc/self/stat").exists():
            return ""
        with contextlib.suppress(OSError):  # a system without /proc: the id has to do
            os.kill(process, 0)
            return str(process)
        return ""
    state, *rest = text.rpartition(")")[2].split()
    return "" if state == "Z" else rest[18]
