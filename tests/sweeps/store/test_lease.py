"""One driver a sweep: held, refused with who holds it, taken over from the dead, lost to whoever took over."""

from __future__ import annotations

import contextlib
import errno
import json
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
from sweeps.store.lease import Holder, LeaseLost, held, holder


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds are shorter."""
    monkeypatch.setattr(leasing, "LAPSE", 0.6)
    monkeypatch.setattr(leasing, "RENEWED_EVERY", 0.1)


@contextlib.contextmanager
def another_process(directory: Path, name: str = "one") -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lease until it is killed or its input ends."""
    code = (
        "import sys; from pathlib import Path; from sweeps.store.lease import held\n"
        f"with held(Path({str(directory)!r}), {name!r}): print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.stdin.close()
        process.wait(10)


def elsewhere(directory: Path, name: str = "one", number: int = 1) -> Path:
    """The lease file of a process on another machine."""
    directory.mkdir(parents=True, exist_ok=True)
    me = leasing._me("raysubmit_7")
    path = directory / f"{name}.{number}.lease"
    path.write_text(json.dumps(replace(me, who="ann@far, process 3", machine="far").__dict__))
    return path


def test_a_lease_is_held_and_let_go(tmp_path: Path) -> None:
    with held(tmp_path / "locks", "one", job="raysubmit_1") as lease:
        found = holder(tmp_path / "locks", "one")
        assert found is not None
        assert found.who == lease.who
        assert re.fullmatch(rf"\S+@\S+, process {os.getpid()}, Ray job raysubmit_1", lease.who)
        assert lease.holds()
    assert holder(tmp_path / "locks", "one") is None
    with held(tmp_path / "locks", "one") as again:
        assert again.holds()


def test_sweeps_do_not_share_a_lease(tmp_path: Path) -> None:
    with held(tmp_path, "one"), held(tmp_path, "one.1"), held(tmp_path, "two"):
        assert holder(tmp_path, "three") is None


def test_a_living_process_here_is_named_at_once(tmp_path: Path) -> None:
    with another_process(tmp_path) as process:
        begin = time.monotonic()
        expected = rf"sweep one is being run by \S+, process {process.pid}, since 2\d+-\d+-\d+ .*`lt-sweep stop`"
        with pytest.raises(UserError, match=expected), held(tmp_path, "one"):
            pass
        assert time.monotonic() - begin < 2


def test_a_dead_process_here_is_taken_over_at_once(tmp_path: Path) -> None:
    with another_process(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        begin = time.monotonic()
        assert holder(tmp_path, "one") is None
        with held(tmp_path, "one") as lease:
            assert lease.holds()
        assert time.monotonic() - begin < 2


def test_an_id_that_was_given_again_is_not_the_holder(tmp_path: Path) -> None:
    with held(tmp_path, "one"):
        (file,) = tmp_path.glob("*.lease")
        document = json.loads(file.read_text())
    file.write_text(json.dumps(document | {"born": "long ago", "released": False}))
    with held(tmp_path, "one") as lease:
        assert lease.holds()


def test_a_living_process_elsewhere_is_seen_by_its_renewals(tmp_path: Path, soon: None) -> None:
    path, ended, told = elsewhere(tmp_path), threading.Event(), []

    def renew() -> None:
        while not ended.wait(0.1):
            os.utime(path)

    renewer = threading.Thread(target=renew)
    renewer.start()
    try:
        with (
            pytest.raises(UserError, match=r"is being run by ann@far, process 3"),
            held(tmp_path, "one", told=told.append),
        ):
            pass
    finally:
        ended.set()
        renewer.join()
    assert told == ["ann@far, process 3 was running this sweep; waiting 1 s for a sign of life from it"]


def test_a_process_elsewhere_that_gives_no_sign_is_taken_over_and_told(tmp_path: Path, soon: None) -> None:
    elsewhere(tmp_path)
    me = leasing._me(None)
    stale = leasing.Lease(tmp_path, "one", 1, replace(me, machine="far"))
    stale._ended.set()  # as a process that is stopped renews nothing
    stale._renewer.join()
    assert stale.holds()
    begin = time.monotonic()
    with held(tmp_path, "one") as lease:
        assert time.monotonic() - begin >= 0.6
        assert lease.holds()
        assert not stale.holds()
        with pytest.raises(
            LeaseLost, match=rf"process {os.getpid()} has taken over sweep one: .* what it finished is kept"
        ):
            stale.check()
        stale.release()
        assert lease.holds(), "letting go of what one has lost changes nothing"


def test_a_process_elsewhere_that_lets_go_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = elsewhere(tmp_path)

    def release() -> None:
        time.sleep(0.3)
        path.write_text(json.dumps(json.loads(path.read_text()) | {"released": True}))
        os.utime(path, (1, 1))  # not by its time alone

    threading.Thread(target=release).start()
    begin = time.monotonic()
    with held(tmp_path, "one") as lease:
        assert lease.holds()
    assert time.monotonic() - begin < 5 < leasing.LAPSE


@pytest.mark.parametrize("content", ["", "{", '{"who": 3'])
def test_a_file_that_cannot_be_read_is_watched_like_a_process_elsewhere(
    tmp_path: Path, soon: None, content: str
) -> None:
    (tmp_path / "one.4.lease").write_text(content)
    with held(tmp_path, "one") as lease:
        assert lease.holds()
    assert holder(tmp_path, "one") is None


def _compete(directory: Path, start: float, wins: object) -> None:
    time.sleep(max(0.0, start - time.time()))
    try:
        with held(directory, "one"):
            wins.put("won")  # type: ignore[attr-defined]
            time.sleep(1.5)
    except UserError:
        wins.put("refused")  # type: ignore[attr-defined]


@pytest.mark.parametrize("links", [True, False])
def test_of_many_that_start_together_one_holds_it(tmp_path: Path, links: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a file cannot have two names."""
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


def test_files_of_the_past_are_removed(tmp_path: Path) -> None:
    for _ in range(15):
        with held(tmp_path, "one"):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["one.15.lease"]


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "locks").write_text("a file")
    with pytest.raises(StorageError, match="locks"), held(tmp_path / "locks", "one"):
        pass


def test_a_disk_that_stumbles_has_given_the_lease_to_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(path: object) -> list[str]:
        raise OSError(errno.EIO, "Input/output error")

    with held(tmp_path, "one") as lease:
        with monkeypatch.context() as away:
            away.setattr(os, "listdir", stumble)
            assert lease.holds()
            with pytest.raises(StorageError, match="cannot read the leases in"):
                lease.check()
        lease.check()


def test_a_user_without_a_name_may_hold_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise OSError("no such user")

    monkeypatch.setattr("getpass.getuser", nameless)
    with held(tmp_path, "one") as lease:
        assert lease.who.startswith(f"{os.getuid()}@")


def test_a_zombie_does_not_live() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    while (Path("/proc") / str(process.pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    me = leasing._me(None)
    assert not Holder("x", me.machine, process.pid, leasing._born(process.pid) or "1", 0).lives()
    process.wait()
    assert me.lives()
