"""Where a report is written, what it may overwrite, and that text is escaped."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.reports import directory

import sweeps
from lt_train.core.errors import UserError
from sweeps.cli.app import main
from sweeps.config.spec import SweepSpec
from sweeps.reporting.write import write
from sweeps.store.ledger import Ledger

MakeSweep = Callable[..., SweepSpec]


def test_only_a_report_is_overwritten(small_sweep: MakeSweep, tmp_path: Path) -> None:
    spec = small_sweep(search={"trials": 1})
    sweeps.run(spec)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "index.html").write_text("my page")
    with pytest.raises(UserError, match="is not overwritten; give another --out"):
        write([directory(spec)], mine)
    (mine / "index.html").rename(mine / "notes.html")
    with pytest.raises(UserError, match="must be a new or empty directory"):
        write([directory(spec)], mine)
    first = write([directory(spec)], tmp_path / "out")
    (tmp_path / "out" / "tables" / "stale.md").write_text("of an earlier report")
    second = write([directory(spec)], tmp_path / "out")
    assert first.page == second.page
    assert not (tmp_path / "out" / "tables" / "stale.md").exists()


def test_an_interrupted_report_is_written_again_and_other_files_are_kept(
    small_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spec = small_sweep(search={"trials": 2})
    sweeps.run(spec)
    whole = write([directory(spec)], tmp_path / "out")
    names = {file.relative_to(tmp_path / "out") for file in (tmp_path / "out").rglob("*")}
    whole.page.unlink()
    (tmp_path / "out" / "tables" / "mine.md").write_text("not of a report")
    with pytest.raises(UserError, match="must be a new or empty directory"):
        write([directory(spec)], tmp_path / "out")
    assert (tmp_path / "out" / "tables" / "mine.md").read_text() == "not of a report"
    (tmp_path / "out" / "tables" / "mine.md").unlink()
    write([directory(spec)], tmp_path / "out")
    assert {file.relative_to(tmp_path / "out") for file in (tmp_path / "out").rglob("*")} == names
    with monkeypatch.context() as patched:
        patched.setattr("sweeps.reporting.write.draw_svg", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write([directory(spec)], tmp_path / "next")
    assert not (tmp_path / "next").exists()


def test_text_from_files_is_escaped(small_sweep: MakeSweep) -> None:
    spec = small_sweep(search={"trials": 2})
    sweeps.run(spec)
    with contextlib.closing(Ledger(directory(spec))) as ledger:
        ledger._earlier_end = None  # as if something had been trained since
        ledger.finish({}, ["<script>alert(1)</script> & more"])
    page = write([directory(spec)]).page.read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in page
    assert "<script" not in page


def test_the_command_and_the_call_write_the_same(
    small_sweep: MakeSweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = small_sweep(search={"trials": 2})
    sweeps.run(spec)
    assert main(["report", str(directory(spec))]) == 0
    assert "small: los " in capsys.readouterr().out
    assert main(["report", str(directory(spec)), "--out", str(tmp_path / "by-command"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["sweeps"]["small"]["headline"].startswith("los ")
    by_call = sweeps.report(directory(spec), out=tmp_path / "by-call")
    assert by_call.read_text() == Path(printed["page"]).read_text()
    assert main(["report", str(tmp_path)]) == 2
    assert "is not a sweep directory" in capsys.readouterr().err
