"""The lease that limits a sweep to one driver: its owner renews it, and another driver takes over if the owner is dead.

A lease is a numbered file in a directory that the machines of a cluster may share. A process acquires the lease by
creating the file with the next number, which only one process can do on any file system. Clocks of different machines
are never compared: an owner on another machine is alive if its file changes. An owner that was wrongly considered dead
detects this in `Lease.check`; until then fencing (`sweeps.store.ledger`) prevents it from corrupting the ledger.
"""

from __future__ import annotations

import contextlib
import errno
import getpass
import json
import logging
import os
import re
import socket
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter

from lt_train.core.clock import now_ms
from lt_train.core.errors import LongtailError, StorageError, UserError
from lt_train.core.io import fingerprint, parse_json, writing
from lt_train.core.text import format_time
from sweeps.store.layout import check_place

__all__ = ["Lease", "LeaseLost", "LeaseOwner", "acquire_lease", "lease_owner"]

RENEWAL_INTERVAL = 5.0
"""Seconds between two renewals."""

EXPIRY = 30.0
"""Seconds without a renewal after which an owner on another machine is considered dead."""

logger = logging.getLogger(__name__)


class LeaseLost(LongtailError):
    """Another driver has taken over the sweep and this one must stop. Finished runs are kept."""


@dataclass(frozen=True)
class LeaseOwner:
    """The process that owns a lease.

    Attributes:
        who: for people: user, host, process and, if it is one, Ray job.
        machine: host, boot and process-id namespace; process ids are comparable only if these are equal.
        process: process id.
        process_start_time: tells apart processes that were given the same id.
        since_ms: when the lease was acquired, in milliseconds since 1970 by the owner's clock.
        released: whether the owner has released the lease.
    """

    who: str
    machine: str
    process: int
    process_start_time: str
    since_ms: int
    released: bool = False

    def is_local(self) -> bool:
        """Whether it runs, or ran, on this machine."""
        return self.machine == _machine()

    def is_alive(self) -> bool:
        """Whether the process still exists. Only meaningful for a local owner."""
        return self.process_start_time == _process_start_time(self.process)


_OWNER = TypeAdapter(LeaseOwner)


def _text(owner: LeaseOwner) -> str:
    """The content of a lease, with a digest: a damaged one may name a process that is dead, or alive."""
    return json.dumps(asdict(owner) | {"check": fingerprint(asdict(owner))})


def _owner(content: bytes) -> LeaseOwner:
    """The owner in the content of a lease.

    Raises:
        ValueError: the lease is damaged.
    """
    try:
        document = parse_json(content)
        check = document.pop("check")
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError("it has no digest") from error
    if check != fingerprint(document):
        raise ValueError("it has another digest")
    return _OWNER.validate_json(json.dumps(document), strict=True)


class Lease:
    """A lease that this process has acquired. Every method may be called from any thread.

    Attributes:
        who: this process, for people.
    """

    def __init__(self, directory: Path, name: str, number: int, owner: LeaseOwner) -> None:
        self.who = owner.who
        self._directory, self._name, self._number, self._owner = directory, name, number, owner
        self._ended = threading.Event()
        self._renewer = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._renewer.start()

    def check(self) -> None:
        """Return if this process still owns the lease.

        Raises:
            LeaseLost: another process has taken it over.
            StorageError: the leases cannot be read.
        """
        try:
            latest = _latest(self._directory, self._name)
        except OSError as error:
            raise StorageError(f"cannot read the leases in {self._directory}: {error.strerror}; run again") from error
        if latest is not None and latest[0] > self._number:
            raise LeaseLost(
                f"{latest[1].who} has taken over sweep {self._name} because this process did not renew its lease for "
                f"{EXPIRY:.0f} s; this process stops, its finished runs are kept"
            )

    def is_valid(self) -> bool:
        """Whether this process still owns the lease, as far as it can tell."""
        try:
            self.check()
        except LeaseLost:
            return False
        except StorageError:
            pass  # a failing disk does not give the lease to another process; the ledger checks before every write
        return True

    def release(self) -> None:
        """Release the lease, so that the next driver need not wait for it to expire."""
        self._ended.set()
        self._renewer.join()
        path = _path(self._directory, self._name, self._number)
        with contextlib.suppress(OSError):  # the end of the process releases it as well
            if not path.exists():
                return
            released = path.with_suffix(".released")
            try:
                released.write_text(_text(replace(self._owner, released=True)))
                released.replace(path)
            except OSError:  # the disk is full; files can still be removed
                path.unlink()
                released.unlink(missing_ok=True)

    def _renew(self) -> None:
        while not self._ended.wait(RENEWAL_INTERVAL):
            with contextlib.suppress(OSError):  # touched, not written, so that a full disk does not cost the lease
                os.utime(_path(self._directory, self._name, self._number))


