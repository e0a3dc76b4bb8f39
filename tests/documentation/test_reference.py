"""The reference is what the code says now, and what the code says of itself is enough for a reference."""

from __future__ import annotations

import re

import pytest
from documentation.pages import ROOT
from documentation.reference import reference

PAGES = reference()


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_current(name: str) -> None:
    written = (ROOT / "docs" / "reference" / name).read_text()
    assert written == PAGES[name], "run: python tools/documentation reference"


def rows(page: str) -> list[list[str]]:
    """The cells of every line of a table with five columns: key, type, default, range, text."""
    lines = [line for line in PAGES[page].splitlines() if line.startswith("| `")]
    return [re.split(r"(?<!\\) \| ", line.removeprefix("| ").removesuffix(" |")) for line in lines]


@pytest.mark.parametrize("page", ["sweep.md", "kinds.md"])
def test_every_key_says_what_it_is(page: str) -> None:
    silent = [key for key, *_, text in rows(page) if not text]
    assert len(rows(page)) > 30
    assert silent == []


@pytest.mark.parametrize("page", ["sweep.md", "kinds.md"])
def test_every_number_has_a_range_or_is_a_seed(page: str) -> None:
    """From the schema, or in its own words where a validator holds it."""
    numbers = [row for row in rows(page) if re.match(r"(list of .*)?(whole )?number", row[1])]
    said = re.compile(r"[<>]|0\.\.1 scale|at most|at least|seed|ascending")
    without = [key for key, _, _, limits, text in numbers if not limits and not said.search(text) and key != "`seed`"]
    assert len(numbers) > 10
    assert without == []


def test_every_option_says_what_it_is() -> None:
    options = [line.split(" | ") for line in PAGES["commands.md"].splitlines() if line.startswith("| `")]
    assert len(options) > 60
    assert [option for option, *_, text in options if len(text) < 8] == []
