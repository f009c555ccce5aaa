"""The schema as a script for psql: what `loracomp init` makes, for databases that are not installed by a program."""

from io import StringIO
from pathlib import Path

import jinja2
from alembic import command

from loracomp import __version__
from loracomp.database import sql_objects
from loracomp.database.queries import QUERIES
from loracomp.database.revision import RELEASES, head, minor
from loracomp.database.schema import NOTE, alembic_config
from loracomp.errors import NotFoundError, UsageError

OF_THE_CATALOG = ("others_in_schemas", "object_drops", "other_grants", "user_views", "lockable_tables")


def schema_script(since: str | None = None, to: str | None = None) -> str:
    """The whole schema, or what leads to it from that of the release `since`, such as 1.0.

    Raises NotFoundError if this release does not know `since`, and UsageError if `to` is not this release.
    """
    if to is not None and minor(to) != minor(__version__):
        raise UsageError(
            f"this is loracomp {__version__}, which has its own schema alone: install loracomp {to} for --to"
        )
    if since is not None and since not in RELEASES:
        raise NotFoundError(f"no release {since} before this one: --from is one of {', '.join(RELEASES)}")
    base = RELEASES[since] if since else None
    template = jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined, autoescape=False)  # noqa: S701  SQL
    return template.from_string(Path(__file__).with_suffix(".sql").read_text()).render(
        release=__version__,
        since=since,
        base=base,
        note=NOTE,
        roles=sql_objects.ROLES,
        revoke=sql_objects.REVOKE,
        migrations=_migrations(base),
        files=sql_objects.sql_files(),
        **{name: _for_psql(QUERIES[name]) for name in OF_THE_CATALOG},
    )


def _migrations(base: str | None) -> str:
    if base == head():
        return ""
    output = StringIO()
    config = alembic_config(output=output)
    command.upgrade(config, f"{base or 'base'}:head", sql=True)
    return output.getvalue()


def _for_psql(query: str) -> str:
    """A query of psycopg's without its placeholders."""
    roles = ", ".join(f"'{role}'" for role in sql_objects.ROLES)
    return query.replace("%(roles)s", f"ARRAY[{roles}]").replace("%%", "%")
