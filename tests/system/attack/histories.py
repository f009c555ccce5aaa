"""Random histories of a declared table beside a plain model of it: what the view, counts and feeds show must follow.

A history has a table of random types, keys, partitions and policies. Its moves are all statements that write rows,
changes of the table, of the declaration and of sessions, and workers that act between them. Answers are a prompt's
last word, so the model knows each.
"""

import json
import random
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, LiteralString

import psycopg
from psycopg import errors, sql

from answers_data import answer_all
from conftest import create_database, drop_database
from job_data import BASE, add_base_model, claim, keep, record
from loracomp.database import connections as db
from loracomp.database import embedded
from loracomp.database.connections import Connection
from loracomp.database.guard import guarded
from loracomp.worker.leases import what_waits
from rounds import Round
from town import Ground, connect, login

MOVES = 60
LOCKED_S = 5
"""Seconds that a statement may take while the triggers wait in vain, at 0.3 s for each of a few locks."""
Key = tuple[int, str]
"""The number of its first column's value in VALUES, and its second column."""

VALUES: dict[str, tuple[str, ...]] = {
    "smallint": ("0", "-1", "32767", "-32768", "7", "10", "2", "100"),
    "integer": ("0", "-1", "2147483647", "-2147483648", "7", "10", "2", "100"),
    "bigint": ("0", "-1", "9223372036854775807", "-9223372036854775808", "7", "10", "2", "100"),
    "numeric": ("0", "-0.5", "1e-40", "NaN", "Infinity", "1e400", "2.50", "100"),
    "text": ("", " ", "{a,b}", 'quote " \' \\', "%s %I {0}", "\u202e\u0130", "null", "x" * 2500),
    "character varying": ("", " ", "{a,b}", 'quote " \' \\', "%s %I {0}", "\u202e\u0130", "NULL", "x" * 2500),
    "character(40)": ("", "a", "{a,b}", 'quote " \' \\', "%s %I {0}", "\u202e\u0130", "NULL", "x" * 40),
    "name": ("a", "b", "{a,b}", "pg_catalog", "%s", "A b", "NULL", "x" * 60),
    "uuid": tuple(f"{digit * 8}-{digit * 4}-{digit * 4}-{digit * 4}-{digit * 12}" for digit in "01289abf"),
    "boolean": ("true", "false"),
    "date": ("2024-02-29", "4713-01-01 BC", "5874897-12-31", "infinity", "-infinity", "1999-12-31",
             "2000-01-02", "0001-01-01"),
    "timestamp without time zone": (
        "2024-02-29 01:02:03.000001", "4713-01-01 00:00:00 BC", "294276-12-31 23:59:59", "infinity", "-infinity",
        "1999-12-31 23:59:59.999999", "2000-01-02 00:00:00", "0001-01-01 00:00:00",
    ),
    "timestamp with time zone": (
        "2024-02-29 01:02:03.000001+00", "4713-01-01 00:00:00+00 BC", "294276-12-31 23:59:59+00", "infinity",
        "-infinity",
        "1999-12-31 23:59:59.999999+14", "2000-03-26 02:30:00+02", "0001-01-01 00:00:00+00",
    ),
}  # fmt: skip
"""Values of each type that a key may have."""
OTHER_VALUES: dict[str, tuple[str, ...]] = {
    "double precision": ("0.1", "0.30000000000000004", "NaN", "1e-310"),
    "real": ("0.1", "1e-40", "Infinity", "3.4028235e+38"),
    "interval": ("1 day", "1 year 2 mons", "-01:00:00", "178000000 years"),
    "jsonb": ("{}", '"a"', "[1, 2]", "null"),
    "text[]": ("{}", "{a,b}", '{"a,b"}', '{"NULL"}'),
    "inet": ("10.0.0.1", "::1", "10.0.0.0/8", "127.0.0.1"),
}
"""Values of types that only a filter's column may have, as they are written in a session without settings."""
NUMBERS = ("smallint", "integer", "bigint", "numeric")
TEXTS = ("text", "character varying")
KEY_TYPES = {
    **{kind: NUMBERS[at:] for at, kind in enumerate(NUMBERS[:3])},
    **dict.fromkeys((*TEXTS, "character(40)", "name", "uuid", "boolean"), TEXTS),
}
"""Types that a key with the values of a type may be given, so that each value stays the same text."""
HOURS = tuple(f"2026-01-01T{hour:02}:00:00" for hour in (8, 9, 13, 14, 7, 12, 17, 18))
DAYS = tuple(f"2026-01-{day:02}T23:30:00" for day in range(2, 10))
TIMES = ("timestamp without time zone", "timestamp with time zone", "date")
"""Types of keys that are converted into each other. Which time another type gets is up to the session's TimeZone: with
HOURS it may be the time of another row."""
ODD_TYPES: dict[str | None, tuple[str, tuple[str, ...]]] = {
    "regclass": ("public.other", ("quote_all_identifiers", "search_path")),
    "public.file": ('(x,"\\\\x61ff")', ("bytea_output",)),
    "money": ("-1234.5", ("lc_monetary",)),
    "timestamp with time zone": ("2024-02-03 04:05:06.7+00", ("DateStyle", "TimeZone")),
    "interval": ("1 year 2 mons -3 days 04:05:06", ("IntervalStyle",)),
    "double precision": ("0.1", ("extra_float_digits",)),
}
"""Types of a column of the prompt, with its value, and the settings of a session that decide how Postgres writes it.
public.file is a composite type with a bytea."""
SPELLED_AGAIN = {"numeric": "{k} + 0.000", "character(40)": "{k} || ' '", "timestamp with time zone": "{k} + '0 s'"}
"""How the same key may be written in other letters."""
SESSION: dict[str, tuple[str, ...]] = {
    "DateStyle": ("ISO, DMY", "SQL, DMY", "German", "Postgres, MDY"),
    "IntervalStyle": ("sql_standard", "iso_8601", "postgres_verbose"),
    "extra_float_digits": ("-15", "0", "3"),
    "bytea_output": ("escape",),
    "standard_conforming_strings": ("off",),
    "TimeZone": ("America/New_York", "Asia/Kathmandu", "Etc/GMT-1", "UTC"),
    "search_path": ("pg_temp, public", '""', "loracomp, public"),
    "default_transaction_isolation": ("serializable", "repeatable read"),
    "client_encoding": ("LATIN1", "UTF8"),
    "xmlbinary": ("hex",),
    "array_nulls": ("off",),
    "row_security": ("off", "on"),
    "quote_all_identifiers": ("on",),
    "enable_seqscan": ("off",),
    "plan_cache_mode": ("force_generic_plan",),
    "transform_null_equals": ("on",),
    "lc_numeric": ("C",),
    "lc_monetary": ("en_US.UTF-8", "de_DE.UTF-8", "C"),
}
DATABASE_SETTINGS = (
    "DateStyle",
    "IntervalStyle",
    "extra_float_digits",
    "TimeZone",
    "array_nulls",
    "transform_null_equals",
    "bytea_output",
    "quote_all_identifiers",
    "search_path",
)
"""Settings that a database's owner may set for all sessions, including workers' sessions."""
NAMES = ("k", 'odd "key"', "{k}", "%s", "Key", "select", "\u0130\u202e", "s", "a")
BODIES = (None, " ", "\u00a0", "x", "y", "z")
PARTS = ("a", "b", "c")
STOPS: tuple[tuple[LiteralString, LiteralString, str], ...] = (
    (
        "ALTER TABLE {table} FORCE ROW LEVEL SECURITY",
        "ALTER TABLE {table} NO FORCE ROW LEVEL SECURITY",
        "forces its policies",
    ),
    (
        "CREATE TABLE public.parent (); ALTER TABLE {table} INHERIT public.parent",
        "ALTER TABLE {table} NO INHERIT public.parent; DROP TABLE public.parent",
        "is part of another table",
    ),
)
"""What stops a declaration, how it is undone, and what `state` says meanwhile."""
AT_ONCE = "UPDATE loracomp.declaration SET retry_at = '-infinity'"


