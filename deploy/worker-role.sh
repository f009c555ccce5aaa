#!/bin/sh
# Run once, when the database's volume is new: the login of the workers, with the rights of loracomp_worker and no other.
set -eu
psql --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" -v ON_ERROR_STOP=1 -v password="$WORKER_PASSWORD" <<'SQL'
CREATE ROLE loracomp_worker NOLOGIN;
CREATE ROLE worker LOGIN PASSWORD :'password' IN ROLE loracomp_worker;
SQL
