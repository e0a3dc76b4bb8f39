"""Progress without a terminal: few lines, on standard error, with what is left."""

import pytest

from lt_train.progress import progress


def test_lines_go_to_standard_error_and_are_few(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("training x") as report:
        for done in range(101):
            report(done, 100, f"loss {done}")
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    assert len(lines) == 2
    assert lines[0] == "training x: 0/100 epochs, loss 0"
    assert lines[1].startswith("training x: 100/100 epochs, ")
    assert lines[1].endswith("0 s left, loss 100")
