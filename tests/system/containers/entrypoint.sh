#!/bin/sh
# Starts Postgres as pgvector's image does, as far as docker-compose.yml relies on that. With a new volume, it creates the
# database POSTGRES_DB, sets the superuser's POSTGRES_PASSWORD, and runs the files in docker-entrypoint-initdb.d, while
# the server listens only on its socket.
set -eu
export POSTGRES_USER="${POSTGRES_USER:-postgres}" PGDATA=/var/lib/postgresql/data
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    printf '%s\n' "${POSTGRES_PASSWORD:?}" > /tmp/password
    initdb --username="$POSTGRES_USER" --pwfile=/tmp/password --auth-local=trust --auth-host=scram-sha-256 --encoding=UTF8
    rm /tmp/password
    echo 'host all all all scram-sha-256' >> "$PGDATA/pg_hba.conf"
    echo "listen_addresses = '*'" >> "$PGDATA/postgresql.conf"
    pg_ctl start --wait --options "-c listen_addresses=''"
    createdb --username="$POSTGRES_USER" "$POSTGRES_DB"
    for script in /docker-entrypoint-initdb.d/*.sh; do
        sh "$script"
    done
    pg_ctl stop --wait --mode fast
fi
exec "$@"
