"""Checks a database and its server for `loracomp doctor`. Each finding has a status and says what to do."""

from loracomp.database import revision, schema
from loracomp.database.connections import connect, translated_errors
from loracomp.database.queries import QUERIES
from loracomp.errors import SchemaMismatchError

Finding = dict[str, str]
"""A dict with check_name, status (ok, warn or fail) and detail."""


def examine(url: str) -> list[Finding]:
    """Return all findings, or only the first one if the schema belongs to another release. Raises
    DatabaseUnavailableError."""
    try:
        revision.check_revision(url)
    except SchemaMismatchError as error:
        return [finding("schema", "fail", str(error))]
    with translated_errors(), connect(url, application_name="loracomp doctor") as connection:
        return [_drift(url), *connection.execute(QUERIES["check_health"]).fetchall()]


def finding(check: str, status: str, detail: str) -> Finding:
    """One finding of the report."""
    return {"check_name": check, "status": status, "detail": detail}


def _drift(url: str) -> Finding:
    if changed := schema.changed_files(url):
        return finding(
            "sql/ files",
            "warn",
            f"these files differ from those that were applied: {', '.join(changed)}; run `loracomp init`",
        )
    return finding("sql/ files", "ok", "as applied")
