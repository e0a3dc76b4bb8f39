"""Searches tracked text for words that the project's language rules replace (CONTRIBUTING.md), and fails on any.

Usage: python tools/check_language.py [FILE ...]
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

RULES = {
    r"\bpictures?\b": "write image",
    r"\btold\b": "name who is informed and how: is reported, prints a warning",
    r"\bmend(s|ed|ing)?\b": "write fix",
    r"\bslips?\b": "write typo or error",
    r"\b(goes|gone|going|go) on with\b": "write resume or continue",
    r"\bmade anew\b|\bmakes? anew\b|\bwrites? it anew\b": "write recreate",
    r"\bwhoever\b|\bnobody\b": "use a noun and an active verb",
    r"\bto be had\b|\bat hand\b": "write available or optional",
    r"\bof before\b": "write earlier or previous",
    r"(?<![Tt]here )\bis no (?!longer|more|less|other|such)[a-z]+": "write is not a ...",
    r"\b[Kk]nows [a-z ,]+[;.] (knows|it )?": "delete: the import contract states it",
    r"\b[Kk]nows nothing\b|\bKnows [a-z]+": "delete: the import contract states it",
    r"\bTouch this\b": "delete",
    r"\bcontestants?\b": "write candidate",
    r"\brooms? of kinds\b|\bevery room\b": "write plugin group",
    r"(?<![\w.\d/\[({*+x-])\.\d+ (s|ms|point|points|GB|MB|GiB)\b": "write a zero before the decimal point",
    r"\bwhat of a\b|\bwhat of the\b": "name the thing",
}
"""Pattern and advice. Patterns are matched against every line, in any case for the first letter as written."""

SUFFIXES = {".py", ".md", ".yaml", ".yml", ".toml", ".j2", ".sh", ".cff", ""}
EXEMPT = ("requirements", "LICENSE", "tools/check_language.py", "CONTRIBUTING.md")
ALLOWED = "language: allow"
"""A line that contains this comment is not checked; give the reason beside it."""


def tracked_files() -> Iterator[Path]:
    """Text files that git tracks, without the exempt ones."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        path = ROOT / name
        if path.suffix in SUFFIXES and not name.startswith(EXEMPT) and path.is_file():
            yield path


def findings(path: Path) -> Iterator[str]:
    """One message for each match in a file: `file:line: 'words': advice`."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        return
    for number, line in enumerate(lines, start=1):
        if ALLOWED in line:
            continue
        for pattern, advice in RULES.items():
            if found := re.search(pattern, line):
                name = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
                yield f"{name}:{number}: {found[0].strip()!r}: {advice}"


def main(arguments: Iterable[str]) -> int:
    """Check the given files, or all tracked ones; returns 1 when there are findings."""
    files = [Path(name).resolve() for name in arguments] or list(tracked_files())
    messages = [message for path in files for message in findings(path)]
    print(*messages, f"{len(messages)} findings in {len(files)} files", sep="\n")
    return 1 if messages else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
