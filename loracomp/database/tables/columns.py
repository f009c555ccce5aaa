"""The schema, and functions that make the columns and constraints of its tables."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pgvector.sqlalchemy import HALFVEC
from sqlalchemy import (
    ARRAY,
    DDL,
    BigInteger,
    CheckConstraint,
    Column,
    Connection,
    DateTime,
    ForeignKeyConstraint,
    Index,
    MetaData,
    Sequence,
    Table,
    Text,
    UniqueConstraint,
    event,
    text,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import TypeEngine, UserDefinedType

SCHEMA = "loracomp"
DIMENSIONS = 832
"""Length of the default encoder's vectors: 384 for each of two texts and 64 for the shape (`model.encoder`).

`loracomp encoder set` may change the column's length in a database, so comparisons of these tables with a database
ignore it.
"""

NAME_BYTES = 300
"""Maximum length in bytes of the names of tasks, policies and base models."""

# SQLAlchemy can't express a column's storage and statistics, so `info` contains the ALTER COLUMN actions that set them.
IN_ROW = {"alter": "SET STORAGE PLAIN"}
"""Vectors stay in the row, so that retrieval need not read a TOAST table."""
NOT_COMPRESSED = {"alter": "SET STORAGE EXTERNAL"}
"""Numbers don't compress, so trying pglz on each value would be wasted time."""
NO_STATISTICS = {"alter": "SET STATISTICS 0"}
"""Statistics would keep some values after they are erased."""

THIS_TRANSACTION = "(pg_current_xact_id())::text::bigint"
APPENDED_TO = {
    "autovacuum_vacuum_scale_factor": "0.01",
    "autovacuum_vacuum_threshold": "1000",
    "autovacuum_vacuum_cost_delay": "0",
}
"""Settings of tables to which triggers append work for the keeper. The keeper reads such a table from its oldest row
on, past dead tuples, so vacuum runs early and at full speed. These tables have no foreign or unique keys, so that
nobody who writes to them waits."""

metadata = MetaData(schema=SCHEMA)
TIME = DateTime(timezone=True)


class RoleName(UserDefinedType[str]):
    """Postgres's type `name` for identifiers; here it holds names of roles."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """The type's name in CREATE TABLE."""
        return "name"


class HalfVec(HALFVEC):  # type: ignore[misc]  # pgvector has no types
    """pgvector's type halfvec with its schema, because migrations don't look for names in public."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """The type's name in CREATE TABLE."""
        return f"public.{super().get_col_spec()}"


def _ddl(statement: str) -> DDL:
    return DDL(statement.replace("%", "%%"))  # type: ignore[no-untyped-call]


def also(*statements: str) -> None:
    """Statements that SQLAlchemy can't express; create_all runs them after it has made all tables."""
    for statement in statements:
        event.listen(metadata, "after_create", _ddl(statement))


for _schema in ("bi", "loracomp_parts"):
    event.listen(metadata, "before_create", _ddl(f"CREATE SCHEMA IF NOT EXISTS {_schema}"))
event.listen(metadata, "before_create", _ddl(Path(__file__).with_name("functions.sql").read_text()))
also(
    "COMMENT ON SCHEMA loracomp_parts IS 'Partitions of tables of schema loracomp, counters, and the parts of "
    "declarations.'"
)


@event.listens_for(metadata, "after_create")
def _alter_columns(_metadata: MetaData, connection: Connection, **_: object) -> None:
    for column in (column for table in metadata.sorted_tables for column in table.columns if column.info):
        connection.execute(_ddl(f"ALTER TABLE {column.table} ALTER COLUMN {column.name} {column.info['alter']}"))


def required(name: str, kind: Any, comment: str, default: str | None = None, **options: Any) -> Column[Any]:
    """A column that is NOT NULL. `default` is an SQL expression, which the server evaluates."""
    filled = None if default is None else text(default)
    return Column(name, kind, nullable=False, comment=comment, server_default=filled, **options)


def optional(name: str, kind: Any, comment: str, **options: Any) -> Column[Any]:
    """A column that may be null."""
    return Column(name, kind, nullable=True, comment=comment, **options)


def created_at() -> Column[Any]:
    """A column with the time when the row was made."""
    return required("created_at", TIME, "When the row was made.", default="now()")


def count(name: str, comment: str) -> Column[Any]:
    """A counter that starts at 0."""
    return required(name, BigInteger, comment, default="0")


def check(name: str, condition: str, **options: Any) -> CheckConstraint:
    """A named constraint."""
    return CheckConstraint(condition, name=name, **options)


def references(name: str, columns: str, targets: str, **options: Any) -> ForeignKeyConstraint:
    """Return a named foreign key. Columns on both sides are separated by spaces; the other side has
    schema.table.column."""
    return ForeignKeyConstraint(columns.split(), targets.split(), name=name, **options)


