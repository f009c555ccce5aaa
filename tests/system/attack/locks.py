"""Each statement that a role may run is left open in a transaction while workers serve somebody else.

Functions and relations are read from the catalog. A function is called with what its arguments' names stand for, and
with values of their types where no name is known, until a call is accepted.
"""

import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from intruder import PATIENCE, drawn
from loracomp.database import connections as db
from rounds import Round
from statements import (
    CHANGES,
    CORRECTIONS,
    KINDS,
    LIKELY,
    LOCK_MODES,
    MADE_AGAIN,
    OTHER_MODEL,
    OWN_TABLES,
    READS,
    WRITES,
    Reach,
    reach_of,
)  # fmt: skip
from town import ATTACKERS, ROLES, Ground, Town, connect, town_of

OPEN = 10
"""Transactions that are open together."""
PER_ROUND = 60
TRIES = 6
"""Calls of a function, with other arguments each, until one is accepted."""
ATTACKERS_AND_ADMIN = (*ATTACKERS, "adam")
JOBS = "ARRAY(SELECT j.id FROM loracomp.job AS j ORDER BY random() LIMIT 5)"
HONEST = {
    "name": "'said'", "view": "'said'", "source": "'notes'", "id": f"({JOBS})[1]", "job_id": f"({JOBS})[1]",
    "ids": JOBS,
    "job_ids": JOBS, "job": "(SELECT j FROM loracomp.job AS j ORDER BY random() LIMIT 1)",
    "prediction": "(SELECT p FROM loracomp.prediction AS p ORDER BY random() LIMIT 1)", "prompt": "'{body}'",
    "filter": "'{}'", "tags": "'{}'", "choices": "'{a,b}'", "policy": "'default'", "priority": "1", "n": "5",
    "key": "'1'", "answer": "'a'", "worker": "'w'", "base_model": f"'{OTHER_MODEL}'", "lease": "'1 minute'",
    "task": "'tea'", "timeout": "'0'", "older_than": "'1 day'", "max_new_tokens": "1", "given": """'{"prompt": "a"}'""",
    "jobs": """'[{"prompt": "a"}]'""", "limit": "10", "most": "10", "label": "'yes'", "batch_size": "4",
}  # fmt: skip
"""What arguments stand for, as SQL. An argument of another type is converted to its own, or the call fails."""
OTHERS_WAIT = ("loracomp.drop_embedding_index", "loracomp.build_embedding_index", "loracomp.make_partitions")
"""Functions that can't but hold up others until their transaction ends: routing, as the comments of two functions for
administrators say, and traces and reports, as docs/security.md says of a worker's password."""


def locks(ground: Ground, seed: int, size: float = 1) -> Round:
    """A role's statements in a random order, a few open at a time; then each is committed, undone or cut off."""
    name = ATTACKERS_AND_ADMIN[seed % len(ATTACKERS_AND_ADMIN)]
    chosen = random.Random(seed)
    made = Round()
    with town_of(ground) as town:
        made.failures += [f"before the attack: {line}" for line in town.is_served()]
        prepare(town)
        with connect(town.url, name, PATIENCE) as reader:
            given = list(statements(reach_of(reader), ROLES[name], seed))
        chosen.shuffle(given)
        for start in range(0, min(len(given), round(size * PER_ROUND)), OPEN):
            if made.failures:
                break
            hold(town, name, given[start : start + OPEN], chosen, made)
        if not made.failures:
            made.failures += [*town.is_served(), *town.is_whole()]
        made.counts.update(served=town.counts["served"], rounds=1)
    return made


PARTS = """
CREATE TABLE parts (id integer PRIMARY KEY, body text) PARTITION BY RANGE (id);
CREATE TABLE first_part PARTITION OF parts FOR VALUES FROM (0) TO (100);
INSERT INTO parts SELECT i, 'text ' || i FROM generate_series(1, 50) AS i;
SELECT loracomp.create_answers('partly', 'parts', 'part {body}', choices => '{a,b}');
ALTER TABLE parts FORCE ROW LEVEL SECURITY
"""
"""A table whose first scan never ends, because it can't be read while its policies are forced on its owner."""
NEXT_RANGE = """
SELECT setval('loracomp.job_id_seq', (s.last_value / loracomp.range_width() + 1) * loracomp.range_width() - 2)
FROM loracomp.job_id_seq AS s
"""
"""The next jobs are in another range, and the one after that must get its partitions."""
MAKE_PARTITIONS = "SELECT loracomp.make_partitions()"


