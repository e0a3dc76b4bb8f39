"""A server with as much of W&B's API as wandb needs to create, resume and finish runs and to log artifacts."""

from __future__ import annotations

import gzip
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

__all__ = ["WandbServer", "wandb_server"]


@dataclass
class ServerRun:
    """A run: the variables of its first `upsertBucket`, history lines, exit code, and how often it was opened."""

    values: dict[str, Any]
    history: list[str] = field(default_factory=list)
    exit_code: int | None = None
    opened: int = 0


@dataclass
class WandbServer:
    """What the server has received. `status`: of all answers, unless it is 200; `refuse`: paths that are refused."""

    url: str = ""
    runs: dict[str, ServerRun] = field(default_factory=dict)
    artifacts: set[tuple[str, str]] = field(default_factory=set)
    status: int = 200
    unavailable: str = ""

    def answer(self, path: str, document: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request."""
        query, given = document.get("query", ""), document.get("variables") or {}
        if path.endswith("/file_stream"):
            self._stream(path.split("/")[-2], document)
            return {}
        if "RunResumeStatus" in query:
            self.runs.setdefault(given["name"], ServerRun({})).opened += 1
            return {"model": {"id": "P", "name": given["project"], **ENTITY, "bucket": self._bucket(given["name"])}}
        if "upsertBucket" in query:
            run = self.runs.setdefault(given["name"], ServerRun({}))
            run.values = {**given, **run.values}
            project = {"id": "P", "name": given["project"], **ENTITY}
            bucket = {"id": "B", "name": given["name"], "displayName": given["displayName"], "project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if "createArtifact(" in query:
            self.artifacts.add((given["input"]["artifactCollectionName"], given["input"]["digest"]))
            committed = {"id": "A", "state": "COMMITTED", "artifactSequence": {"id": "S", "latestArtifact": None}}
            return {"createArtifact": {"artifact": committed}}
        if "query ArtifactByID" in query:
            return {"artifact": ARTIFACT}
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in given["files"]]
            return {"createRunFiles": {"runID": "B", "uploadHeaders": [], "files": files}}
        viewer = {"id": "U", "username": "me", "entity": "me", "flags": "{}", "teams": {"edges": []}, "email": ""}
        return {"viewer": viewer, "project": {"artifact": None}, "serverInfo": {"features": []}}

    def _stream(self, name: str, document: dict[str, Any]) -> None:
        run = self.runs[name]
        if "wandb-history.jsonl" in document.get("files", {}):
            chunk = document["files"]["wandb-history.jsonl"]
            run.history[chunk["offset"] :] = chunk["content"]
        if document.get("complete"):
            run.exit_code = document["exitcode"]

    def _bucket(self, name: str) -> dict[str, Any] | None:
        run = self.runs[name]
        if not run.values:
            return None
        return {
            **{"id": "B", "name": name, "displayName": run.values["displayName"], "summaryMetrics": "{}"},
            **{"logLineCount": 0, "historyLineCount": len(run.history), "eventsLineCount": 0, "eventsTail": "[]"},
            **{"historyTail": json.dumps(run.history[-1:]), "config": run.values["config"], "tags": [], "notes": ""},
            "wandbConfig": '{"t": 1}',
        }


ENTITY = {"entity": {"id": "E", "name": "me"}}

ARTIFACT = {
    **{"__typename": "Artifact", "id": "A", "versionIndex": 0, "artifactType": {"name": "model"}, "description": ""},
    **{"artifactSequence": {"__typename": "ArtifactSequence", "name": "any", "project": None}, "metadata": "{}"},
    **{"ttlDurationSeconds": -2, "ttlIsInherited": True, "tags": [], "historyStep": None, "state": "COMMITTED"},
    **{"size": 1, "digest": "0" * 32, "commitHash": "0", "fileCount": 1, "createdAt": "2026-01-01T00:00:00Z"},
    **{"updatedAt": None, "aliases": []},
}


@contextmanager
def wandb_server() -> Iterator[WandbServer]:
    """A server for the duration of the block."""
    state = WandbServer()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            failing = bool(state.unavailable) and state.unavailable in self.path
            status = 500 if failing else state.status
            document = json.loads(body) if status == 200 and self.path.endswith(("/graphql", "/file_stream")) else {}
            data = json.dumps({"data": state.answer(self.path, document)}).encode() if status == 200 else b"{}"
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_PUT = do_GET = do_POST

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        state.url = f"http://127.0.0.1:{server.server_port}"
        yield state
        server.shutdown()
