"""The schema as a script: `loracomp sql` prints it for psql, and `loracomp init` runs the same steps.

The script is made from script.sql, the migrations, which alembic renders as SQL, and the files of sql/.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from io import StringIO
from pathlib import Path
from typing import TextIO

import jinja2
from alembic import command
from alembic.config import Config

from loracomp import __version__
from loracomp.database.revision import RELEASES, head, packed_folder
from loracomp.errors import NotFoundError, UsageError

ROLES = ("loracomp_submitter", "loracomp_worker", "loracomp_analyst", "loracomp_admin")
"""Roles whose grants are in sql/. Grants that an administrator gave to other roles are kept when sql/ is applied."""
NOTE = "loracomp: LoRA adapters composed for each job. INSERT INTO loracomp.job asks; docs/sql.md says what is public."
LOCK_ATTEMPTS = 100
"""How often an upgrade tries to lock all tables, which takes about a minute in all."""


@dataclass(frozen=True, slots=True)
class Step:
    """A part of the script. All parts run in order, in the same transaction."""

    name: str
    sql: str


@dataclass(frozen=True, slots=True)
class SqlFile:
    """A file of sql/: the objects of one topic, in the order in which they are created."""

    path: str
    source: str

    @property
    def checksum(self) -> str:
        """Sha256 in hex of the file's text."""
        return hashlib.sha256(self.source.encode()).hexdigest()


def sql_files() -> list[SqlFile]:
    """Files of sql/ in the order in which they are applied."""
    root = packed_folder("sql")
    return [SqlFile(path.relative_to(root).as_posix(), path.read_text("utf-8")) for path in sorted(root.rglob("*.sql"))]


def schema_script(since: str | None = None, to: str | None = None) -> str:
    """A script that creates the whole schema, or upgrades it from the release `since`, such as 1.0.

    Raises NotFoundError if this release does not know `since`, and UsageError if `to` is not this release.
    """
    if to is not None and to.split(".")[:2] != __version__.split(".")[:2]:
        raise UsageError(
            f"this is loracomp {__version__}, which knows only its own schema: install loracomp {to} for --to"
        )
    if since is not None and since not in RELEASES:
        raise NotFoundError(f"no release {since} before this one: --from is one of {', '.join(RELEASES)}")
    base = RELEASES[since] if since else None
    parts = [
        _block("header", release=__version__, since=since),
        "BEGIN ISOLATION LEVEL READ COMMITTED;",
        roles().sql,
        "COMMIT;",
        "BEGIN ISOLATION LEVEL READ COMMITTED;",
        begin().sql,
    ]
    return "\n".join([*parts, *(step.sql for step in steps(base)), "COMMIT;\n"])


def roles() -> Step:
    """Creates missing roles, in a separate transaction, because roles belong to the whole server."""
    return Step("roles", _block("roles", roles=ROLES, settings=_block("settings")))


def begin() -> Step:
    """Begins the installation: fixes the search path, shuts out other installers, and makes sure of pgvector."""
    return Step("begin", _block("begin", note=NOTE, settings=_block("settings")))


def steps(base: str | None) -> Iterator[Step]:
    """Changes the schema from revision `base`, or from no schema, to this release's schema."""
    yield Step("revision", _block("revision", base=base))
    if base is None:
        yield Step("tables", _migrations("base"))
        yield from apply()
        return
    yield from drop()
    if base != head():
        yield Step("tables", _migrations(base))
    yield from apply()
    yield again()


def drop() -> Iterator[Step]:
    """Locks all tables and drops the objects of sql/, but keeps views and grants that others made on them. Afterwards
    tables may be changed."""
    yield Step("lock", _block("lock", attempts=LOCK_ATTEMPTS))
    yield Step("drop", _block("drop", roles=ROLES))


def apply() -> Iterator[Step]:
    """Creates the objects of sql/."""
    yield Step("sql/", _block("apply"))
    for ordinal, file in enumerate(sql_files()):
        noted = f"SELECT pg_temp.note_file('{file.path}', {ordinal}, '{file.checksum}');\n"
        yield Step(f"sql/{file.path}", f"\n-- sql/{file.path}\n{file.source}{noted}")
    yield Step("end", _block("end"))


def again() -> Step:
    """Restores the views and grants that `drop` kept."""
    return Step("again", _block("again"))


def alembic_config(output: TextIO | None = None) -> Config:
    """Alembic's configuration for the packaged migrations, to write them to `output` as SQL."""
    config = Config(output_buffer=output)
    config.set_main_option("script_location", str(packed_folder("migrations")).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _migrations(base: str) -> str:
    output = StringIO()
    command.upgrade(alembic_config(output=output), f"{base}:head", sql=True)
    return output.getvalue()


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined, autoescape=False)  # noqa: S701  SQL
    return environment.from_string(Path(__file__).with_suffix(".sql").read_text())


def _block(name: str, **values: object) -> str:
    template = _template()
    return "".join(template.blocks[name](template.new_context(values)))
