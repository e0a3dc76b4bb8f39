"""A few small files in an environment variable: how a sweep's get into a container, which gets nothing else of a job.

Knows files and the environment; knows no sweep.
"""

from __future__ import annotations

import atexit
import base64
import io
import os
import shutil
import tempfile
import zipfile
from pathlib import Path

from lt_train.core.errors import UserError
from sweeps.config.sizes import shown_size

__all__ = ["packed", "unpack"]

PARCEL_VARIABLE = "LT_SWEEP_JOB_FILES"
"""Environment variable with the files as a base64 zip."""

MOST_BYTES = 48 * 2**10
"""Of its text: Linux takes 128 KiB in one argument, and Ray puts a job's environment into one twice."""


def packed(directory: Path) -> dict[str, str]:
    """The environment that makes `unpack` put the files of `directory` there.

    Raises:
        UserError: they are too large.
    """
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as inline_files:
        for file in sorted(directory.rglob("*")):
            if file.is_file():
                inline_files.write(file, str(file.relative_to(directory)))
    text = base64.b64encode(held.getvalue()).decode()
    if len(text) > MOST_BYTES:
        raise UserError(
            f"the files of this sweep take {shown_size(len(text))} as text, and into a container go no more than "
            f"{shown_size(MOST_BYTES)}; put them where the cluster can read them, and give absolute paths"
        )
    return {PARCEL_VARIABLE: text}


def unpack() -> None:
    """Make the files that this process was sent, if any, those of its directory, which is a new one until it ends."""
    text = os.environ.pop(PARCEL_VARIABLE, None)
    if text is None:
        return
    directory = tempfile.mkdtemp(prefix="lt-sweep-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    with zipfile.ZipFile(io.BytesIO(base64.b64decode(text))) as inline_files:
        inline_files.extractall(directory)
    os.chdir(directory)
