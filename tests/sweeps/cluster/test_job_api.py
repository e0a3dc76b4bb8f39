"""Timeouts of requests to the job API."""

from __future__ import annotations

import http.server
import json
import socket
import threading
import time
from typing import Any

import pytest
import ray

from lt_train.core.errors import LongtailError
from sweeps.cluster import jobs
from sweeps.cluster.jobs import Cluster


def test_a_tunnel_without_an_answer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """It accepts connections and never answers."""
    monkeypatch.setattr(jobs, "ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as tunnel:
        address = f"http://127.0.0.1:{tunnel.getsockname()[1]}"
        with pytest.raises(LongtailError, match=rf"the job API at {address} failed: .*tunnel"):
            Cluster(address)


class SlowApi(http.server.BaseHTTPRequestHandler):
    """Takes the first half of an upload at 5 MiB/s and the rest, which may be in buffers by then, at once."""

    got = 0

    def do_GET(self) -> None:
        self._answer({"version": "4", "ray_version": ray.__version__, "ray_commit": ray.__commit__})

    def do_PUT(self) -> None:
        size = left = int(self.headers["Content-Length"])
        while left > 0:
            piece = len(self.rfile.read(min(left, 1 << 20)))
            left, type(self).got = left - piece, type(self).got + piece
            if left > size // 2:
                time.sleep(0.2)
        self._answer({})

    def _answer(self, document: dict[str, str]) -> None:
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        """Log nothing."""


def test_an_upload_may_take_longer_than_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "ANSWER_SECONDS", 3)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), SlowApi) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        client = Cluster(f"http://127.0.0.1:{server.server_port}")._client
        answer = client._do_request("PUT", "/api/packages/gcs/x.zip", data=bytes(40 << 20))
        server.shutdown()
    assert (answer.status_code, SlowApi.got) == (200, 40 << 20)