def prepare(town: Town) -> None:
    """Alice has jobs of every state, two corrections, and a partitioned table that waits to be scanned."""
    with connect(town.url, "alice") as alice:
        alice.execute(
            "INSERT INTO loracomp.job (prompt, run_at) VALUES ('later', '3000-01-01'), ('never', '3000-01-01')"
        )
        alice.execute("SELECT loracomp.cancel_job(max(id)) FROM loracomp.job")
        alice.execute("UPDATE said SET correct = 'a' WHERE id < 3 AND status = 'answered'")
        with alice.transaction():
            alice.execute(PARTS)
    with db.connect(town.url, vectors=False) as owner:
        owner.execute(NEXT_RANGE)


def statements(reach: Reach, role: str, seed: int) -> Iterator[list[sql.Composed]]:
    """Each statement of a role, as a list of which the first that is accepted is left open."""
    for place, function in enumerate(reach.functions):
        if function["name"] not in OTHERS_WAIT:
            yield calls(function, seed + place)
    for relation in reach.relations:
        target = sql.Identifier(relation["schema"], relation["name"])
        yield from ([sql.SQL(f"LOCK TABLE {{}} IN {mode} MODE NOWAIT").format(target)] for mode in LOCK_MODES)
        yield from ([sql.SQL(read).format(target)] for read in READS)
    if role == "submitter":
        for text in (*WRITES, *CHANGES):
            for table in OWN_TABLES:
                yield [own(text, table)]
        yield from ([own(text, "said")] for text in CORRECTIONS)
        yield [
            sql.SQL(MADE_AGAIN).format(
                table=sql.Identifier("public", "tickets"), name=sql.Identifier("public", "topics"),
                view=sql.Literal("topics"), source=sql.Literal("tickets"), choices=sql.Literal(["a", "b"]),
            )
        ]  # fmt: skip
        yield [sql.SQL("INSERT INTO loracomp.job (prompt) SELECT 'a' FROM generate_series(1, 50)").format()]


def own(text: LiteralString, table: str) -> sql.Composed:
    known = {"table": sql.Identifier("public", table), "body": sql.Literal("a"), "number": sql.Literal(3)}
    return sql.SQL(text).format(**known)


def calls(function: dict[str, Any], seed: int) -> list[sql.Composed]:
    """With honest arguments; with the first few alone; then with others of their types."""
    names, types = function["arguments"], function["types"]
    values = [
        drawn(KINDS[kind] if kind in KINDS else LIKELY.get(kind, KINDS["text"]), TRIES, seed + place)
        for place, kind in enumerate(types)
    ]
    found = []
    for turn in range(TRIES):
        arguments = [
            HONEST[name]
            if turn < TRIES - 2 and name in HONEST
            else sql.Literal(values[place][turn % len(values[place])])
            for place, name in enumerate(names)
        ]
        written = sql.SQL(", ").join(
            sql.SQL("{}::" + kind).format(sql.SQL(each) if isinstance(each, str) else each)
            for each, kind in zip(arguments, types, strict=True)
        )
        found.append(sql.SQL("SELECT * FROM {}({})").format(sql.SQL(function["name"]), written))
    return found


def hold(town: Town, name: str, given: list[list[sql.Composed]], chosen: random.Random, made: Round) -> None:
    """Leave some open, see that Bob is served, and end them."""
    with ExitStack() as stack:
        opened: list[tuple[str, psycopg.Connection[Any]]] = []
        for each in given:
            connection = stack.enter_context(connect(town.url, name, PATIENCE))
            connection.autocommit = False
            made.counts["statements"] += 1
            if (accepted := first_accepted(connection, each)) is None:
                made.counts["refused"] += 1
            else:
                opened.append((accepted, connection))
        made.counts["left open"] += len(opened)
        lines = town.is_served()
        if ROLES[name] in ("submitter", "analyst"):  # others may call it themselves, and leave it open
            with db.connect(town.url, vectors=False) as owner:
                owner.execute(MAKE_PARTITIONS)
            time.sleep(0.2)
            town.watch.raised()  # a step that met its lock, for a tenth of a second, is tried again
            lines += town.is_served()
        if ROLES[name] != "admin":
            lines += town.is_watched()
        if lines:
            made.failures += lines
            made.failures += [f"{name} had left open: {statement[:400]}" for statement, _ in opened]
        for _, connection in opened:
            with suppress(psycopg.Error):
                chosen.choice((connection.commit, connection.rollback, connection.close))()
            connection.close()


def first_accepted(connection: psycopg.Connection[Any], statements: list[sql.Composed]) -> str | None:
    for statement in statements:
        try:
            connection.execute(statement)
        except (psycopg.Error, UnicodeError, ValueError, OverflowError, NotImplementedError):
            if connection.closed:
                return None
            connection.rollback()
        else:
            return statement.as_string(None)
    return None
