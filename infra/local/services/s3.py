"""An S3-compatible store for MLflow's artifacts and for feature banks."""

from __future__ import annotations

import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass

from services.process import BIN, HOST, Service

__all__ = ["S3Store"]


@dataclass(kw_only=True, eq=False)
class S3Store(Service):
    """An S3-compatible store in memory (moto) with one bucket. Its content is lost when it stops."""

    name: str = "s3"
    bucket: str = "sweeps"

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def client_environment(self) -> dict[str, str]:
        """Environment variables for clients; the store accepts any key."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "MLFLOW_S3_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "local",
            "AWS_SECRET_ACCESS_KEY": "local",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def command(self) -> Sequence[str]:
        return [str(BIN / "moto_server"), "-H", HOST, "-p", str(self.port)]

    def wait(self) -> None:
        super().wait()
        request = urllib.request.Request(
            f"{self.url}/{self.bucket}",
            method="PUT",
            headers={"Authorization": "AWS4-HMAC-SHA256 Credential=local/20260101/us-east-1/s3/aws4_request"},
        )
        with urllib.request.urlopen(request, timeout=10):
            return
