"""The commands of the tutorial run in order, in a shell that has only the programs of this project in addition."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from documentation.elsewhere import typed_in
from documentation.pages import ROOT, blocks
from documentation.running import alike, walk

pytestmark = pytest.mark.slow

TUTORIAL = ROOT / "docs" / "tutorial.md"


def test_the_tutorial_runs_and_prints_what_the_page_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    page = blocks(TUTORIAL.read_text())
    expected = {block.start: after.text for block, after in itertools.pairwise(page) if after.language == "text"}
    printed = {block.start: text for block, text in walk(page, tmp_path, typed=typed_in("docs/tutorial.md"))}
    assert len(expected) >= 6
    for start, text in expected.items():
        assert alike(printed[start], text), (
            f"run `make docs`: the page has\n{text}\nthe commands printed\n{printed[start]}"
        )
    report = tmp_path / "longtail-tutorial" / "runs" / "digits" / "report" / "index.html"
    assert "los" in report.read_text()
