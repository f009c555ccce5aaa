"""Keeps code in a dump from running with the rights of the superuser who restores it. guard.sql says how."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from loracomp.database.connections import Connection
from loracomp.errors import NotFoundError, RefusedError

_DROP = "DROP SCHEMA IF EXISTS loracomp_restore CASCADE"  # the event triggers go with their functions
_TRUST = """
INSERT INTO loracomp_restore.trusted SELECT oid FROM pg_catalog.pg_roles WHERE rolname = ANY (%s::name[])
ON CONFLICT DO NOTHING
"""
_MISSING = "SELECT unnest(%s::name[])::text AS role EXCEPT SELECT rolname::text FROM pg_catalog.pg_roles ORDER BY 1"


@contextmanager
def guarded(connection: Connection, trusted: Sequence[str]) -> Iterator[None]:
    """Within this context a restore by a superuser into this database raises an error if it meets others' code.

    Code of superusers and of the roles `trusted` is allowed. Raises RefusedError if the session's role is not a
    superuser, and NotFoundError if a role of `trusted` does not exist.
    """
    if connection.info.parameter_status("is_superuser") != "on":
        raise RefusedError(
            "only a superuser can restore a dump this way; docs/operations.md says how an owner restores it"
        )
    with connection.transaction():
        connection.execute("SET LOCAL search_path = pg_catalog")
        if missing := [row["role"] for row in connection.execute(_MISSING, [[*trusted]])]:
            raise NotFoundError(f"there is no role {', '.join(missing)}: --trust takes names of roles")
        connection.execute(_DROP)  # what a restore that was killed has left behind
        connection.execute(Path(__file__).with_name("guard.sql").read_bytes())
        connection.execute(_TRUST, [[*trusted]])
    try:
        yield
    finally:
        connection.execute(_DROP)
