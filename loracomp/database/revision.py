"""Checks which revision a database's schema has. It does not use alembic, because importing that takes 0.2 s, for each
command."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row

from loracomp import __version__
from loracomp.database.connections import connect, row_of, translated_errors
from loracomp.database.queries import QUERIES
from loracomp.errors import SchemaMismatchError

RELEASES = {"1.0": "0001"}
"""The schema revision of each minor release, including this one."""
_NOT_INSTALLED = "loracomp is not installed in this database: run `loracomp init`"


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
    if found is None:
        raise SchemaMismatchError(_NOT_INSTALLED)
    if found != head():
        raise SchemaMismatchError(f"the database's schema ({found}) is older than this release: run `loracomp init`")


def check_worker(url: str) -> None:
    """Raise SchemaMismatchError unless workers of this release can work with the database."""
    with connect(url, application_name="loracomp worker start", vectors=False) as connection, translated_errors():
        has_revision = connection.execute(QUERIES["has_revision"]).fetchone()
        if has_revision and has_revision["found"]:
            problem = worker_problem(row_of(connection, QUERIES["oldest_worker"]))
        else:
            problem = _NOT_INSTALLED
    if problem:
        raise SchemaMismatchError(problem)


def worker_problem(row: Mapping[str, Any]) -> str | None:
    """Return the reason why workers of this release can't work with the database, by the row of query `oldest_worker`,
    or None. They can work with the schemas of their own minor version, of the one before, and of later versions that
    allow it.
    """
    newer = row["revision"] not in known_revisions()
    if row["revision"] in list(RELEASES.values())[-2:] or (newer and minor(row["oldest_worker"]) <= minor(__version__)):
        return None
    return (
        f"the database's schema ({row['revision']}) is {'newer' if newer else 'older'} than workers of loracomp "
        f"{__version__} can serve: {'start workers of its release' if newer else 'run `loracomp init`'}"
    )


def minor(version: str) -> tuple[int, int]:
    """The minor version, such as (1, 0) of 1.0.3."""
    major, minor, *_ = version.split(".")
    return int(major), int(minor)


def current_revision(connection: psycopg.Connection[Any]) -> str | None:
    """The database's revision; None if loracomp is not installed in it yet.

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
