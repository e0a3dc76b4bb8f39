"""Secrets out of files: where a cluster mounts them, into the environment of the process that needs them.

A job's own environment is shown to everybody who may list jobs, so what it holds is the path of a file and never what
is in it. Knows the standard library only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote

from lt_train.core.errors import UserError

__all__ = ["FILE_PREFIX", "checked_environment", "holds_credentials", "load_secret_files", "secret_files"]

FILE_PREFIX = "LT_SWEEP_SECRET_FILE_"
"""What stands before NAME in the environment variable with the path of the file that NAME's value is in. One variable a
secret, so that a job's add to those of its machine.
"""

SECRET_NAME = re.compile(
    r"PASS|SECRET|TOKEN|CREDENTIAL|PWD([_-]|$)|(API|ACCESS|ACCOUNT|PRIVATE)KEY|(^|[_-])(KEYS?|AUTH|SIG|SIGNATURE)([_-]|$)",
    re.IGNORECASE,
)
"""Names, of environment variables or parameters of addresses, of what nobody should see."""

USERINFO = re.compile(r"([a-z][a-z0-9+.-]*)://([^/?#\s]*)@", re.IGNORECASE)
"""In an address: its scheme, and what stands before its host."""

PARAMETER = re.compile(r"[?&;#]\s*([\w.-]+)=(?=[^&;#\s])")
"""In an address: the name of a parameter that has a value."""

USER_IS_KEY = re.compile(r"(.*\+)?(https?|s3)", re.IGNORECASE)
"""Schemes of addresses in which a user without a password may be a token or a key."""

PATH_NAME = re.compile(r".*(FILE|_PATH)|GOOGLE_APPLICATION_CREDENTIALS|(OLD)?PWD")
"""Names of environment variables that hold where something lies, whatever else is in them."""

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def holds_credentials(text: str) -> bool:
    """Whether an address in this text holds a password, a token or a key, before its host or as a parameter."""
    if "://" not in text:
        return False
    for scheme, userinfo in USERINFO.findall(text):
        user, _, password = userinfo.partition(":")
        if password or (user and USER_IS_KEY.fullmatch(scheme)):
            return True
    return any(SECRET_NAME.search(name) for name in PARAMETER.findall(unquote(text)))


def checked_environment(pairs: list[str]) -> dict[str, str]:
    """`NAME=VALUE` pairs of a job's environment, which others can see.

    Raises:
        UserError: no such pair, or a secret: its name says so, or its value is an address with one in it.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not NAME.fullmatch(name):
            raise UserError(f"--env takes NAME=VALUE, got {name!r}{' without a value' if not equals else ''}")
        path = PATH_NAME.fullmatch(name) and value.startswith("/")
        if (SECRET_NAME.search(name) and not path) or holds_credentials(value):
            raise UserError(
                f"--env {name}: everybody who may list jobs can read a job's environment; put the value into a file on "
                f"the cluster, and give --secret-file {name}=/path/of/that/file"
            )
        found[name] = value
    return found


def secret_files(pairs: list[str]) -> dict[str, str]:
    """The environment that makes `load_secret_files` read `NAME=/path` pairs; empty for none.

    Raises:
        UserError: no such pair, or a path that is not absolute.
    """
    found: dict[str, str] = {}
    for pair in pairs:
        name, _, path = pair.partition("=")
        if not NAME.fullmatch(name) or not path.startswith("/"):
            raise UserError(
                f"--secret-file takes NAME=/path of a file on the cluster, got {name!r}"
                + (" with a path that is not absolute" if path else " without a path")
            )
        found[FILE_PREFIX + name] = path
    return found


def load_secret_files(environment: Mapping[str, str] = os.environ) -> None:
    """Set the environment variables whose values are in files; one newline at the end is cut.

    Raises:
        UserError: a file cannot be read; the message has its path and nothing that is in it.
    """
    paths = {name.removeprefix(FILE_PREFIX): path for name, path in environment.items() if name.startswith(FILE_PREFIX)}
    for name, path in paths.items():
        try:
            os.environ[name] = Path(path).read_text().removesuffix("\n")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not text"
            raise UserError(f"the secret {name} cannot be read from {path}: {why}") from None
