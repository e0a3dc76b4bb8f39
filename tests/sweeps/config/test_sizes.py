"""Amounts of memory: parsed with units, written out exactly, formatted in a few characters."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from lt_train.core.text import MemorySize, format_bytes, whole_mebibytes

ADAPTER: TypeAdapter[int] = TypeAdapter(MemorySize)


@pytest.mark.parametrize(
    ("text", "count", "written"),
    [
        ('"2GiB"', 2 * 2**30, "2GiB"),
        ('"2048 MiB"', 2 * 2**30, "2GiB"),
        ('"1.5GiB"', 3 * 2**29, "1536MiB"),
        ('"1KiB"', 1024, "1KiB"),
        ("1000", 1000, 1000),
        ("1024", 1024, "1KiB"),
    ],
)
def test_a_written_size_is_read_back_exactly(text: str, count: int, written: str | int) -> None:
    assert ADAPTER.validate_json(text) == count
    assert ADAPTER.dump_python(count, mode="json") == written
    assert ADAPTER.validate_json(ADAPTER.dump_json(count)) == count


@pytest.mark.parametrize("text", ['"2GB"', '"GiB"', '"-1GiB"', '"much"', '""'])
def test_other_text_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ValidationError, match=r"must be a size such as 2GiB or 500MiB \(KiB, MiB, GiB\), or a number"):
        ADAPTER.validate_json(text)


@pytest.mark.parametrize("text", ["0", "-5", '"0MiB"'])
def test_no_memory_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="greater than 0"):
        ADAPTER.validate_json(text)


def test_sizes_are_formatted_briefly_and_rounded_up_to_whole_mebibytes() -> None:
    assert [format_bytes(count) for count in (17, 1023, 1024, 1_250_000, 2**31, 3000 * 2**30)] == [
        "17 B",
        "1023 B",
        "1 KiB",
        "1.19 MiB",
        "2 GiB",
        "3000 GiB",
    ]
    for count in (1, 2**20, 2**20 + 1, 123_456_789):
        assert ADAPTER.validate_json(f'"{whole_mebibytes(count)}"') >= count
