"""Inline files: a few small files in an environment variable, for jobs in containers, which Ray sends no files to."""

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
from lt_train.core.text import format_bytes

__all__ = ["inline_environment", "unpack"]

FILES_VARIABLE = "LT_SWEEP_JOB_FILES"
"""Environment variable with the files, as a base64 zip."""

MAX_BYTES = 48 * 2**10
"""Limit of its text: Linux allows 128 KiB per argument, and Ray passes a job's environment twice in one."""


def inline_environment(directory: Path) -> dict[str, str]:
    """The environment from which `unpack` restores the files of `directory`.

    Raises:
        UserError: they are too large.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(directory.rglob("*")):
            if file.is_file():
                archive.write(file, str(file.relative_to(directory)))
    text = base64.b64encode(buffer.getvalue()).decode()
    if len(text) > MAX_BYTES:
        raise UserError(
            f"the files of a sweep in a container must take at most {format_bytes(MAX_BYTES)} as compressed text, got "
            f"{format_bytes(len(text))}; put them where the cluster can read them, and give absolute paths"
        )
    return {FILES_VARIABLE: text}


def unpack() -> None:
    """Restore this process's inline files, if any, to a temporary directory, and make it the working directory."""
    text = os.environ.pop(FILES_VARIABLE, None)
    if text is None:
        return
    directory = tempfile.mkdtemp(prefix="lt-sweep-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    with zipfile.ZipFile(io.BytesIO(base64.b64decode(text))) as archive:
        archive.extractall(directory)
    os.chdir(directory)
