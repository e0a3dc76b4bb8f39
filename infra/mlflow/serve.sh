#!/bin/sh
# MLflow's server, with secrets from files. They are passed in the environment, which only the server's user can read, and
# never in arguments or output. All other settings are MLFLOW_* variables in compose.yaml or kubernetes/mlflow.yaml.
set -eu
secrets=${MLFLOW_SECRETS:-/run/secrets}

# libpq reads the password from this variable, so the database URI does not contain it.
PGPASSWORD=$(cat "$secrets/postgres-password")
# Password of the user `admin`; read only at the first start, on an empty database.
MLFLOW_AUTH_ADMIN_PASSWORD=$(cat "$secrets/admin-password")
# Signs session cookies.
MLFLOW_FLASK_SERVER_SECRET_KEY=$(cat "$secrets/session-key")
: "${PGPASSWORD:?its file is empty}" "${MLFLOW_AUTH_ADMIN_PASSWORD:?its file is empty}"
: "${MLFLOW_FLASK_SERVER_SECRET_KEY:?its file is empty}"
export PGPASSWORD MLFLOW_AUTH_ADMIN_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY

exec mlflow server --app-name basic-auth
