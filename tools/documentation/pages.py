"""Pages of the documentation and their fenced blocks: commands, files and output.

A block with language `sh` contains commands, one per line. A block whose first line is `# NAME` is the file of that
name. A block with language `text` directly after commands is their output.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PAGES", "ROOT", "Block", "blocks", "commands", "page_name", "prose"]

ROOT = Path(__file__).parents[2]

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), ROOT / "infra" / "README.md"])

_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# ([\w./-]+\.(?:yaml|py))(?: .*)?\n")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the offset of the text in the page in characters."""

    language: str
    text: str
    start: int

    @property
    def file(self) -> str | None:
        """The name of the file that the block contains, or None."""
        found = _FILE.match(self.text) if self.language != "sh" else None
        return found and found[1]


def blocks(text: str) -> list[Block]:
    """All fenced blocks of a page."""
    return [Block(found[1], found[2], found.start(2)) for found in _FENCED.finditer(text)]


def commands(block: Block) -> list[str]:
    """The commands of a block without comments. A backslash at the end of a line continues the command."""
    if block.language != "sh":
        return []
    lines = re.sub(r"\s*\\\n\s*", " ", block.text).splitlines()
    return [command for line in lines if (command := re.split(r"(?:^|\s)#", line)[0].strip())]


def page_name(page: Path) -> str:
    """The path of a page below the root, such as `docs/cluster.md`, for names of tests."""
    return page.relative_to(ROOT).as_posix()


def prose(text: str) -> str:
    """A page without its fenced blocks."""
    return _FENCED.sub("", text)
