"""Give somebody a login to MLflow: `python infra/mlflow/add_user.py NAME PASSWORD_FILE`.

Passwords are read from files, so that neither the shell's history nor the list of processes has them. Knows MLflow's
interface for users; needs nothing that is not in Python.
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
    """Make one user; the exit code says whether there is one now."""
    parser = argparse.ArgumentParser(prog="infra/mlflow/add_user.py", description=__doc__)
    parser.add_argument("name")
    parser.add_argument("password_file", type=Path, help="with 12 characters or more")
    parser.add_argument("--server", default="http://127.0.0.1:5000", help="default: %(default)s")
    parser.add_argument("--admin-password-file", type=Path, default=SECRETS / "admin-password", help="of user admin")
    parser.add_argument("--wait", type=float, default=0, help="seconds in which it may come to answer (default: 0)")
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
                print(f"{given.name} may log in at {given.server}")
                return 0
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")
            if error.code == 400 and "RESOURCE_ALREADY_EXISTS" in said:
                print(f"{given.name} is there already, with the password as it was")
                return 0
            print(f"{given.server} refused, with status {error.code}: {said[:300]}", file=sys.stderr)
            return 1
        except OSError as error:
            if time.monotonic() >= deadline:
                print(f"{given.server} does not answer: {error}", file=sys.stderr)
                return 1
            time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main())
