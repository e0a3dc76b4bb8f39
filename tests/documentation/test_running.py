"""Running the commands of a page: placement of files, failing commands, replaced commands, comparison of output."""

from __future__ import annotations

from pathlib import Path

import pytest
from documentation.pages import blocks, commands
from documentation.running import alike, walk, without_notes

PAGE = """
```yaml
# made/small.yaml
name: small
```

```sh
grep name made/small.yaml    # a comment
cat made/small.yaml \\
    | wc -l
```

```text
name: small
2
```
"""


def test_files_of_a_page_are_written_before_its_commands_run(tmp_path: Path) -> None:
    file, typed, _ = blocks(PAGE)
    assert file.file == "made/small.yaml"
    assert commands(typed) == ["grep name made/small.yaml", "cat made/small.yaml | wc -l"]
    assert [printed for _, printed in walk(blocks(PAGE), tmp_path)] == ["name: small\n2\n"]


def test_the_error_of_a_failing_command_contains_its_output(tmp_path: Path) -> None:
    page = blocks("```sh\necho before\nls nowhere | cat\necho after\n```\n")
    with pytest.raises(AssertionError, match=r"ls nowhere \| cat\necho after\nended with 2:\nbefore\n"):
        list(walk(page, tmp_path))


def test_commands_can_be_replaced_or_omitted(tmp_path: Path) -> None:
    page = blocks("```sh\necho one\necho two\n```\n\n```sh\necho two\n```\n")
    typed = {"echo one": "echo 1"}.get
    assert [printed for _, printed in walk(page, tmp_path, typed=typed)] == ["1\n"]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("all +1.56 [+1.45, +1.67]", "all -0.20 [-0.31, -0.09]", True),
        ("wd=7.8e-06, 39 s", "wd=0.00357, 1.2 min", True),
        ("a  1.0 │", "a 10.0│", False),
        ("┌────┐\n│ 100 │", "┌──────┐\n│ 2   │", True),
        ("141 runs finished, 0 failed", "141 runs finished", False),
        ("los  80.1 ±0.1\nce   79.0", "ce  80.2\nlos 80.0 ±0.2", True),
        ("winner: los, trial 3, d=0.5 lr=0.1", "winner: ce, trial 12, lr=0.1", True),
        ("mine: los wins: 8.1 % right over all classes", "mine: ce is first: 9.0 % right over all", True),
        ("selected on val", "selected on test", False),
        ("banks/" + "0" * 64, "banks/" + "ab" * 32, True),
    ],
)
def test_alike_ignores_numbers_and_outcomes(one: str, other: str, same: bool) -> None:
    assert alike(one, other) is same


def test_notes_can_be_removed() -> None:
    assert without_notes("note: one\ntwo\nnote: three\n") == "two\n"
