"""A lease is acquired by one process, refused while its owner lives, and taken over from a dead owner."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lt_train.core.errors import StorageError, UserError
from sweeps.store import lease as leasing
from sweeps.store.lease import LeaseLost, LeaseOwner, acquire_lease, lease_owner


@pytest.fixture
def short_expiry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorter intervals."""
    monkeypatch.setattr(leasing, "EXPIRY", 0.6)
    monkeypatch.setattr(leasing, "RENEWAL_INTERVAL", 0.1)


@contextlib.contextmanager
def another_process(directory: Path, name: str = "one") -> Iterator[subprocess.Popen[str]]:
    """A process that owns the lease until it is killed or its input ends."""
    code = (
        "import sys; from pathlib import Path; from sweeps.store.lease import acquire_lease\n"
        f"with acquire_lease(Path({str(directory)!r}), {name!r}): print('acquired', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "acquired\n"
    try:
        yield process
    finally:
        process.stdin.close()
        process.wait(10)


def write_remote_lease(directory: Path, name: str = "one", number: int = 1) -> Path:
    """The lease file of a process on another machine."""
    directory.mkdir(parents=True, exist_ok=True)
    owner = leasing._this_process("raysubmit_7")
    path = directory / f"{name}.{number}.lease"
    path.write_text(leasing._text(replace(owner, who="ann@far, process 3", machine="far")))
    return path


def test_a_lease_is_acquired_and_released(tmp_path: Path) -> None:
    with acquire_lease(tmp_path / "locks", "one", job="raysubmit_1") as lease:
        found = lease_owner(tmp_path / "locks", "one")
        assert found is not None
        assert found.who == lease.who
        assert re.fullmatch(rf"\S+@\S+, process {os.getpid()}, Ray job raysubmit_1", lease.who)
        assert lease.is_valid()
    assert lease_owner(tmp_path / "locks", "one") is None
    with acquire_lease(tmp_path / "locks", "one") as lease:
        assert lease.is_valid()


def test_sweeps_do_not_share_a_lease(tmp_path: Path) -> None:
    with acquire_lease(tmp_path, "one"), acquire_lease(tmp_path, "one.1"), acquire_lease(tmp_path, "two"):
        assert lease_owner(tmp_path, "three") is None


def test_a_living_local_owner_is_named_at_once(tmp_path: Path) -> None:
    with another_process(tmp_path) as process:
        begin = time.monotonic()
        expected = rf"sweep one is being run by \S+, process {process.pid}, since 2\d+-\d+-\d+ .*`lt-sweep stop`"
        with pytest.raises(UserError, match=expected), acquire_lease(tmp_path, "one"):
            pass
        assert time.monotonic() - begin < 2


def test_a_dead_local_owner_is_replaced_at_once(tmp_path: Path) -> None:
    with another_process(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        begin = time.monotonic()
        assert lease_owner(tmp_path, "one") is None
        with acquire_lease(tmp_path, "one") as lease:
            assert lease.is_valid()
        assert time.monotonic() - begin < 2


def test_a_reused_process_id_is_not_the_owner(tmp_path: Path) -> None:
    with acquire_lease(tmp_path, "one"):
        (file,) = tmp_path.glob("*.lease")
        owner = lease_owner(tmp_path, "one")
    assert owner is not None
    file.write_text(leasing._text(replace(owner, process_start_time="long ago")))
    with acquire_lease(tmp_path, "one") as lease:
        assert lease.is_valid()


def test_a_living_remote_owner_is_seen_by_its_renewals(
    tmp_path: Path, short_expiry: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, ended, logged = write_remote_lease(tmp_path), threading.Event(), []
    monkeypatch.setattr(leasing.logger, "info", lambda text, *values: logged.append(text % values))

    def renew() -> None:
        while not ended.wait(0.1):
            os.utime(path)

    renewer = threading.Thread(target=renew)
    renewer.start()
    try:
        with (
            pytest.raises(UserError, match=r"is being run by ann@far, process 3"),
            acquire_lease(tmp_path, "one"),
        ):
            pass
    finally:
        ended.set()
        renewer.join()
    assert logged == ["ann@far, process 3 was running this sweep; waiting 1 s for it to renew its lease"]


def test_a_remote_owner_that_does_not_renew_is_replaced_and_notices(tmp_path: Path, short_expiry: None) -> None:
    write_remote_lease(tmp_path)
    owner = leasing._this_process(None)
    stale = leasing.Lease(tmp_path, "one", 1, replace(owner, machine="far"))
    stale._ended.set()  # a suspended process renews nothing
    stale._renewer.join()
    assert stale.is_valid()
    begin = time.monotonic()
    with acquire_lease(tmp_path, "one") as lease:
        assert time.monotonic() - begin >= 0.6
        assert lease.is_valid()
        assert not stale.is_valid()
        with pytest.raises(
            LeaseLost, match=rf"process {os.getpid()} has taken over sweep one because .* finished runs are kept"
        ):
            stale.check()
        stale.release()
        assert lease.is_valid(), "releasing a lost lease changes nothing"


def test_a_remote_owner_that_releases_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_remote_lease(tmp_path)

    def release() -> None:
        time.sleep(0.3)
        path.write_text(leasing._text(replace(leasing._owner(path.read_bytes()), released=True)))
        os.utime(path, (1, 1))  # the modification time alone must not decide

    threading.Thread(target=release).start()
    begin = time.monotonic()
    with acquire_lease(tmp_path, "one") as lease:
        assert lease.is_valid()
    assert time.monotonic() - begin < 5 < leasing.EXPIRY


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        '{"who": 3',
        "[" * 300_000,
        '{"who": "ann", "machine": "far", "process": 3, "process_start_time": "1", "since_ms": "yesterday"}',
    ],
    ids=["empty", "cut", "cut later", "nested", "text for a number"],
)
def test_an_unreadable_file_is_watched_like_a_remote_owner(tmp_path: Path, short_expiry: None, content: str) -> None:
    (tmp_path / "one.4.lease").write_text(content)
    with acquire_lease(tmp_path, "one") as lease:
        assert lease.is_valid()
    assert lease_owner(tmp_path, "one") is None


@pytest.mark.parametrize("released", [False, True])
def test_no_flipped_bit_of_a_lease_names_another_owner(released: bool, tmp_path: Path) -> None:
    """Such as a released one that is held, or the number of a dead process for one that lives."""
    with acquire_lease(tmp_path, "one"):
        (file,) = tmp_path.glob("*.lease")
        held, owner = file.read_bytes(), lease_owner(tmp_path, "one")
    assert owner is not None
    content = file.read_bytes() if released else held
    for place in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        file.write_bytes(flipped)
        found = lease_owner(tmp_path, "one")
        assert found == (None if released else owner) or (found is not None and "left" in found.who)


@pytest.mark.parametrize("kind", ["directory", "broken link", "circular link", "pipe"])
def test_what_is_no_file_is_watched_like_a_remote_owner(tmp_path: Path, short_expiry: None, kind: str) -> None:
    path = tmp_path / "one.4.lease"
    match kind:
        case "directory":
            (path / "inner").mkdir(parents=True)
        case "pipe":
            os.mkfifo(path)
        case _:
            path.symlink_to(tmp_path / "missing" if kind == "broken link" else path)
    found = lease_owner(tmp_path, "one")
    assert found is not None
    assert str(tmp_path / "one.4.lease") in found.who
    with acquire_lease(tmp_path, "one") as lease:
        assert lease.is_valid()
    assert lease_owner(tmp_path, "one") is None


def _compete(directory: Path, start: float, wins: object) -> None:
    time.sleep(max(0.0, start - time.time()))
    try:
        with acquire_lease(directory, "one"):
            wins.put("won")  # type: ignore[attr-defined]
            time.sleep(1.5)
    except UserError:
        wins.put("refused")  # type: ignore[attr-defined]


@pytest.mark.parametrize("links", [True, False])
def test_one_of_many_processes_acquires_it(tmp_path: Path, links: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on file systems without hard links."""
    if not links:

        def refuse(*_: object) -> None:
            raise PermissionError(1, "no links here")

        monkeypatch.setattr(os, "link", refuse)
    context = multiprocessing.get_context("fork")
    wins = context.Queue()
    start = time.time() + 0.5
    processes = [context.Process(target=_compete, args=(tmp_path, start, wins)) for _ in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert sorted(wins.get(timeout=5) for _ in processes) == ["refused"] * 5 + ["won"]


def test_old_files_are_removed(tmp_path: Path) -> None:
    for _ in range(15):
        with acquire_lease(tmp_path, "one"):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["one.15.lease"]


def test_a_directory_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "locks").write_text("a file")
    with pytest.raises(StorageError, match="locks"), acquire_lease(tmp_path / "locks", "one"):
        pass


@pytest.mark.parametrize("name", ["locks", "cache"])
def test_a_file_in_the_place_of_the_directory_holds_no_lease(tmp_path: Path, name: str) -> None:
    directory = tmp_path / "cache" / "locks"
    file = directory if name == "locks" else directory.parent
    file.parent.mkdir(exist_ok=True)
    file.write_text("")
    assert lease_owner(directory, "one") is None
    with (
        pytest.raises(StorageError, match=rf"{name} must be a directory, but it is a file; move it away and run again"),
        acquire_lease(directory, "one"),
    ):
        pass


def test_a_read_error_does_not_lose_the_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: object) -> list[str]:
        raise OSError(errno.EIO, "Input/output error")

    with acquire_lease(tmp_path, "one") as lease:
        with monkeypatch.context() as failing:
            failing.setattr(os, "listdir", fail)
            assert lease.is_valid()
            with pytest.raises(StorageError, match="cannot read the leases in"):
                lease.check()
        lease.check()


def test_a_user_without_a_name_may_acquire_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise OSError("no such user")

    monkeypatch.setattr("getpass.getuser", nameless)
    with acquire_lease(tmp_path, "one") as lease:
        assert lease.who.startswith(f"{os.getuid()}@")


def test_a_zombie_is_not_alive() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    while (Path("/proc") / str(process.pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    this = leasing._this_process(None)
    start = leasing._process_start_time(process.pid) or "1"
    assert not LeaseOwner("x", this.machine, process.pid, start, 0).is_alive()
    process.wait()
    assert this.is_alive()
