"""Pages of MLflow in a headless Chromium, through a proxy that adds the login.

A browser asks for the password interactively, and `fetch` rejects URLs with credentials, so the proxy adds the header.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

__all__ = ["dump_dom", "logged_in"]

DROPPED = ("host", "origin", "referer", "accept-encoding", "connection")
"""Headers that are not forwarded: MLflow rejects other host names."""


def dump_dom(browser: str, url: str, profile: Path, timeout: float = 180.0) -> str:
    """The DOM of a page after its scripts ran for 30 s of virtual time."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    options += [f"--user-data-dir={profile}", "--virtual-time-budget=30000", "--dump-dom"]
    done = subprocess.run([browser, *options, url], capture_output=True, text=True, check=True, timeout=timeout)
    return done.stdout


@contextlib.contextmanager
def logged_in(server: str, authorization: str) -> Iterator[str]:
    """URL of a local proxy that forwards requests to the server with this Authorization header."""

    class Forward(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {name: value for name, value in self.headers.items() if name.lower() not in DROPPED}
            headers["Authorization"] = authorization
            request = urllib.request.Request(server + self.path, body or None, headers, method=self.command)
            try:
                answer = urllib.request.urlopen(request, timeout=60)
            except urllib.error.HTTPError as error:
                answer = error
            with answer:
                self.send_response(answer.status)
                self.send_header("Content-Type", answer.headers.get("Content-Type", "text/plain"))
                self.end_headers()
                self.wfile.write(answer.read())

        do_POST = do_GET

        def log_message(self, *args: Any) -> None:
            """Nothing."""

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Forward)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{proxy.server_port}"
    finally:
        proxy.shutdown()
        proxy.server_close()
