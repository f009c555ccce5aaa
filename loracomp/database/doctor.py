"""What an administrator should know before trusting a database: findings with a status, and what to do."""

from collections.abc import Iterator
from datetime import UTC, datetime

import psycopg

from loracomp.config import Settings
from loracomp.database import schema
from loracomp.database.connections import Connection, connect, translated_errors
from loracomp.database.queries import QUERIES
from loracomp.errors import SchemaMismatchError

Finding = dict[str, str]
"""check_name, status (ok, warn or fail), detail."""

OLDEST_TESTED = 16
SKEW_S = 2.0


def examine(url: str, settings: Settings) -> list[Finding]:
    """All findings; where the schema is not this release's, that one alone. Raises DatabaseUnavailableError."""
    try:
        schema.check_revision(url)
    except SchemaMismatchError as error:
        return [finding("schema", "fail", str(error))]
    with translated_errors(), connect(url, application_name="loracomp doctor") as connection:
        return [
            server_finding(connection.info.server_version),
            _pooler(url, connection, settings),
            _clock(connection),
            _drift(url),
            *connection.execute(QUERIES["check_health"]).fetchall(),
        ]


def finding(check: str, status: str, detail: str) -> Finding:
    """One line of the report."""
    return {"check_name": check, "status": status, "detail": detail}


def server_finding(version: int) -> Finding:
    """Whether the server's release of PostgreSQL, as libpq numbers it (170011), is tested."""
    major, minor = divmod(version, 10_000)
    name = f"PostgreSQL {major}.{minor}"
    if major < OLDEST_TESTED:
        return finding("server", "warn", f"{name}: {OLDEST_TESTED} or newer is tested; upgrade it")
    return finding("server", "ok", name)


def _drift(url: str) -> Finding:
    if changed := schema.changed_files(url):
        return finding("sql/ files", "warn", f"differ from what was applied: {', '.join(changed)}; run `loracomp init`")
    return finding("sql/ files", "ok", "as applied")


def _clock(connection: Connection) -> Finding:
    before = datetime.now(UTC)
    row = connection.execute(QUERIES["server_clock"]).fetchone()
    after = datetime.now(UTC)
    assert row is not None
    # The server read its clock somewhere between.
    skew = max((before - row["now"]).total_seconds(), (row["now"] - after).total_seconds(), 0.0)
    if skew > SKEW_S:
        return finding(
            "clock",
            "warn",
            f"this machine's is {skew:.0f} s off the server's, which alone counts: mind run_at; use NTP",
        )
    return finding("clock", "ok", f"within {SKEW_S:g} s of the server's")


def _pooler(url: str, connection: Connection, settings: Settings) -> Finding:
    row = connection.execute(QUERIES["server_clock"]).fetchone()
    assert row is not None
    if row["pid"] == connection.info.backend_pid:
        return finding("pooler", "ok", "none between here and the server")
    # A pooler invents the number that a client may cancel by.
    try:
        shared = next(_servers_of_another(url)) == row["pid"]
    except psycopg.errors.ProtocolViolation:
        return finding("pooler", "fail", "in statement mode, which breaks transactions: set pool_mode = transaction")
    if not shared:
        return finding("pooler", "ok", "in session mode")
    if settings.listen:
        return finding("pooler", "warn", "in transaction mode, where hints don't arrive: LORACOMP_LISTEN=false")
    return finding("pooler", "ok", "in transaction mode; workers poll")


def _servers_of_another(url: str) -> Iterator[int]:
    """The server process behind another connection, in a transaction, while the first is idle."""
    with connect(url, application_name="loracomp doctor", vectors=False) as other, other.transaction():
        row = other.execute(QUERIES["server_clock"]).fetchone()
        assert row is not None
        yield row["pid"]
