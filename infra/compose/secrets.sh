#!/usr/bin/env bash
# Make the passwords of compose.yaml, once: files in infra/compose/secrets, which git ignores. Existing ones are kept.
#
#   infra/compose/secrets.sh [FOLDER] [HOST]     HOST of Postgres, default `postgres`
set -euo pipefail
umask 077
folder=${1:-$(dirname "$0")/secrets}
host=${2:-postgres}
mkdir -p "$folder"
cd "$folder"
random() { head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n'; }
keep() { [ -s "$1" ] || printf '%s' "$2" >"$1"; }
keep postgres_password "$(random)"
keep prefect_auth "nightmill:$(random)"
keep mlflow_password "$(random)"
keep mlflow_secret_key "$(random)"
keep prefect_database "postgresql+asyncpg://nightmill:$(cat postgres_password)@$host:5432/prefect"
keep mlflow_database "postgresql+psycopg://nightmill:$(cat postgres_password)@$host:5432/mlflow"
keep mlflow_basic_auth.ini "[mlflow]
default_permission = NO_PERMISSIONS
database_uri = $(cat mlflow_database)
admin_username = nightmill
admin_password = $(cat mlflow_password)
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"
chmod 0444 ./*  # a container's own user reads them; the folder is ours alone
echo "secrets are in $PWD"
