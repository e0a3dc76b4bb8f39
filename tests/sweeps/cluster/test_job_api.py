"""A job API that answers late or never: what waits for it, and for how long."""

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


def test_a_tunnel_whose_other_end_is_gone_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes connections, and answers nothing."""
    monkeypatch.setattr(jobs, "ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as tunnel:
        address = f"http://127.0.0.1:{tunnel.getsockname()[1]}"
        with pytest.raises(LongtailError, match=rf"the job API at {address} failed: .*the way to it open"):
            Cluster(address)


class SlowApi(http.server.BaseHTTPRequestHandler):
    """Takes an upload at 10 MB/s, and never pauses for long."""

    got = 0

    def do_GET(self) -> None:
        self._answer({"version": "4", "ray_version": ray.__version__, "ray_commit": ray.__commit__})

    def do_PUT(self) -> None:
        left = int(self.headers["Content-Length"])
        while left > 0:
            piece = len(self.rfile.read(min(left, 1 << 20)))
            left, type(self).got = left - piece, type(self).got + piece
            time.sleep(0.1)
        self._answer({})

    def _answer(self, document: dict[str, str]) -> None:
        body = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        """Nothing."""


def test_an_upload_may_take_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no silence, however long it takes."""
    monkeypatch.setattr(jobs, "ANSWER_SECONDS", 1)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), SlowApi) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        client = Cluster(f"http://127.0.0.1:{server.server_port}")._client
        answer = client._do_request("PUT", "/api/packages/gcs/x.zip", data=bytes(20 << 20))
        server.shutdown()
    assert (answer.status_code, SlowApi.got) == (200, 20 << 20)
