"""What a team runs for its sweeps, as processes on one machine: Ray nodes, PostgreSQL, an S3 store, MLflow with auth.

MLflow, PostgreSQL, the S3 store and Ray's job API listen on 127.0.0.1 alone; the ports by which Ray's nodes speak to
one another are open on every address, with the token. Passwords and the token are made for the occasion; the S3 store
takes any key. All lies in one directory, but for Ray's sessions: in the directory for temporary files, until a node is
stopped. `cluster.py` brings all of it up; tests start what they need, kill it and start it again. A file for each;
`process.py` is what they share. Knows processes and ports; knows nothing of sweeps.
"""

from services.mlflow_server import Mlflow
from services.postgres import Postgres
from services.process import NotUp, Service, free_port, secret
from services.ray_node import RayHead, RayWorker
from services.s3 import S3Store

__all__ = ["Mlflow", "NotUp", "Postgres", "RayHead", "RayWorker", "S3Store", "Service", "free_port", "secret"]
