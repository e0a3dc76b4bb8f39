"""What a page of the documentation is: fenced blocks, of which some are typed, some are files, some are printed.

A block of `sh` is typed, line by line. A block whose first line is `# NAME` is the file of that name. A block of `text`
directly after commands is what they print. Knows Markdown, and nothing of what commands do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PAGES", "ROOT", "Block", "blocks", "called", "commands", "prose"]

ROOT = Path(__file__).parents[2]

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), ROOT / "infra" / "README.md"])

_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# ([\w./-]+\.(?:yaml|py))(?: .*)?\n")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and where the text begins in the page, in characters."""

    language: str
    text: str
    start: int

    @property
    def file(self) -> str | None:
        """The name of the file that the block is, if it is one."""
        named = _FILE.match(self.text) if self.language != "sh" else None
        return named and named[1]


def blocks(text: str) -> list[Block]:
    """Every fenced block of a page."""
    return [Block(found[1], found[2], found.start(2)) for found in _FENCED.finditer(text)]


def commands(block: Block) -> list[str]:
    """What is typed, a command each, less comments; a line that ends in a backslash goes on."""
    if block.language != "sh":
        return []
    lines = re.sub(r"\s*\\\n\s*", " ", block.text).splitlines()
    return [typed for line in lines if (typed := re.split(r"(?:^|\s)#", line)[0].strip())]


def called(page: Path) -> str:
    """`docs/cluster.md`: what a page is called in a test's name."""
    return page.relative_to(ROOT).as_posix()


def prose(text: str) -> str:
    """A page without its blocks."""
    return _FENCED.sub("", text)