def index(name: str, columns: str, where: str | None = None, **options: Any) -> Index:
    """An index on columns, separated by spaces. With a condition, it contains only the rows that meet it."""
    return Index(name, *columns.split(), postgresql_where=where and text(where), **options)


def unique_with_nulls(name: str, columns: str) -> UniqueConstraint:
    """A unique constraint on these columns, separated by spaces; two nulls count as equal."""
    return UniqueConstraint(*columns.split(), name=name, postgresql_nulls_not_distinct=True)


def set_storage(table: Table, how: dict[str, str], columns: str) -> None:
    """Set the `info` of columns, whose names are separated by spaces."""
    for column in columns_of(table, columns):
        column.info.update(how)


def counter(name: str, comment: str) -> Sequence:
    """A sequence used as a counter: counting takes no lock and survives a rollback. Its last value is the count."""
    # The first nextval returns the start value without counting. From then on, each call adds one.
    also(f"COMMENT ON SEQUENCE {SCHEMA}.{name} IS '{comment}'", f"SELECT nextval('{SCHEMA}.{name}')")
    return Sequence(name, metadata=metadata, schema=SCHEMA, minvalue=0, start=0)


def composite_type(name: str, columns: Iterable[Column[Any]], comment: str) -> None:
    """A composite type whose attributes have the names and types of these columns."""
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    attributes = ", ".join(f"{column.name} {column.type.compile(dialect)}" for column in columns)
    also(f"CREATE TYPE {SCHEMA}.{name} AS ({attributes})", f"COMMENT ON TYPE {SCHEMA}.{name} IS '{comment}'")


def columns_of(table: Table, names: str) -> list[Column[Any]]:
    """Columns of a table, whose names are separated by spaces."""
    return [table.c[name] for name in names.split()]


def partition(name: str, definition: str, parent: str, values: str, comment: str) -> None:
    """A partition, in schema loracomp_parts. The SQL function add_range makes more.

    Row security without a policy keeps out everybody except the owner. Those who read a partition through its table
    need to pass only the table's policies.
    """
    also(
        f"CREATE TABLE loracomp_parts.{name} {definition}",
        f"COMMENT ON TABLE loracomp_parts.{name} IS '{comment}'",
        f"ALTER TABLE loracomp_parts.{name} ENABLE ROW LEVEL SECURITY",
        f"ALTER TABLE {parent} ATTACH PARTITION loracomp_parts.{name} {values}",
    )


def one_of(column: str, values: str, name: str) -> CheckConstraint:
    """Return a constraint that a column has one of these values, separated by spaces."""
    listed = ", ".join(f"'{value}'" for value in values.split())
    return CheckConstraint(f"{column} IN ({listed})", name=name, comment=f"one of {', '.join(values.split())}")


def between(column: str, lowest: float, highest: float) -> CheckConstraint:
    """A constraint that a number is in this range. It uses BETWEEN, because NaN and infinity would pass `> 0`."""
    words = f"between {lowest} and {highest}"
    name = f"{column} must be {words}".replace("-", "minus_").replace(" ", "_")
    return CheckConstraint(f"{column} BETWEEN {lowest} AND {highest}", name=name, comment=words)


def at_most_characters(column: str, most: int) -> CheckConstraint:
    """Return a constraint that a text has at most this many characters."""
    return check(f"{column}_must_be_at_most_{most}_characters", f"char_length({column}) <= {most}")


def short_name(column: str, what: str) -> CheckConstraint:
    """A constraint on a name's length. Reports have several names in a key, and an index entry takes 2,704 bytes."""
    return check(f"{what}_must_be_at_most_{NAME_BYTES}_bytes", f"octet_length({column}) <= {NAME_BYTES}")


def one_line(column: str, what: str) -> CheckConstraint:
    """A constraint that a name has no line breaks or other control characters, so that messages and tables show it."""
    return check(f"{what}_must_not_contain_control_characters", f"{column} !~ '[[:cntrl:]]'")


def listing(column: str, most: int) -> CheckConstraint:
    """Return a constraint that an array is a list: one dimension, the first index is 1, and no nulls."""
    return check(
        f"{column}_must_be_a_list_of_at_most_{most}",
        f"{column} = '{{}}' OR (array_ndims({column}) = 1 AND array_lower({column}, 1) = 1 "
        f"AND cardinality({column}) <= {most} AND num_nulls(VARIADIC {column}) = 0)",
    )


def shallow(column: str) -> CheckConstraint:
    """A constraint on how deep JSON is nested. Programs read it recursively, and Python stops at 1,000 levels."""
    return check(
        f"{column}_must_be_nested_at_most_32_deep",
        f"{column} = '{{}}' OR NOT jsonb_path_exists({column}, 'strict $.**{{33}}')",
    )


def texts() -> TypeEngine[Any]:
    """The type text[]."""
    return ARRAY(Text)
