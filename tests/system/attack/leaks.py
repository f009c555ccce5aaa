"""What Bob alone may read, and others ask for by its number or name.

Each function that a submitter or an analyst may call is called with numbers and names of what is Bob's, and each
relation is read whole.
"""

import random
from collections.abc import Iterator
from typing import Any

import psycopg
from psycopg import sql

from locks import HONEST
from loracomp.database import connections as db
from statements import reach_of
from town import SECRET, Town, connect

READERS = ("alice", "ana")
TRIES = 8
"""Calls of a function, with other arguments of Bob's each."""
OF_BOB = """
SELECT
    ARRAY(SELECT j.id FROM loracomp.job AS j WHERE j.prompt LIKE %(secret)s ORDER BY random() LIMIT 3) AS jobs,
    ARRAY(SELECT e.id FROM loracomp.example AS e JOIN loracomp.task AS t ON t.id = e.task_id
        WHERE t.name LIKE %(secret)s) AS examples,
    (SELECT t.id FROM loracomp.task AS t WHERE t.name LIKE %(secret)s) AS task,
    (SELECT d.id FROM loracomp.declaration AS d WHERE d.view = 'public.bobs_answers'::regclass) AS declaration
"""


def leaks(town: Town, draw: random.Random) -> Iterator[str]:
    with db.connect(town.url, vectors=False) as owner:
        (of_bob,) = owner.execute(OF_BOB, {"secret": f"{SECRET}%"})
    numbers = [*of_bob["jobs"], *of_bob["examples"], *of_bob["examples"]]
    pools: dict[str, list[Any]] = {
        "bigint": numbers,
        "bigint[]": [of_bob["jobs"], of_bob["examples"]],
        "integer": [of_bob["task"], of_bob["declaration"], 1, 40],
        "regclass": ["bobs_answers", "bobs_notes"],
        "text": ["bobs_answers", "1", ""],
    }
    for name in READERS:
        with connect(town.url, name, "-c statement_timeout=5s -c lock_timeout=1s") as reader:
            reach = reach_of(reader)
            asked = [call(function, pools, draw) for function in reach.functions for _ in range(TRIES)]
            asked += [
                sql.SQL("SELECT * FROM {}").format(sql.Identifier(each["schema"], each["name"]))
                for each in reach.relations
            ]
            for statement in asked:
                town.counts["asked"] += 1
                if SECRET in (answer := answer_of(reader, statement)):
                    at = answer.index(SECRET)
                    yield f"{name} is told {answer[max(0, at - 100) : at + 50]}: {statement.as_string(None)[:300]}"


def call(function: dict[str, Any], pools: dict[str, list[Any]], draw: random.Random) -> sql.Composed:
    """A call whose arguments are Bob's where their types allow it."""
    given = [
        sql.Literal(draw.choice(pools[kind]))
        if kind in pools and (name not in HONEST or draw.random() < 0.7)
        else sql.SQL(HONEST.get(name, "NULL"))
        for name, kind in zip(function["arguments"], function["types"], strict=True)
    ]
    typed = [sql.SQL("{}::" + kind).format(value) for value, kind in zip(given, function["types"], strict=True)]
    return sql.SQL("SELECT * FROM {}({})").format(sql.SQL(function["name"]), sql.SQL(", ").join(typed))


def answer_of(reader: db.Connection, statement: sql.Composed) -> str:
    try:
        with reader.transaction(force_rollback=True):
            return repr(reader.execute(statement).fetchmany(1000))
    except psycopg.Error as error:
        return f"{error.diag.message_primary} {error.diag.message_detail} {error.diag.context}"
