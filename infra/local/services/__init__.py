"""What a team runs for its sweeps, as processes on one machine: Ray nodes, PostgreSQL, an S3 store, MLflow with auth.

Everything listens on 127.0.0.1 alone, with a password or a token made for the occasion, and leaves nothing outside its
directory. `cluster.py` brings all of it up; tests start what they need, kill it and start it again. A file for each;
`process.py` is what they share. Knows processes and ports; knows nothing of sweeps.
"""

from services.mlflow_server import Mlflow
from services.postgres import Postgres
from services.process import NotUp, Service, free_port, secret
from services.ray_node import RayHead, RayWorker
from services.s3 import S3Store

__all__ = ["Mlflow", "NotUp", "Postgres", "RayHead", "RayWorker", "S3Store", "Service", "free_port", "secret"]
