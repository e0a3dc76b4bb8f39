#!/bin/sh
# MLflow's server, with its secrets taken from files: into its environment, which nobody but its own user can read, and
# not into arguments or what is printed, which others can. Everything else it is told by MLFLOW_* of compose.yaml or of
# kubernetes/mlflow.yaml.
set -eu
secrets=${MLFLOW_SECRETS:-/run/secrets}

# libpq reads the password from here, so no address of the database has to hold it.
PGPASSWORD=$(cat "$secrets/postgres-password")
# Of the user `admin`; MLflow looks at it when it first starts on an empty database, never again.
MLFLOW_AUTH_ADMIN_PASSWORD=$(cat "$secrets/admin-password")
# Signs the cookies of its pages.
MLFLOW_FLASK_SERVER_SECRET_KEY=$(cat "$secrets/session-key")
: "${PGPASSWORD:?its file is empty}" "${MLFLOW_AUTH_ADMIN_PASSWORD:?its file is empty}"
: "${MLFLOW_FLASK_SERVER_SECRET_KEY:?its file is empty}"
export PGPASSWORD MLFLOW_AUTH_ADMIN_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY

exec mlflow server --app-name basic-auth
