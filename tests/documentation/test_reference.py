"""The reference pages are current, and every key and option has a description."""

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
    """The cells of every table row: key, type, default, range, description."""
    lines = [line for line in PAGES[page].splitlines() if line.startswith("| `")]
    return [re.split(r"(?<!\\) \| ", line.removeprefix("| ").removesuffix(" |")) for line in lines]


@pytest.mark.parametrize("page", ["sweep.md", "kinds.md"])
def test_every_key_has_a_description(page: str) -> None:
    assert len(rows(page)) > 30
    assert [key for key, *_, text in rows(page) if not text] == []


@pytest.mark.parametrize("page", ["sweep.md", "kinds.md"])
def test_every_number_has_a_range_or_is_a_seed(page: str) -> None:
    """In the schema, or in the description if a validator checks it."""
    numbers = [row for row in rows(page) if re.match(r"(list of .*)?(integer|number)", row[1])]
    in_text = re.compile(r"[<>]|0\.\.1 scale|at most|at least|seed|ascending")
    without = [
        key for key, _, _, limits, text in numbers if not limits and not in_text.search(text) and key != "`seed`"
    ]
    assert len(numbers) > 10
    assert without == []


def test_every_option_has_a_description() -> None:
    options = [line.split(" | ") for line in PAGES["commands.md"].splitlines() if line.startswith("| `")]
    assert len(options) > 60
    assert [option for option, *_, text in options if len(text) < 8] == []
