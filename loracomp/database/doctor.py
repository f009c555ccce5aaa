"""Checks a database and its server for `loracomp doctor`: each finding has a status and says what to do."""

from collections.abc import Iterator

import psycopg

from loracomp.config import Settings
from loracomp.database import revision, schema
from loracomp.database.connections import Connection, connect, row_of, translated_errors
from loracomp.database.queries import QUERIES
from loracomp.errors import SchemaMismatchError

Finding = dict[str, str]
"""A dict with check_name, status (ok, warn or fail) and detail."""


def examine(url: str, settings: Settings) -> list[Finding]:
    """All findings; only the first if the schema is not this release's. Raises DatabaseUnavailableError."""
    try:
        revision.check_revision(url)
    except SchemaMismatchError as error:
        return [finding("schema", "fail", str(error))]
    with translated_errors(), connect(url, application_name="loracomp doctor") as connection:
        return [
            _pooler(url, connection, settings),
            _drift(url),
            _user_views(url),
            *connection.execute(QUERIES["check_health"]).fetchall(),
        ]


def finding(check: str, status: str, detail: str) -> Finding:
    """One finding of the report."""
    return {"check_name": check, "status": status, "detail": detail}


def _drift(url: str) -> Finding:
    if changed := schema.changed_files(url):
        return finding("sql/ files", "warn", f"differ from what was applied: {', '.join(changed)}; run `loracomp init`")
    return finding("sql/ files", "ok", "as applied")


def _user_views(url: str) -> Finding:
    views = schema.user_views(url)
    if refused := [view.name for view in views if not view.is_kept]:
        return finding(
            "views of yours",
            "warn",
            f"`loracomp init` cannot keep {', '.join(refused)}: materialized, or not the installer's to replace; "
            "drop them before it, and create them again",
        )
    return finding("views of yours", "ok", f"kept by `loracomp init`: {', '.join(v.name for v in views) or 'none'}")


def _pooler(url: str, connection: Connection, settings: Settings) -> Finding:
    pid = row_of(connection, QUERIES["server_process"])["pid"]
    if pid == connection.info.backend_pid:
        return finding("pooler", "ok", "none between here and the server")
    # A pooler reports its own number as backend_pid, which differs from the server process's.
    try:
        shared = next(_servers_of_another(url)) == pid
    except psycopg.errors.ProtocolViolation:
        return finding("pooler", "fail", "in statement mode, which breaks transactions: set pool_mode = transaction")
    if not shared:
        return finding("pooler", "ok", "in session mode")
    if settings.listen:
        return finding("pooler", "warn", "in transaction mode, where NOTIFY doesn't arrive: set LORACOMP_LISTEN=false")
    return finding("pooler", "ok", "in transaction mode; workers poll")


def _servers_of_another(url: str) -> Iterator[int]:
    """The process id of the server behind a second connection, inside a transaction, while the first one is idle."""
    with connect(url, application_name="loracomp doctor", vectors=False) as other, other.transaction():
        row = other.execute(QUERIES["server_process"]).fetchone()
        assert row is not None
        yield row["pid"]