@dataclass
class Row:
    body: str | None
    mark: int

    @property
    def ended(self) -> tuple[str, str | None]:
        """Status and answer, when nothing is left to do."""
        return ("refused", None) if self.body is None or not self.body.strip() else ("answered", self.body)


@dataclass
class Correction:
    text: str
    body: str | None
    """The row's body when it was corrected."""
    is_drawn: bool
    is_sure: bool = True
    """Whether the row's body was never another since."""


@dataclass
class Feed:
    """What a reader has been told by `answers_since`: status and answer by the key as it was written."""

    told: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    cursor: str | None = None


@dataclass
class History:
    """A table, its model, and what was done to both."""

    ground: Ground
    number: int
    done: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    rows: dict[Key, Row] = field(default_factory=dict)
    corrections: dict[Key, Correction] = field(default_factory=dict)
    feeds: dict[str, "Feed"] = field(default_factory=dict)
    places: dict[tuple[tuple[str, ...], str], int] = field(default_factory=dict)
    """Numbers of values by their texts, as far as they are known."""
    is_paused: bool = False
    was_locked: bool = False
    stranger: Connection | None = None

    def begin(self, url: str) -> None:
        self.url = url
        draw = self.draw = random.Random(self.number)
        self.first_kind = draw.choice([*VALUES] if draw.random() < 0.7 else TIMES)
        self.mark_kind = draw.choice([*VALUES, *OTHER_VALUES])
        self.kind = self.first_kind
        self.values, self.is_converted = VALUES[self.kind], self.kind in TIMES and draw.random() < 0.8
        if self.is_converted:
            times = draw.choice((HOURS, DAYS)) if self.kind != "date" else DAYS
            self.values = tuple(each + "+00" if self.kind == TIMES[1] else each for each in times)
            self.values = tuple(each[:10] for each in times) if self.kind == "date" else self.values
        self.odd_kind = draw.choice((None, "regclass", "public.file", *ODD_TYPES))
        self.marks = (VALUES | OTHER_VALUES)[self.mark_kind][:4]
        self.size = len(self.values) // 2
        self.partitioned = draw.choice(("", "", "LIST (%s)", "" if self.is_converted else "HASH (%s)"))
        self.secured = draw.random() < 0.4
        self.choices = draw.choice((None, ["x", "y", "z"]))
        self.passing = set(range(max(1, len(self.marks) - 1)))
        names = draw.sample(NAMES, 4)
        self.names = dict(zip(("k", "p", "body", "mark"), names, strict=True))
        self.names |= {
            "table": draw.choice(("notes", 'Odd "table" {0} %s', "s")),
            "view": draw.choice(("kinds", 'odd view {0} "%s"')),
        }
        self.word = "Note"
        self.sessions: dict[str, dict[str, str]] = {"alice": {}, "bob": {}}
        self.open()
        with db.connect(url) as owner:
            add_base_model(owner)
            owner.execute(f"GRANT CREATE ON SCHEMA public TO {login('alice')}".encode())
        self.create()
        if self.odd_kind and draw.random() < 0.5:
            self.set_for("alice", draw.choice(ODD_TYPES[self.odd_kind][1]))

    def open(self) -> None:
        self.owner, self.alice = db.connect(self.url, vectors=False), connect(self.url, "alice")
        self.bob = connect(self.url, "bob")
        self.sessions = {"alice": {}, "bob": {}}
        self.owner.execute("SET statement_timeout = '20s'")

    def close(self) -> None:
        for connection in (self.owner, self.alice, self.bob):
            connection.close()

    # --- statements

    def written(self, text: LiteralString, *, escaped: bool = True, **more: Any) -> sql.Composed:
        """A statement with the names of now; `escaped` if it has parameters, so that %% stands for % in a name."""
        names: dict[str, sql.Composable] = {
            name: sql.Identifier("public", each) if name in ("table", "view") else sql.Identifier(each)
            for name, each in self.names.items()
        }
        for name, each in {**names, **more}.items():
            text_of = each.as_string()
            names[name] = sql.SQL(text_of.replace("%", "%%") if escaped and name not in ("again", "split") else text_of)
        return sql.SQL(text).format(**names, kind=sql.SQL(self.kind), mark_kind=sql.SQL(self.mark_kind))

    def write(self, text: LiteralString, *values: Any, after: dict[Key, Row] | None = None, **more: Any) -> list[Any]:
        """Run a statement of alice's; if it succeeds, the model's rows are these."""
        statement = self.written(text, escaped=bool(values), **more)
        self.done.append(f"{statement.as_string(None)} {[*values]!r}"[:600])
        self.counts["statements"] += 1
        cursor = self.alice.execute(statement, values or None)
        if after is not None:
            self.note(after)
        return cursor.fetchall() if cursor.description else []

    def note(self, after: dict[Key, Row]) -> None:
        for key in [*self.corrections]:
            if key not in after or not self.passes(after[key]) or after[key].body != self.corrections[key].body:
                self.corrections[key].is_sure = False
        self.rows = after

    def passes(self, row: Row) -> bool:
        return row.mark in self.passing

    def create(self) -> None:
        """The table with its policy, and the declaration."""
        split = self.partitioned % ("{p}" if "LIST" in self.partitioned else "{k}") if self.partitioned else ""
        self.write("CREATE TABLE public.other (); CREATE TYPE public.file AS (name text, content bytea)")
        # It has no value where the body is blank, so that a prompt of both is blank, too.
        odd: LiteralString = (
            "said {odd_kind} GENERATED ALWAYS AS"
            " (CASE WHEN {body} IN ('x', 'y', 'z') THEN {said}::{odd_kind} END) STORED, "
        )
        self.write(
            "CREATE TABLE {table} ({k} {kind}, {p} text, {body} text, {mark} {mark_kind}, "
            + (odd if self.odd_kind else "")
            + "PRIMARY KEY ({k}, {p})) {split}",
            odd_kind=sql.SQL(self.odd_kind or ""),  # type: ignore[arg-type]
            said=sql.Literal(ODD_TYPES.get(self.odd_kind, ("",))[0]),
            split=self.written(f"PARTITION BY {split}", escaped=False) if split else sql.SQL(""),  # type: ignore[arg-type]
        )
        if "LIST" in self.partitioned:
            self.write("CREATE TABLE part_a PARTITION OF {table} FOR VALUES IN ('a')")
            self.write("CREATE TABLE part_b PARTITION OF {table} DEFAULT")
        elif self.partitioned:
            for rest in range(2):
                self.write(
                    "CREATE TABLE {part} PARTITION OF {table} FOR VALUES WITH (MODULUS 2, REMAINDER {rest})",
                    part=sql.Identifier(f"part_{rest}"), rest=sql.Literal(rest),
                )  # fmt: skip
        if self.secured:
            self.write(
                "ALTER TABLE {table} ENABLE ROW LEVEL SECURITY;"
                "CREATE POLICY sees ON {table} USING ({p} <> 'b'); GRANT SELECT ({k}, {p}) ON {table} TO {bob}",
                bob=sql.Identifier(login("bob")),
            )
        self.declare()

    def declare(self) -> None:
        braces = re.sub(r"([{}])", r"\1\1", self.names["body"])
        if braces != self.names["body"]:  # a name with braces can't be written in a prompt
            self.write("ALTER TABLE {table} RENAME COLUMN {body} TO {to}", to=sql.Identifier("plain body"))
            self.names["body"] = "plain body"
        named = {each: sql.Identifier("public", self.names[each]).as_string() for each in ("view", "table")}
        self.write(
            "SELECT loracomp.create_answers(%s, %s::regclass, %s, choices => %s, filter => %s::jsonb)",
            named["view"], named["table"], self.prompt(), self.choices, self.filter(),
        )  # fmt: skip
        self.write("GRANT SELECT ON {view} TO {bob}", bob=sql.Identifier(login("bob")))
        self.name_the_views_key()
        self.corrections, self.is_paused = {}, False
        self.feeds = {name: Feed() for name in self.sessions}

    def name_the_views_key(self) -> None:
        """When the view is made; the names stay, whatever the table's columns become."""
        self.names |= {"view_k": self.names["k"], "view_p": self.names["p"]}
        self.is_renamed = False

    def prompt(self) -> str:
        return f"{self.word}: {'{said} ' if self.odd_kind else ''}{{{self.names['body']}}}"

    def filter(self) -> str:
        if len(self.passing) == len(self.marks):
            return "{}"
        # A filter reads a time without a time zone as UTC, in any session.
        return json.dumps({self.names["mark"]: [self.marks[each].removesuffix("+00") for each in sorted(self.passing)]})

    # --- moves: rows

    def some(self) -> dict[Key, Row]:
        keys = [*product(range(self.size), PARTS)]
        return {key: self.row() for key in self.draw.sample(keys, self.draw.randint(1, min(5, len(keys))))}

    def row(self) -> Row:
        return Row(self.draw.choice(BODIES), self.draw.randrange(len(self.marks)))

    def given(self, rows: dict[Key, Row]) -> str:
        """The rows as JSON, which no setting changes."""
        return json.dumps([
            {"k": self.values[k], "p": p, "body": row.body, "mark": self.marks[row.mark]}
            for (k, p), row in rows.items()
        ])  # fmt: skip

    GIVEN: LiteralString = (
        "SELECT g.k::{kind}, g.p, g.body, g.mark::{mark_kind} FROM jsonb_to_recordset(%s::text::jsonb)"
        " AS g (k text, p text, body text, mark text)"
    )

    def insert(self) -> None:
        rows = self.some()
        try:
            self.write(
                "INSERT INTO {table} ({k}, {p}, {body}, {mark}) " + self.GIVEN, self.given(rows), after=self.rows | rows
            )
        except errors.UniqueViolation:
            assert rows.keys() & self.rows.keys(), "no key was there"

    def upsert(self) -> None:
        rows = self.some()
        self.write(
            "INSERT INTO {table} ({k}, {p}, {body}, {mark}) " + self.GIVEN
            + " ON CONFLICT ({k}, {p}) DO UPDATE SET {body} = excluded.{body}, {mark} = excluded.{mark}",
            self.given(rows), after=self.rows | rows,
        )  # fmt: skip

    def copy(self) -> None:
        rows = {key: row for key, row in self.some().items() if key not in self.rows}
        statement = self.written("COPY {table} ({k}, {p}, {body}, {mark}) FROM STDIN", escaped=False)
        self.done.append(f"{statement.as_string(None)} {rows}")
        with self.alice.cursor().copy(statement) as writing:
            for (k, p), row in rows.items():
                writing.write_row((self.values[k], p, row.body, self.marks[row.mark]))
        self.note(self.rows | rows)

    def merge(self) -> None:
        rows = self.some()
        gone = {key for key, row in rows.items() if row.body == " " and key in self.rows}
        self.write(
            "MERGE INTO {table} AS n USING (" + self.GIVEN + ") AS g (k, p, body, mark) ON n.{k} = g.k AND n.{p} = g.p"
            " WHEN MATCHED AND g.body = ' ' THEN DELETE"
            " WHEN MATCHED THEN UPDATE SET {body} = g.body, {mark} = g.mark"
            " WHEN NOT MATCHED THEN INSERT ({k}, {p}, {body}, {mark}) VALUES (g.k, g.p, g.body, g.mark)",
            self.given(rows), after={key: row for key, row in (self.rows | rows).items() if key not in gone},
        )  # fmt: skip

    def move_by_cte(self) -> None:
        """Rows are deleted and inserted again with another body, in one statement."""
        old, new = self.draw.sample(PARTS, 2)
        if any((key[0], new) in self.rows for key in self.rows if key[1] == old):
            return
        after = {(key[0], new if key[1] == old else key[1]): row for key, row in self.rows.items()}
        self.write(
            "WITH gone AS (DELETE FROM {table} WHERE {p} = %s RETURNING *)"
            " INSERT INTO {table} ({k}, {p}, {body}, {mark}) SELECT g.{k}, %s, g.{body}, g.{mark} FROM gone AS g",
            old, new, after=after,
        )  # fmt: skip

    def update(self) -> None:
        part, body = self.draw.choice(PARTS), self.draw.choice(BODIES)
        after = {key: Row(body, row.mark) if key[1] == part else row for key, row in self.rows.items()}
        self.write("UPDATE {table} SET {body} = %s WHERE {p} = %s", body, part, after=after)

    def mark_all(self) -> None:
        mark = self.draw.randrange(len(self.marks))
        after = {key: Row(row.body, mark) for key, row in self.rows.items()}
        self.write("UPDATE {table} SET {mark} = %s::text::{mark_kind}", self.marks[mark], after=after)

    def move_keys(self) -> None:
        """Keys take each other's places by way of others, so that no statement meets one that is there."""
        if "HASH" in self.partitioned and self.kind.startswith("character("):
            return
        by = self.draw.randint(1, self.size)
        for shift in (lambda k: k + self.size, lambda k: (k - self.size + by) % self.size):
            old = sorted({key[0] for key in self.rows})
            moved = [shift(k) for k in old]
            self.write(
                "UPDATE {table} AS n SET {k} = g.new"
                " FROM (SELECT o::{kind}, w::{kind} FROM unnest(%s::text[], %s::text[])"
                " AS u (o, w)) AS g (old, new) WHERE n.{k} = g.old",
                [self.values[k] for k in old], [self.values[k] for k in moved],
                after={(shift(k), p): row for (k, p), row in self.rows.items()},
            )  # fmt: skip

    def spell_again(self) -> None:
        if again := SPELLED_AGAIN.get(self.kind):
            self.write("UPDATE {table} SET {k} = {again}", again=self.written(again, escaped=False))  # type: ignore[arg-type]

    def delete(self) -> None:
        part = self.draw.choice(PARTS)
        after = {key: row for key, row in self.rows.items() if key[1] != part}
        self.write("DELETE FROM {table} WHERE {p} = %s", part, after=after)

    def truncate(self) -> None:
        if self.draw.random() < 0.3:
            self.write("TRUNCATE {table}", after={})

    def change_parts(self) -> None:
        """A partition is detached, with or without a look of the keeper; then it or an empty one is attached."""
        if not self.partitioned:
            return
        part, bounds = (
            ("part_a", "IN ('a')") if "LIST" in self.partitioned else ("part_0", "WITH (MODULUS 2, REMAINDER 0)")
        )
        found = self.owner.execute(
            self.written(f"SELECT array_position(%s::text[]::{{kind}}[], {{k}}) AS k, {{p}} AS p FROM public.{part}"),  # type: ignore[arg-type]
            [[*self.values]],
        )
        inside = {(row["k"] - 1, row["p"]) for row in found}
        before = self.rows
        outside = {key: row for key, row in before.items() if key not in inside}
        self.write("ALTER TABLE {table} DETACH PARTITION {part}", after=outside, part=sql.Identifier("public", part))
        if self.draw.random() < 0.5:
            self.look_at_parts()
            self.fits()
        if self.draw.random() < 0.5:
            self.write("TRUNCATE {part}", after=outside, part=sql.Identifier("public", part))
            before = outside
            self.keep()
        self.write(
            "ALTER TABLE {table} ATTACH PARTITION {part} FOR VALUES {bounds}", after=before,
            part=sql.Identifier("public", part), bounds=sql.SQL(bounds),  # type: ignore[arg-type]
        )  # fmt: skip
        if self.draw.random() < 0.3:
            self.write("DROP TABLE {part}", after=outside, part=sql.Identifier("public", part))
            self.write(
                "CREATE TABLE {part} PARTITION OF {table} FOR VALUES {bounds}",
                part=sql.Identifier("public", part), bounds=sql.SQL(bounds),  # type: ignore[arg-type]
            )  # fmt: skip
        self.counts["parts"] += 1

    def look_at_parts(self) -> None:
        """As the keeper does each minute."""
        self.owner.execute("UPDATE loracomp.declaration SET parts_at = '-infinity'")
        self.keep()

    def roll_back(self) -> None:
        """A transaction, or the part of one after a savepoint, is undone."""
        before = dict(self.rows)
        with self.alice.transaction():
            self.update()
            kept = dict(self.rows)
            with self.alice.transaction(force_rollback=True):
                self.delete()
                self.upsert()
            self.note(kept)
        with self.alice.transaction(force_rollback=True):
            self.mark_all()
        self.note(kept if before else self.rows)

    # --- moves: the table, the declaration, sessions

    def rename(self) -> None:
        what = self.draw.choice(("table", "view", "k", "p", "body", "mark"))
        to = self.draw.choice(["notes", "kinds", *NAMES, 'new "name" %s'])
        if not to.isascii() and self.has_an_encoding:
            return
        if (
            to in self.names.values()
            or (what in ("table", "view") and to.startswith("part_"))
            or (what == "body" and "{" in to)
        ):
            return
        target = sql.Identifier(to)
        if what == "view":
            self.write("ALTER VIEW {view} RENAME TO {to}", to=target)
        elif what == "table":
            self.write("ALTER TABLE {table} RENAME TO {to}", to=target)
        else:
            self.write(
                "ALTER TABLE {table} RENAME COLUMN {was} TO {to}", was=sql.Identifier(self.names[what]), to=target
            )
        self.is_renamed = True
        self.names[what] = to

    def rename_with_a_brace(self) -> None:
        """No prompt can name the column, until it gets its name back."""
        if self.has_an_encoding:
            return
        names = sql.Identifier("a}{b"), sql.Identifier(self.names["body"])
        self.write("ALTER TABLE {table} RENAME COLUMN {was} TO {to}", was=names[1], to=names[0])
        keep(self.owner)
        self.write("ALTER TABLE {table} RENAME COLUMN {was} TO {to}", was=names[0], to=names[1])

    def stop(self) -> None:
        """What stops the declaration is told before anybody writes; then it is undone."""
        if self.is_renamed:  # the keeper notes the new names first
            return
        self.let_stranger_go()
        change, undo, state = self.draw.choice(STOPS[: 1 if self.partitioned else 2])
        self.write(change)
        self.owner.execute(AT_ONCE)
        for _ in range(3):  # examples of withdrawn corrections are deleted first
            keep(self.owner)
        (row,) = self.write("SELECT state FROM loracomp.list_answers({name})", name=self.name)
        assert state in row["state"] or row["state"] == "paused", f"state is {row['state']!r}"
        self.write(undo)
        self.owner.execute(AT_ONCE)
        self.counts["stopped"] += 1

    @property
    def has_an_encoding(self) -> bool:
        return any("client_encoding" in each for each in self.sessions.values())

    def set_session(self) -> None:
        who = self.draw.choice(("alice", "alice", "bob"))
        is_for_the_prompt = self.odd_kind and self.draw.random() < 0.5
        self.set_for(who, self.draw.choice(ODD_TYPES[self.odd_kind][1] if is_for_the_prompt else [*SESSION]))

    def set_for(self, who: str, name: str) -> None:
        if who == "bob" and name == "row_security":
            return  # what he may see would then be refused
        if name == "client_encoding" and not "".join([*self.names.values(), *self.values, *self.marks]).isascii():
            return  # psycopg could not send them
        text = self.draw.choice(SESSION[name])
        self.done.append(f"{who} sets {name} to {text!r}")
        with suppress(errors.InvalidParameterValue):  # a server need not have any other lc_monetary than C
            {"alice": self.alice, "bob": self.bob}[who].execute("SELECT set_config(%s, %s, false)", [name, text])
            self.sessions[who][name] = text

    def set_database(self) -> None:
        name = self.draw.choice(DATABASE_SETTINGS)
        text = self.draw.choice(SESSION[name])
        self.done.append(f"ALTER DATABASE SET {name} = '{text}', and new sessions")
        change = sql.SQL("ALTER DATABASE {} SET {} = {}")
        self.owner.execute(
            change.format(sql.Identifier(self.owner.info.dbname), sql.Identifier(name), sql.Literal(text))
        )
        self.close()
        self.open()

    def analyze(self) -> None:
        self.write("ANALYZE {table}")

    def alter(self, what: LiteralString, *values: Any) -> None:
        """Ask another question, which loracomp refuses with any other isolation level, such as the session's."""
        with self.alice.transaction():
            self.alice.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
            self.write("SELECT loracomp.alter_answers({name}, " + what + ")", *values, name=self.name)

    def reword(self) -> None:
        self.settle()
        before = self.word
        self.word = self.draw.choice(("Memo", "Note"))  # perhaps the word that it was
        self.alter("prompt => %s", self.prompt())
        if self.word != before and self.looks_at_changes():
            assert "answered" not in {status for status, _ in self.shown().values()}, "these answer the old prompt"

    def switch(self) -> None:
        """From choices to text, or back; the words that are corrections stay choices."""
        self.settle()
        self.choices = ["x", "y", "z"] if self.choices is None else None
        length = 8 if self.choices is None else None
        self.alter("choices => %s, max_new_tokens => %s", self.choices, length)

    def refilter(self) -> None:
        self.passing = {*self.draw.sample(range(len(self.marks)), self.draw.randint(1, len(self.marks)))}
        self.alter_filter()
        self.note(self.rows)

    def write_across_a_change(self) -> None:
        """A transaction that is older than another filter or declaration marks the rows before it or after it."""
        change = self.draw.choice((self.refilter, self.refilter, self.declare_anew))
        mark, writes_first = self.draw.randrange(len(self.marks)), self.draw.random() < 0.5
        isolation = self.draw.choice(("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"))
        if not self.looks_at_changes() and isolation == "SERIALIZABLE":
            isolation = "REPEATABLE READ"  # of two serializable transactions, Postgres may undo one
        with connect(self.url, "alice") as older, ThreadPoolExecutor(1) as pool:
            for setting, value in self.sessions["alice"].items():
                older.execute("SELECT set_config(%s, %s, false)", [setting, value])
            with older.transaction():
                older.execute(sql.SQL("SET TRANSACTION ISOLATION LEVEL {}").format(sql.SQL(isolation)))
                older.execute("SELECT FROM loracomp.policy")
                self.done.append(
                    f"{isolation}, open since then: marks {'before' if writes_first else 'after'} a change"
                )
                if writes_first:
                    self.mark_in(older, mark)
                changed = pool.submit(change)
                wait([changed], timeout=0.3 if writes_first else 30)
                if not writes_first:
                    self.mark_in(older, mark)
            changed.result(30)
        self.note({key: Row(row.body, mark) for key, row in self.rows.items()})

    def mark_in(self, session: Connection, mark: int) -> None:
        session.execute(self.written("UPDATE {table} SET {mark} = %s::text::{mark_kind}"), [self.marks[mark]])

    def alter_filter(self) -> None:
        self.write("SELECT loracomp.alter_answers({name}, filter => %s::jsonb)", self.filter(), name=self.name)

    def alter_key(self) -> None:
        kinds = KEY_TYPES.get(self.first_kind, (self.kind,))
        if self.is_converted:
            self.set_for("alice", "TimeZone")
            kinds = tuple(each for each in TIMES if each != self.kind)
        kind = self.draw.choice(kinds)
        if (values := self.converted(kind)) is None:
            return
        statement: LiteralString = "SELECT loracomp.alter_key(%s::regclass, %s, %s::regtype)"
        given = (sql.Identifier("public", self.names["table"]).as_string(), self.names["k"], kind)
        try:
            try:
                self.write(statement, *given)
            except errors.ObjectNotInPrerequisiteState:  # what the view reads was renamed
                self.alter_filter()
                self.write(statement, *given)
        except errors.InvalidTableDefinition:
            assert "HASH" in self.partitioned, "not a column that partitions the table"
            return
        self.kind = kind
        self.name_the_views_key()
        if values != self.values:
            self.convert(values)

    def converted(self, kind: str) -> tuple[str, ...] | None:
        """The keys' values after a conversion in alice's session; None if two of them would be the same."""
        if not self.is_converted or kind == self.kind:
            return self.values
        written = "timezone('UTC', {x})::timestamp" if kind == TIMES[1] else "{x}"
        as_text = written.format(x=f"v.value::{self.kind}::{kind}")
        rows = self.alice.execute(
            f"SELECT to_json({as_text}) #>> '{{}}' AS value"
            " FROM unnest(%s::text[]) WITH ORDINALITY AS v (value, at) ORDER BY v.at".encode(),
            [[*self.values]],
        )
        values = tuple(row["value"] + ("+00" if kind == TIMES[1] else "") for row in rows)
        return values if len({*values}) == len(values) else None

    def convert(self, values: tuple[str, ...]) -> None:
        """A row keeps its answer and its correction if its key is still written as the same text."""
        stays = [
            old.removesuffix("+00") == new.removesuffix("+00") for old, new in zip(self.values, values, strict=True)
        ]
        texts = [each.removesuffix("+00") for each in self.values]
        for feed in self.feeds.values():
            feed.told = {key: each for key, each in feed.told.items() if stays[texts.index(json.loads(key)[0])]}
        for key, made in self.corrections.items():
            made.is_sure = made.is_sure and stays[key[0]]
        self.values = values
        self.counts["converted"] += 1

    @property
    def name(self) -> sql.Literal:
        return sql.Literal(sql.Identifier("public", self.names["view"]).as_string())

    def again(self) -> None:
        self.write("SELECT loracomp.alter_answers({name}, again => true)", name=self.name)

    def pause(self) -> None:
        self.is_paused = not self.is_paused
        self.write("SELECT loracomp.alter_answers({name}, paused => %s)", self.is_paused, name=self.name)

    def declare_again(self) -> None:
        if self.draw.random() < 0.3:
            self.declare_anew()

    def declare_anew(self) -> None:
        self.write("SELECT loracomp.drop_answers({name})", name=self.name)
        self.declare()

    def correct(self) -> None:
        """Some rows that are answered, drawn by us or not."""
        answered = [key for key, (status, _) in self.shown().items() if status == "answered"]
        drawn: set[Key] = set()
        if self.draw.random() < 0.6:
            found = self.write(
                "SELECT key FROM loracomp.rows_to_correct({name}, %s)", self.draw.randint(1, 40), name=self.name
            )
            drawn = {self.key_of(row["key"]) for row in found}
        some = [*drawn] or self.draw.sample(answered, min(3, len(answered)))
        for key in some:
            # A row whose prompt has just been emptied shows its last answer until the keeper comes by.
            if key not in answered or self.rows[key].ended[0] == "refused":
                continue
            text = self.draw.choice(("x", "y", "z"))
            self.write(
                "UPDATE {view} SET correct = %s WHERE {view_k} = %s::text::{kind} AND {view_p} = %s",
                text,
                self.values[key[0]],
                key[1],
            )
            self.corrections[key] = Correction(text, self.rows[key].body, key in drawn)

    def take_back(self) -> None:
        if self.corrections:
            key = self.draw.choice(sorted(self.corrections))
            if self.corrections[key].is_sure:  # otherwise it may be gone already
                del self.corrections[key]
                self.write(
                    "UPDATE {view} SET correct = NULL WHERE {view_k} = %s::text::{kind} AND {view_p} = %s",
                    self.values[key[0]],
                    key[1],
                )

    def key_of(self, key: list[str]) -> Key:
        """The key that loracomp writes as these texts."""
        if (known := self.places.get((self.values, key[0]))) is not None:
            return known, key[1]
        read = "timezone('UTC', %s::timestamp)" if self.kind == "timestamp with time zone" else "%s::text::{kind}"
        place = self.written("SELECT array_position(%s::text[]::{kind}[], " + read + ") AS k")
        (row,) = self.owner.execute(place, [[*self.values], key[0]])
        self.places[self.values, key[0]] = row["k"] - 1
        return row["k"] - 1, key[1]

    # --- moves: workers, readers, strangers

    def let_stranger_come(self) -> None:
        """Somebody in another database leaves a transaction open until workers have finished."""
        if self.stranger is None:
            self.stranger = db.connect(self.ground.server, vectors=False)
            self.stranger.autocommit = False
            self.stranger.execute("SELECT pg_current_xact_id()")
            self.done.append("a stranger begins a transaction")

    def write_while_locked(self) -> None:
        """An administrator's maintenance locks what the triggers write to; the statement neither fails nor waits."""
        with self.owner.transaction():
            self.owner.execute("LOCK TABLE loracomp.answer_hint IN EXCLUSIVE MODE")
            self.done.append("answer_hint is locked")
            began = time.monotonic()
            self.was_locked = True  # so until a scan has found the rows, the view shows their old answers
            self.upsert()
            assert (took := time.monotonic() - began) < LOCKED_S, f"a statement took {took:.1f} s"

    def let_stranger_go(self) -> None:
        if self.stranger is not None:
            self.stranger.close()
            self.stranger = None

    def work(self) -> None:
        """Claim some; answer some of them, and leave the others to another move."""
        jobs = claim(self.owner, self.draw.randint(0, 4))
        some = [job for job in jobs if self.draw.random() < 0.7 and job.kind == "predict"]
        self.done.append(f"a worker claims {len(jobs)} and answers {len(some)}")
        record(self.owner, {job.id: job.lease_token for job in some}, [answered(job) for job in some])

    def keep(self) -> None:
        self.done.append("the keeper works")
        keep(self.owner)

    def purge(self) -> None:
        """Often it is undone, as when it is cancelled, and others' transactions have come and gone since answers."""
        is_undone = self.draw.random() < 0.5
        for _ in range(self.draw.choice((0, 150))):
            self.owner.execute("SELECT pg_current_xact_id()")
        self.done.append(f"jobs are purged{' in a transaction that is rolled back' if is_undone else ''}")
        with self.owner.transaction(force_rollback=is_undone):
            self.owner.execute("SELECT loracomp.purge_jobs('0 seconds', force => true)")

    def read_feed(self, who: str = "alice") -> None:
        """Go on where the last reading ended; nothing comes out of order."""
        feed = self.feeds[who]
        while True:
            rows = self.told(who, feed.cursor, self.draw.randint(1, 9))
            at = [json.loads(row["cursor"]) for row in rows]
            assert [each[0] for each in at] == sorted(each[0] for each in at), f"out of order: {at}"
            for row in rows:
                feed.told[json.dumps(row["key"])] = (row["status"], row["answer"])
                feed.cursor = row["cursor"]
            if not rows:
                return

    def told(self, who: str, cursor: str | None, most: int) -> list[Any]:
        columns: LiteralString = "SELECT key, status, answer, cursor FROM loracomp.answers_since({name}, %s, %s)"
        reader = {"alice": self.alice, "bob": self.bob}[who]
        return reader.execute(self.written(columns, name=self.name), [cursor, most]).fetchall()

    def restore(self) -> None:
        """Dump, and go on with the restored database."""
        if self.draw.random() > 0.15 or (programs := folder_of_programs(self.owner)) is None:
            return
        self.settle()  # a restored declaration finds its columns by the names that the keeper has last seen
        self.upsert()
        answer_all(self.owner)  # which nobody has read in the feed yet
        self.upsert()
        keep(self.owner)
        self.work()  # whose answers the keeper takes while pg_dump, which reads sequences late, is at work
        self.done.append("pg_dump, pg_restore into another database")
        self.counts["restores"] += 1
        self.close()
        before = psycopg.conninfo.conninfo_to_dict(self.url)["dbname"]
        name = f"{str(before).split('_r')[0]}_r{self.counts['restores']}"
        with TemporaryDirectory() as folder:
            dump = Path(folder) / "dump"
            subprocess.run([programs / "pg_dump", "-Fc", "-f", dump, self.url], check=True)
            self.url = create_database(self.ground.server, name)
            with db.connect(self.url, vectors=False) as target, guarded(target, []):  # as `loracomp db restore` does
                subprocess.run([programs / "pg_restore", "--single-transaction", "-d", self.url, dump], check=True)
        if "_r" in str(before):
            drop_database(self.ground.server, str(before))
        self.open()
        self.owner.execute(
            "SELECT setval('loracomp.ended_jobs_from', pg_snapshot_xmin(pg_current_snapshot())::text::bigint)"
        )
        self.settle()

    # --- what must hold

    def shown(self, reader: Connection | None = None) -> dict[Key, tuple[str, str | None]]:
        rows = (reader or self.alice).execute(
            self.written(
                "SELECT array_position(%s::text[]::{kind}[], {view_k}) AS k, {view_p} AS p, status, answer FROM {view}"
            ),
            [[*self.values]],
        )
        return {(row["k"] - 1, row["p"]): (row["status"], row["answer"]) for row in rows}

    def looks_at_changes(self, who: str = "alice") -> bool:
        """Whether a view does in this session; docs/answers.md says why not."""
        return self.sessions[who].get("default_transaction_isolation") != "serializable"

    @property
    def is_told(self) -> bool:
        """Whether bob, who may read the view, may read the feed."""
        return not (self.secured or self.is_renamed)

    def fits(self) -> None:
        """What the view shows at any time."""
        shown = self.shown()
        expected = {key for key, row in self.rows.items() if self.passes(row)}
        assert shown.keys() == expected, f"rows shown and not there: {shown.keys() ^ expected}"
        for key, (status, given) in shown.items():
            assert status in ("waiting", "asked", "answered", "stale", "refused"), (key, status)
            if status == "answered" and self.looks_at_changes() and not self.was_locked:
                assert (status, given) == self.rows[key].ended, (
                    f"the old answer {given!r} is shown for {key}: {self.rows[key]}"
                )
            elif status != "answered":
                assert (given is not None) == (status == "stale"), (key, status, given)
        self.fits_for_a_reader(expected)

    def fits_for_a_reader(self, expected: set[Key]) -> None:
        """Whoever may only read the view is shown the same rows, and the feed tells nothing that the view doesn't."""
        shown = self.shown(self.bob)
        visible = {key for key in expected if not self.secured or key[1] != "b"}
        assert shown.keys() == visible, f"a reader is shown other rows: {shown.keys() ^ visible}"
        try:
            rows = self.told("bob", None, 1000)
        except errors.InsufficientPrivilege as error:
            assert not self.is_told, f"a reader may not read the feed: {error}"
            return
        assert not self.secured, "a reader is told about rows of other readers"
        for row in rows:
            key, told = self.key_of(row["key"]), (row["status"], row["answer"])
            assert key in shown, f"answers_since tells {told} about {key}, which the view doesn't show"
            status, answer = shown[key]
            fits = status in ("waiting", "refused") if told[0] == "refused" else answer == told[1]
            assert fits, f"answers_since tells {told} about {key}, and the view shows {shown[key]}"

    def settle(self) -> None:
        """When nothing is left to do, everything is as the model says."""
        if self.is_paused:
            self.pause()
        self.done.append("workers finish")
        self.owner.execute("UPDATE loracomp.declaration SET retry_at = '-infinity', parts_at = '-infinity'")
        deadline = time.monotonic() + 20
        while True:
            self.owner.execute(
                "SELECT loracomp.release_jobs(r.ids, r.tokens)"
                " FROM (SELECT array_agg(id) AS ids, array_agg(lease_token) AS tokens"
                " FROM loracomp.job WHERE status = 'running') AS r WHERE ids <> '{}'"
            )
            self.owner.execute("UPDATE loracomp.job SET run_at = now() WHERE run_at > now() AND status = 'queued'")
            answer_all(self.owner)
            expected = {key: row.ended for key, row in self.rows.items() if self.passes(row)}
            is_drained = not any(what_waits(self.owner, BASE))
            shown = self.shown()
            if is_drained or shown == expected or time.monotonic() > deadline:
                break
            self.let_stranger_go()
        wrong = {
            key: (shown.get(key), expected.get(key))
            for key in shown.keys() | expected.keys()
            if shown.get(key) != expected.get(key)
        }
        assert not wrong, (
            f"shown and expected: {wrong}; {self.owner.execute('SELECT trouble FROM loracomp.declaration').fetchall()}"
            f"; a worker that drains {'ends' if is_drained else 'goes on'}"
        )
        self.let_stranger_go()
        self.was_locked = False
        seen = {key: each for key, each in expected.items() if not self.secured or key[1] != "b"}
        assert self.shown(self.bob) == seen, "what a reader sees, maybe under row security"
        self.check_corrections(expected)
        self.check_counts(expected)
        for who in ("alice", "bob") if self.is_told else ("alice",):
            self.check_feed(who, expected)
        self.counts["settled"] += 1

    def check_corrections(self, expected: dict[Key, tuple[str, str | None]]) -> None:
        rows = self.alice.execute(
            self.written(
                "SELECT array_position(%s::text[]::{kind}[], {view_k}) AS k, {view_p} AS p, correct FROM {view}"
            ),
            [[*self.values]],
        )
        kept = {(row["k"] - 1, row["p"]): row["correct"] for row in rows if row["correct"] is not None}
        for key, made in [*self.corrections.items()]:
            if made.is_sure:
                assert kept.get(key) == made.text, f"the correction of {key} is lost or another: {kept.get(key)!r}"
            elif key in expected and self.rows[key].body != made.body:
                assert key not in kept, f"the correction of {key} outlived its prompt"
        assert kept.keys() <= self.corrections.keys(), "nobody corrected this"
        other = {key: text for key, text in kept.items() if text != self.corrections[key].text}
        assert not other, f"another row's corrections: {other}"
        self.corrections = {key: made for key, made in self.corrections.items() if key in kept}
        for key, made in self.corrections.items():
            made.is_drawn = made.is_drawn and made.is_sure
            made.body = self.rows[key].body

    def check_counts(self, expected: dict[Key, tuple[str, str | None]]) -> None:
        counts = (
            "rows, open, answered, stale, refused, failed, corrected, state, before"  # psycopg reads no odd intervals
        )
        (row,) = self.write(f"SELECT {counts} FROM loracomp.list_answers({{name}})", name=self.name)
        statuses = Counter(status for status, _ in expected.values())
        told = {name: row[name] for name in ("rows", "open", "answered", "stale", "refused", "failed", "corrected")}
        assert told == {
            "rows": len(expected), "open": 0, "answered": statuses["answered"], "stale": 0,
            "refused": statuses["refused"],
            "failed": 0, "corrected": len(self.corrections),
        }, f"list_answers says {told}; there are {statuses} and {len(self.corrections)} corrections"  # fmt: skip
        assert row["state"] == "ready", row["state"]
        old = "SELECT FROM {view} WHERE status = 'refused' AND num_nonnulls(answered_by, answered_at) > 0"
        assert not self.write(old), "refused rows show something of their old answers"
        known, share = known_and_right(row["before"])
        sure = [made for key, made in self.corrections.items() if made.is_drawn and made.is_sure]
        right = sum(made.text == made.body for made in sure)
        assert len(sure) <= known <= len(self.corrections), (
            f"before says {row['before']}; {len(sure)} drawn rows are corrected"
        )
        if known == len(sure) and share is not None:
            assert share == percent(right, known), f"before says {row['before']}; {right} of {known} were right"

    def check_feed(self, who: str, expected: dict[Key, tuple[str, str | None]]) -> None:
        deadline = time.monotonic() + 20  # another database's transaction may hold it back for a while
        while True:
            self.read_feed(who)
            told = {self.key_of(json.loads(key)): each for key, each in self.feeds[who].told.items()}
            missing = {key: (told.get(key), each) for key, each in expected.items() if told.get(key) != each}
            if not missing:
                return
            assert time.monotonic() < deadline, f"answers_since told {who} and should have told: {missing}"
            time.sleep(0.05)


