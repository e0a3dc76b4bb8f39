"""The environment of a job: secrets in files, and small files in a variable.

Everyone who may list jobs can read a job's environment. It therefore contains paths of secret files, never secrets;
the driver reads each secret from a file that the cluster mounts. Jobs in containers, which Ray sends no files
to, carry a few small files as text.
"""

from __future__ import annotations

import atexit
import base64
import io
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote

from lt_train.core.errors import UserError
from lt_train.core.text import format_bytes

__all__ = [
    "SECRET_FILE_PREFIX",
    "checked_environment",
    "holds_credentials",
    "inline_environment",
    "load_secret_files",
    "secret_files",
    "unpack_inline_files",
]


SECRET_FILE_PREFIX = "LT_SWEEP_SECRET_FILE_"
"""Prefix of environment variables with paths: PREFIX + NAME holds the path of the file with the value of NAME. There is
one variable per secret, so that the secrets of a job add to those of its machine.
"""

SECRET_NAME = re.compile(
    r"PASS|SECRET|TOKEN|CREDENTIAL|PWD([_-]|$)|(API|ACCESS|ACCOUNT|PRIVATE)KEY|(^|[_-])(KEYS?|AUTH|SIG|SIGNATURE)([_-]|$)",
    re.IGNORECASE,
)
"""Names of secrets, among environment variables and URL parameters."""

USERINFO = re.compile(r"([a-z][a-z0-9+.-]*)://([^/?#\s]*)@", re.IGNORECASE)
"""In a URL: its scheme and its user information."""

URL_PARAMETER = re.compile(r"[?&;#]\s*([\w.-]+)=(?=[^&;#\s])")
"""In a URL: the name of a parameter that has a value."""

USER_IS_KEY = re.compile(r"(.*\+)?(https?|s3)", re.IGNORECASE)
"""URL schemes in which a user name without a password may be a token or a key."""

PATH_NAME = re.compile(r".*(FILE|_PATH)|GOOGLE_APPLICATION_CREDENTIALS|(OLD)?PWD")
"""Names of environment variables that hold a path, even if they also match `SECRET_NAME`."""

VARIABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def holds_credentials(text: str) -> bool:
    """Whether a URL in this text contains a password, a token or a key, as user information or as a parameter."""
    if "://" not in text:
        return False
    for scheme, userinfo in USERINFO.findall(text):
        user, _, password = userinfo.partition(":")
        if password or (user and USER_IS_KEY.fullmatch(scheme)):
            return True
    return any(SECRET_NAME.search(name) for name in URL_PARAMETER.findall(unquote(text)))


def checked_environment(pairs: list[str]) -> dict[str, str]:
    """Parse the `NAME=VALUE` pairs of a job's environment, which is public.

    Raises:
        UserError: a pair is malformed, or is a secret: by its name, or because its value is a URL that contains one.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not VARIABLE_NAME.fullmatch(name):
            raise UserError(f"--env must be NAME=VALUE, got {name!r}{' without a value' if not equals else ''}")
        path = PATH_NAME.fullmatch(name) and value.startswith("/")
        if (SECRET_NAME.search(name) and not path) or holds_credentials(value):
            raise UserError(
                f"--env {name}: must not be a secret, because everyone who may list jobs can read a job's environment; "
                f"put the value into a file on the cluster, and give --secret-file {name}=/path/of/that/file"
            )
        found[name] = value
    return found


def secret_files(pairs: list[str]) -> dict[str, str]:
    """The environment from which `load_secret_files` reads `NAME=/path` pairs.

    Raises:
        UserError: a pair is malformed, or a path is not absolute.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        name, _, path = pair.partition("=")
        if not VARIABLE_NAME.fullmatch(name) or not path.startswith("/"):
            raise UserError(
                f"--secret-file must be NAME=/path of a file on the cluster, got {name!r}"
                + (" with a path that is not absolute" if path else " without a path")
            )
        found[SECRET_FILE_PREFIX + name] = path
    return found


def load_secret_files(environment: Mapping[str, str] = os.environ) -> None:
    """Set the environment variables whose values are in files, without a final newline.

    Raises:
        UserError: a file cannot be read; the message contains its path and none of its content.
    """
    paths = {
        name.removeprefix(SECRET_FILE_PREFIX): path
        for name, path in environment.items()
        if name.startswith(SECRET_FILE_PREFIX)
    }
    for name, path in paths.items():
        try:
            os.environ[name] = Path(path).read_text().removesuffix("\n")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not text"
            raise UserError(f"cannot read the secret {name} from {path}: {why}") from None


INLINE_FILES_VARIABLE = "LT_SWEEP_JOB_FILES"
"""Environment variable with the files, as a base64 zip."""

MAX_INLINE_BYTES = 48 * 2**10
"""Limit of its text: Linux allows 128 KiB per argument, and Ray passes a job's environment twice in one."""


def inline_environment(directory: Path) -> dict[str, str]:
    """The environment from which `unpack_inline_files` restores the files of `directory`.

    Raises:
        UserError: they are too large.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(directory.rglob("*")):
            if file.is_file():
                archive.write(file, str(file.relative_to(directory)))
    text = base64.b64encode(buffer.getvalue()).decode()
    if len(text) > MAX_INLINE_BYTES:
        raise UserError(
            f"the files of a sweep in a container must take at most {format_bytes(MAX_INLINE_BYTES)} as compressed "
            f"text, got {format_bytes(len(text))}; put them where the cluster can read them, and give absolute paths"
        )
    return {INLINE_FILES_VARIABLE: text}


def unpack_inline_files() -> None:
    """Restore this process's inline files, if any, to a temporary directory, and make it the working directory."""
    text = os.environ.pop(INLINE_FILES_VARIABLE, None)
    if text is None:
        return
    directory = tempfile.mkdtemp(prefix="lt-sweep-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    with zipfile.ZipFile(io.BytesIO(base64.b64decode(text))) as archive:
        archive.extractall(directory)
    os.chdir(directory)
