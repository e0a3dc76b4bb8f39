"""The errors a user may meet, classed by what to do about them. Nothing here depends on any other room.

Every message states the rule, the value that broke it and what is allowed, so that it can be acted on without
reading code. `assert` is for our own bugs; these classes are for everything else.
"""

from __future__ import annotations

__all__ = [
    "BankError",
    "CheckpointError",
    "DataError",
    "LongtailError",
    "MemoryShort",
    "SpecError",
    "StorageError",
    "UserError",
    "first_line",
]


class LongtailError(Exception):
    """Base of all errors raised on purpose. `exit_code` is what the command line returns."""

    exit_code = 1


class UserError(LongtailError):
    """Fix the input: a file, a field or a flag is wrong and trying again will not help."""

    exit_code = 2


class SpecError(UserError):
    """A specification breaks its schema. `problems` holds one complete message each."""

    def __init__(self, problems: list[str] | str) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class DataError(UserError):
    """A dataset is missing, malformed or cannot be cut as asked."""


class CheckpointError(UserError):
    """A checkpoint is missing, malformed or belongs to another dataset."""


class BankError(UserError):
    """A feature bank is missing, truncated, altered or of another format."""


class StorageError(LongtailError):
    """Try again: a disk was full or a file could not be written. Nothing finished was lost."""


class MemoryShort(LongtailError):
    """Memory ran out and smaller packs cannot help by themselves: change the pack size, or use another machine."""


def first_line(error: BaseException) -> str:
    """What another library's error says, in a line: its first that is not empty, else the name of its class."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)
