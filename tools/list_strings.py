"""Lists the strings that a user can see, one per line with its place: messages, help, field descriptions, docstrings.

Usage: python tools/list_strings.py [--docstrings] [ROOT] > strings.txt

It reads the syntax trees of both packages. A string is listed when it is an argument of a raised exception, of a call
that prints or logs, of `Field(description=...)` or `typer.Option(help=...)`, or when it has at least three words.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

MINIMUM_WORDS = 3


def shown(node: ast.expr) -> str | None:
    """The text of a string literal or f-string, with `{...}` for values; None for other expressions."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        parts = [part.value if isinstance(part, ast.Constant) else "{...}" for part in node.values]
        return "".join(str(part) for part in parts)
    return None


def docstrings(tree: ast.Module) -> set[int]:
    """Identities of the nodes that are docstrings, attribute docstrings included."""
    found = set()
    for node in ast.walk(tree):
        for body in (getattr(node, "body", None),):
            if isinstance(body, list):
                found |= {
                    id(one.value) for one in body if isinstance(one, ast.Expr) and isinstance(one.value, ast.Constant)
                }
    return found


def strings(path: Path, with_docstrings: bool) -> Iterator[tuple[int, str]]:
    """Line and text of every visible string of a module, in order."""
    tree = ast.parse(path.read_text())
    skipped = set() if with_docstrings else docstrings(tree)
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.expr) or id(node) in skipped | inner:
            continue
        text = shown(node)
        if text is not None and len(text.split()) >= MINIMUM_WORDS:
            found.append((node.lineno, " ".join(text.split())))
    yield from sorted(found)


def main(arguments: list[str]) -> int:
    """Print all strings of `lt_train` and `sweeps` below ROOT (default: this repository)."""
    with_docstrings = "--docstrings" in arguments
    places = [one for one in arguments if not one.startswith("--")]
    root = Path(places[0]) if places else Path(__file__).resolve().parent.parent
    for package in ("lt_train", "sweeps"):
        for path in sorted((root / package).rglob("*.py")):
            for line, text in strings(path, with_docstrings):
                print(f"{path.relative_to(root)}:{line}: {text}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
