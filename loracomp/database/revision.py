"""Checks which revision a database's schema has, without alembic, because its import takes 0.2 s of each command."""

from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row

from loracomp.database.connections import connect, translated_errors
from loracomp.database.queries import QUERIES
from loracomp.errors import SchemaMismatchError

RELEASES = {"1.0": "0001"}
"""The revision of each minor release's schema, this release's too."""


def packed_folder(name: str) -> Path:
    """Path of the folder `migrations` or `sql`: inside the installed package, or next to it in a git checkout."""
    package = Path(__file__).parent.parent
    return package / name if (package / name).is_dir() else package.parent / name


def known_revisions() -> list[str]:
    """The revisions that this release knows, oldest first.

    A migration's file begins with its revision, four digits that count up.
    """
    return sorted(path.stem.partition("_")[0] for path in packed_folder("migrations").glob("versions/[0-9]*.py"))


def head() -> str:
    """The newest revision that this release knows."""
    return known_revisions()[-1]


def check_revision(url: str) -> None:
    """Raise SchemaMismatchError unless the database is at this release's revision."""
    with connect(url, application_name="loracomp", vectors=False) as connection:
        found = current_revision(connection)
    if found != head():
        raise SchemaMismatchError(
            f"the database's schema ({found or 'none'}) is older than this release: run `loracomp init`"
        )


def current_revision(connection: psycopg.Connection[Any]) -> str | None:
    """The database's revision, or None if it has no schema yet.

    Raises SchemaMismatchError if this release does not know the revision.
    """
    with translated_errors(), connection.cursor(row_factory=dict_row) as cursor:
        has_revision = cursor.execute(QUERIES["has_revision"]).fetchone()
        assert has_revision
        row = cursor.execute(QUERIES["schema_revision"]).fetchone() if has_revision["found"] else None
    revision = row and str(row["revision"])
    if revision is not None and revision not in known_revisions():
        raise SchemaMismatchError(
            f"the database's schema ({revision}) is newer than this release knows: upgrade loracomp to use it. A "
            "schema from before the first release can't be upgraded: make a new database; `loracomp db reset` deletes "
            "the embedded one, and `loracomp init` then makes it again"
        )
    return revision
