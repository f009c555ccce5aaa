"""The schema, and the kinds of columns and constraints that its tables are made of."""

import re
from typing import Any

from pgvector.sqlalchemy import HALFVEC
from sqlalchemy import (
    ARRAY,
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKeyConstraint,
    Index,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.types import TypeEngine, UserDefinedType

SCHEMA = "loracomp"
DIMENSIONS = 832
"""Length of the default encoder's vectors: 384 for each of two texts and 64 for the shape (`model.encoder`).

`loracomp encoder set` may change the column's length in a database, so comparing tables with a database ignores it.
"""

NAME_BYTES = 300
"""Most bytes of the names of tasks, policies, base models and evaluations."""

# What SQLAlchemy has no word for: a column's `info`, and what ALTER COLUMN does to it.
IN_ROW = {"alter": "SET STORAGE PLAIN"}
"""Retrieval reads vectors where they stand, not from a TOAST table."""
NOT_COMPRESSED = {"alter": "SET STORAGE EXTERNAL"}
"""Numbers don't compress: pglz would be tried on each value, for nothing."""
NO_STATISTICS = {"alter": "SET STATISTICS 0"}
"""Otherwise erasing would leave values behind."""

metadata = MetaData(schema=SCHEMA)
TIME = DateTime(timezone=True)


class RoleName(UserDefinedType[str]):
    """Postgres's type `name` for identifiers; here it holds names of roles."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """The type's name in CREATE TABLE."""
        return "name"


class HalfVec(HALFVEC):  # type: ignore[misc]  # pgvector has no types
    """pgvector's type halfvec, named with its schema: migrations don't look for names in public."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """The type's name in CREATE TABLE."""
        return f"public.{super().get_col_spec()}"


def required(name: str, kind: Any, comment: str, default: str | None = None, **options: Any) -> Column[Any]:
    """A column that is NOT NULL. `default` is an expression of SQL, which the server evaluates."""
    filled = None if default is None else text(default)
    return Column(name, kind, nullable=False, comment=comment, server_default=filled, **options)


def optional(name: str, kind: Any, comment: str, **options: Any) -> Column[Any]:
    """A column that may be null."""
    return Column(name, kind, nullable=True, comment=comment, **options)


def created_at() -> Column[Any]:
    """The time when the row was made."""
    return required("created_at", TIME, "When the row was made.", default="now()")


def count(name: str, comment: str) -> Column[Any]:
    """A counter that starts at 0."""
    return required(name, BigInteger, comment, default="0")


def check(name: str, condition: str, **options: Any) -> CheckConstraint:
    """A named constraint."""
    return CheckConstraint(condition, name=name, **options)


def references(name: str, columns: str, targets: str, **options: Any) -> ForeignKeyConstraint:
    """A named foreign key of columns to schema.table.column, several separated by spaces."""
    return ForeignKeyConstraint(columns.split(), targets.split(), name=name, **options)


def index(name: str, columns: str, where: str | None = None, **options: Any) -> Index:
    """An index of columns, whose names are separated by spaces; only of the rows where a condition holds, if any."""
    return Index(name, *columns.split(), postgresql_where=where and text(where), **options)


def unique_with_nulls(name: str, columns: str) -> UniqueConstraint:
    """A constraint that no two rows have the same in all of these columns, separated by spaces; nulls are the same."""
    return UniqueConstraint(*columns.split(), name=name, postgresql_nulls_not_distinct=True)


def set_storage(table: Table, how: dict[str, str], columns: str) -> None:
    """Set the `info` of columns, whose names are separated by spaces."""
    for name in columns.split():
        table.c[name].info.update(how)


def one_of(column: str, values: str, name: str) -> CheckConstraint:
    """A constraint that a column has one of these values, separated by spaces."""
    listed = ", ".join(f"'{value}'" for value in values.split())
    return CheckConstraint(f"{column} IN ({listed})", name=name, comment=f"one of {', '.join(values.split())}")


def between(column: str, lowest: float, highest: float) -> CheckConstraint:
    """A constraint that a number is in this range. BETWEEN, because NaN and infinity would pass `> 0`."""
    words = f"between {lowest} and {highest}"
    name = f"{column} must be {words}".replace("-", "minus_")
    return CheckConstraint(f"{column} BETWEEN {lowest} AND {highest}", name=re.sub(r"\W", "_", name), comment=words)


def at_most_characters(column: str, most: int) -> CheckConstraint:
    """A constraint that a text is not longer than this."""
    return check(f"{column}_must_be_at_most_{most}_characters", f"char_length({column}) <= {most}")


def short_name(column: str, what: str) -> CheckConstraint:
    """A constraint on the length of a name. Several names make up a report's key, and an index takes 2,704 bytes."""
    return check(f"{what}_must_be_at_most_{NAME_BYTES}_bytes", f"octet_length({column}) <= {NAME_BYTES}")


def listing(column: str, most: int, *, with_nulls: bool = False) -> CheckConstraint:
    """A constraint that an array is a plain list: of one dimension, counted from 1, and usually without nulls."""
    none_null = "" if with_nulls else f" AND num_nulls(VARIADIC {column}) = 0"
    return check(
        f"{column}_must_be_a_list_of_at_most_{most}",
        f"{column} = '{{}}' OR (array_ndims({column}) = 1 AND array_lower({column}, 1) = 1 "
        f"AND cardinality({column}) <= {most}{none_null})",
    )


def shallow(column: str) -> CheckConstraint:
    """A constraint on the nesting of JSON, because programs read it recursively, and Python only 1,000 levels deep."""
    return check(
        f"{column}_must_be_nested_at_most_32_deep",
        f"{column} = '{{}}' OR NOT jsonb_path_exists({column}, 'strict $.**{{33}}')",
    )


def texts() -> TypeEngine[Any]:
    """The type text[]."""
    return ARRAY(Text)
