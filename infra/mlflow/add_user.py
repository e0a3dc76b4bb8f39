"""Create an MLflow user: `python infra/mlflow/add_user.py NAME PASSWORD_FILE`.

Passwords are read from files, so that neither the shell's history nor the list of processes shows them. Needs only
Python's standard library.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

SECRETS = Path(__file__).parent / "secrets"


def main() -> int:
    """Create one user; the exit code is 0 if the user exists at the end."""
    parser = argparse.ArgumentParser(prog="infra/mlflow/add_user.py", description=__doc__)
    parser.add_argument("name")
    parser.add_argument("password_file", type=Path, help="file with the password, of 12 or more characters")
    parser.add_argument("--server", default="http://127.0.0.1:5000", help="default: %(default)s")
    parser.add_argument(
        "--admin-password-file",
        type=Path,
        default=SECRETS / "admin-password",
        help="file with the password of user admin (default: in infra/mlflow/secrets)",
    )
    parser.add_argument("--wait", type=float, default=0, help="seconds to wait for the server (default: 0)")
    given = parser.parse_args()
    admin = f"admin:{given.admin_password_file.read_text().strip()}"
    user = {"username": given.name, "password": given.password_file.read_text().strip()}
    request = urllib.request.Request(
        f"{given.server.rstrip('/')}/api/2.0/mlflow/users/create",
        data=json.dumps(user).encode(),
        headers={
            "Authorization": f"Basic {base64.b64encode(admin.encode()).decode()}",
            "Content-Type": "application/json",
        },
    )
    deadline = time.monotonic() + given.wait
    while True:
        try:
            with urllib.request.urlopen(request, timeout=30):
                print(f"created user {given.name} at {given.server}")
                return 0
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            if error.code == 400 and "RESOURCE_ALREADY_EXISTS" in text:
                print(f"user {given.name} exists; the password is unchanged")
                return 0
            print(f"{given.server} refused, with status {error.code}: {text[:300]}", file=sys.stderr)
            return 1
        except OSError as error:
            if time.monotonic() >= deadline:
                print(f"{given.server} does not answer: {error}", file=sys.stderr)
                return 1
            time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main())
