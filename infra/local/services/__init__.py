"""The services of a team's cluster, as local processes: Ray nodes, PostgreSQL, an S3 store, MLflow with logins.

MLflow, PostgreSQL, the S3 store and Ray's job API listen on 127.0.0.1 only. The ports between Ray nodes listen on all
addresses and require the token. Passwords and the token are generated; the S3 store accepts any key. All files are in
one directory, except Ray's sessions, which are in the temporary directory until a node is stopped. `cluster.py` starts
all services; tests start, kill and restart single ones.
"""

from services.mlflow_server import Mlflow
from services.postgres import Postgres
from services.process import Service, ServiceError, free_port, secret
from services.ray_node import RayHead, RayWorker
from services.s3 import S3Store

__all__ = ["Mlflow", "Postgres", "RayHead", "RayWorker", "S3Store", "Service", "ServiceError", "free_port", "secret"]
