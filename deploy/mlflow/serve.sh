#!/bin/sh
# An MLflow server with logins, its runs in PostgreSQL, artifacts through the server itself:
# drivers need no access to the disk. Asks for, in the environment or in files (NAME_FILE):
#
#   POSTGRES_PASSWORD              of POSTGRES_USER (mlflow) at POSTGRES_HOST (127.0.0.1)
#   MLFLOW_AUTH_ADMIN_PASSWORD     12 characters or more; of the user admin, made at the first start
#   MLFLOW_FLASK_SERVER_SECRET_KEY signs sessions; the same after a restart
#
# Once, before:  createuser mlflow --pwprompt && createdb --owner mlflow mlflow
#                createdb --owner mlflow mlflow_auth
# Listens on loopback unless HOST says otherwise: put TLS in front of anything else.
set -eu

from_file() {
    eval "value=\${$1:-} file=\${$1_FILE:-}"
    if [ -z "${value:-}" ] && [ -n "${file:-}" ]; then
        value=$(cat "$file")
    fi
    if [ -z "${value:-}" ]; then
        echo "serve: $1 (or $1_FILE, a file that holds it) is not set" >&2
        exit 2
    fi
    export "$1=$value"
}

from_file POSTGRES_PASSWORD
from_file MLFLOW_AUTH_ADMIN_PASSWORD
from_file MLFLOW_FLASK_SERVER_SECRET_KEY

# libpq takes these from the environment: a password in a URI would be in every process list.
export PGHOST="${POSTGRES_HOST:-127.0.0.1}" PGPORT="${POSTGRES_PORT:-5432}"
export PGUSER="${POSTGRES_USER:-mlflow}" PGPASSWORD="$POSTGRES_PASSWORD"
unset POSTGRES_PASSWORD

MLFLOW_AUTH_CONFIG_PATH=$(mktemp)
export MLFLOW_AUTH_CONFIG_PATH
cat > "$MLFLOW_AUTH_CONFIG_PATH" <<CONFIG
[mlflow]
default_permission = EDIT
database_uri = postgresql+psycopg2:///${AUTH_DATABASE:-mlflow_auth}
admin_username = admin
# Checking a password takes a third of a second of a core, and every request brings one. So a
# changed password may be accepted for a minute longer by a worker that was not told.
auth_cache_ttl_seconds = 60
CONFIG

export MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false

exec mlflow server \
    --app-name basic-auth \
    --host "${HOST:-127.0.0.1}" --port "${PORT:-5000}" --workers "${WORKERS:-4}" \
    --allowed-hosts "${ALLOWED_HOSTS:-localhost:*,127.0.0.1:*}" \
    --backend-store-uri "postgresql+psycopg2:///${DATABASE:-mlflow}" \
    --artifacts-destination "${ARTIFACTS:-/artifacts}" --serve-artifacts