def answered(job: Any) -> dict[str, Any]:
    return {"job_id": job.id, "output": job.prompt.split()[-1]}


def percent(right: int, known: int) -> int:
    """Rounded as Postgres does, so that a half is rounded up."""
    return (200 * right + known) // (2 * known)


def known_and_right(text: str) -> tuple[int, int | None]:
    """Drawn rows known and percent right, of an accuracy in words."""
    drawn = r"(?P<percent>\d+) % \(\d+ to \d+, (?P<drawn>\d+) rows?\)"
    picked = r"\d+ of \d+ picked rows right"
    found = re.fullmatch(f"{drawn}(; {picked})?|{picked}|not yet known", text)
    assert found, text
    return (int(found["drawn"]), int(found["percent"])) if found["drawn"] else (0, None)


def folder_of_programs(connection: Connection) -> Path | None:
    """Where pg_dump of the server's release is."""
    release = connection.info.server_version // 10000
    for folder in (embedded.psql_path().parent, Path(f"/usr/lib/postgresql/{release}/bin")):
        program = folder / "pg_dump"
        if program.exists() and f" {release}." in subprocess.check_output([program, "--version"], text=True):
            return folder
    return None


def moves_of(history: History) -> list[Callable[[], None]]:
    h = history
    rows = [
        h.insert, h.upsert, h.copy, h.merge, h.move_by_cte, h.update, h.mark_all, h.move_keys, h.spell_again, h.delete,
        h.truncate, h.change_parts,
    ]  # fmt: skip
    return [
        *rows, *rows, h.roll_back, h.stop, h.rename, h.rename, h.rename_with_a_brace, h.set_session,
        h.set_session, h.set_database, h.analyze,
        h.reword, h.switch, h.refilter, h.refilter, h.alter_key, h.again, h.pause, h.declare_again, h.correct,
        h.correct, h.take_back, h.work, h.work, h.work, h.keep, h.purge, h.read_feed, h.settle, h.restore,
        h.let_stranger_come, h.write_while_locked, h.write_across_a_change, *[h.alter_key] * (6 * h.is_converted),
    ]  # fmt: skip


def histories(ground: Ground, seed: int, size: float = 1) -> Round:
    """One history. Its log of statements is what a failure is told with."""
    made = Round()
    history = History(ground, seed)
    with ground.empty() as url:
        history.begin(url)
        try:
            moves = moves_of(history)
            for _ in range(round(size * MOVES)):
                history.draw.choice(moves)()
                history.fits()
            history.settle()
        except (AssertionError, psycopg.Error, subprocess.CalledProcessError) as error:
            about = (
                f"key {history.kind}, filter {history.mark_kind}, partitions {history.partitioned},"
                f" prompt {history.odd_kind}, {history.sessions}"
            )
            made.failures.append(f"{type(error).__name__}: {error} ({about})")
            made.failures += history.done[-40:]
        finally:
            history.let_stranger_go()
            history.close()
            if history.counts["restores"]:
                drop_database(ground.server, str(psycopg.conninfo.conninfo_to_dict(history.url)["dbname"]))
    made.counts.update(history.counts)
    made.counts.update(histories=1, rounds=1)
    return made