@contextlib.contextmanager
def acquire_lease(directory: Path, name: str, *, job: str | None = None) -> Iterator[Lease]:
    """Acquire the lease of a sweep for the duration of the block.

    Waits up to `EXPIRY` seconds where an owner on another machine may be dead.

    Args:
        directory: where the leases are kept; created if it does not exist.
        name: name of the sweep; a single path component.
        job: the id of this process's Ray job, shown as part of the lease's owner.

    Raises:
        UserError: a running process owns the lease; the message names it.
        StorageError: the directory cannot be written.
    """
    lease = _acquire(directory, name, job)
    try:
        yield lease
    finally:
        lease.release()


def lease_owner(directory: Path, name: str) -> LeaseOwner | None:
    """The owner of a sweep's lease, without waiting; None if there is none.

    An owner on another machine is returned although it may be dead.
    """
    latest = _latest(directory, name)
    if latest is None or latest[1].released or (latest[1].is_local() and not latest[1].is_alive()):
        return None
    return latest[1]


def _acquire(directory: Path, name: str, job: str | None) -> Lease:
    for place in (directory.parent, directory):
        check_place(place, directory=True)
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
    while True:
        latest = _latest(directory, name)
        if latest is not None and not latest[1].released:
            _wait_until_dead(directory, name, *latest)
        number = 1 if latest is None else latest[0] + 1
        owner = _this_process(job)
        if _create(_path(directory, name, number), owner):
            for earlier in range(max(1, number - 10), number):
                with contextlib.suppress(OSError):
                    _path(directory, name, earlier).unlink()
            return Lease(directory, name, number, owner)


def _wait_until_dead(directory: Path, name: str, number: int, owner: LeaseOwner) -> None:
    """Return once `owner` has released its lease or let it expire.

    Raises:
        UserError: the owner is alive.
    """
    remedy = "wait for it, or stop it with `lt-sweep stop`"
    if owner.is_local() and owner.process == os.getpid():
        remedy = "an earlier call in this process runs it; wait for that call, or interrupt it"
    alive = UserError(f"sweep {name} is being run by {owner.who}, since {format_time(owner.since_ms)}; {remedy}")
    if owner.is_local():
        if owner.is_alive():
            raise alive
        return
    path = _path(directory, name, number)
    seen, deadline = _modified(path), time.monotonic() + EXPIRY
    logger.info("%s was running this sweep; waiting %.0f s for it to renew its lease", owner.who, EXPIRY)
    while time.monotonic() < deadline:
        time.sleep(min(0.5, EXPIRY / 10))
        now, latest = _modified(path), _latest(directory, name)
        if now is None or latest is None or latest[0] != number or latest[1].released:
            return
        if now != seen:
            raise alive


def _create(path: Path, owner: LeaseOwner) -> bool:
    """Create the file atomically; False if it exists already."""
    with writing(path):
        draft = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        draft.write_text(_text(owner))
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
    """The same on file systems without hard links, where the file is empty for a moment."""
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    with os.fdopen(handle, "w") as file:
        file.write(draft.read_text())
    return True


def _latest(directory: Path, name: str) -> tuple[int, LeaseOwner] | None:
    """The highest number and its owner."""
    pattern = re.compile(rf"{re.escape(name)}\.(\d+)\.lease")
    while True:
        try:
            numbers = [int(match[1]) for entry in os.listdir(directory) if (match := pattern.fullmatch(entry))]
        except (FileNotFoundError, NotADirectoryError):
            return None
        if not numbers:
            return None
        path = _path(directory, name, max(numbers))
        try:
            return max(numbers), _owner(path.read_bytes() if stat.S_ISREG(path.lstat().st_mode) else b"")
        except FileNotFoundError:
            continue  # taken over in the meantime, so there is a higher number
        except ValueError:
            # Damaged, or being written on a file system without hard links. A live owner will change the file.
            return max(numbers), LeaseOwner(f"a process that left {path} unreadable", "", 0, "", 0)


def _path(directory: Path, name: str, number: int) -> Path:
    return directory / f"{name}.{number}.lease"


def _modified(path: Path) -> int | None:
    try:
        return path.lstat().st_mtime_ns
    except FileNotFoundError:
        return None


def _this_process(job: str | None) -> LeaseOwner:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # the user of a container may have no name
        user = str(os.getuid())
    process = os.getpid()
    who = f"{user}@{socket.gethostname()}, process {process}" + (f", Ray job {job}" if job else "")
    return LeaseOwner(who, _machine(), process, _process_start_time(process), now_ms())


def _machine() -> str:
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _process_start_time(process: int) -> str:
    """When a local process started, in the system's own unit; empty if there is no such process."""
    try:
        text = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        if Path("/proc/self/stat").exists():
            return ""
        with contextlib.suppress(OSError):  # no /proc on this system: use the process id alone
            os.kill(process, 0)
            return str(process)
        return ""
    state, *rest = text.rpartition(")")[2].split()
    return "" if state == "Z" else rest[18]
