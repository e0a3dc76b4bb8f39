"""Errors that users can act on: one class hierarchy, by what to do about them. `assert` is for bugs in this package.

    LongtailError            exit code 1
        UserError            exit code 2: fix the input
            SpecError        a field of a sweep file or specification
            DataError        a dataset
            CheckpointError  a checkpoint or a file of a trained head
            BankError        a feature bank
        StorageError         try again once the file system is writable
        OutOfMemory          use a smaller pack or a larger machine

Every message states the rule, the value that violates it, what is allowed and what to do.
"""

from __future__ import annotations

__all__ = [
    "BankError",
    "CheckpointError",
    "DataError",
    "LongtailError",
    "OutOfMemory",
    "SpecError",
    "StorageError",
    "UserError",
    "first_line",
]


class LongtailError(Exception):
    """Base class of all errors for users. `exit_code` is the exit code of the command line."""

    exit_code = 1


class UserError(LongtailError):
    """A file, a field or a flag is invalid. Fix the input; trying again does not help."""

    exit_code = 2


class SpecError(UserError):
    """A specification is invalid. `problems` holds one complete message per problem."""

    def __init__(self, problems: list[str] | str) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class DataError(UserError):
    """A dataset is missing or malformed, or cannot be subsampled as specified."""


class CheckpointError(UserError):
    """A checkpoint is missing or malformed, or belongs to another dataset."""


class BankError(UserError):
    """A feature bank is missing, truncated, altered or of another format."""


class StorageError(LongtailError):
    """A file could not be written, for example because the disk is full. Try again; no finished work was lost."""


class OutOfMemory(LongtailError):
    """Memory ran out, and smaller packs alone do not help. Change the pack size, or use another machine."""


def first_line(error: BaseException) -> str:
    """First non-empty line of the message of an error, or the name of its class."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)
