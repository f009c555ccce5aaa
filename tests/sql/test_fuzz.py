"""Odd input to everything public, as each role that may call it: a named refusal or a result, never a broken worker.

LORACOMP_FUZZ multiplies the number of tries, which is small.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.types.json import Jsonb

from demo_fixtures import ROOT
from job_data import BASE, RECORD_ROW, prediction_row
from loracomp.database import tables
from loracomp.database.connections import Connection
from odd_values import HELPERS, KINDS, bigs, documents, floats, integers, jsons, lists, short_lists, texts, times
from people_data import submit
from people_fixtures import LOGINS, Scene, login, value, values

TRIES = int(os.environ.get("LORACOMP_FUZZ", "1"))
PATIENCE = "SET statement_timeout = '20s'"
FUNCTIONS = """
SELECT p.oid::regproc::text AS name, coalesce(p.proargnames[:p.pronargs], '{}') AS arguments,
    ARRAY(SELECT format_type(t, NULL) FROM unnest(p.proargtypes) WITH ORDINALITY AS u (t, n) ORDER BY n) AS types
FROM pg_proc AS p CROSS JOIN LATERAL aclexplode(p.proacl) AS g
WHERE p.pronamespace::regnamespace::text IN ('loracomp', 'bi') AND p.pronargs > 0
    AND g.privilege_type = 'EXECUTE' AND g.grantee <> p.proowner AND g.grantee::regrole::text = %s
ORDER BY p.oid::regproc::text
"""
quick = settings(
    max_examples=9 * TRIES,
    deadline=None,
    derandomize=TRIES == 1,
    database=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def place(scene: Scene) -> Iterator[Scene]:
    """People, jobs and tasks, on the base model that the worker of queue_worker.py serves."""
    scene.owner.execute("UPDATE loracomp.base_model SET name = %s", [BASE])
    yield scene


def fault(error: psycopg.Error, fields: set[str]) -> str | None:
    """What is wrong with a refusal: it must name a constraint, a column or an argument, or be in words of ours."""
    diagnosis = error.diag
    message = diagnosis.message_primary or str(error)
    internal = error.sqlstate is None or error.sqlstate[:2] in ("XX", "57", "08", "53")
    named = diagnosis.constraint_name or diagnosis.column_name or any(field in message for field in fields)
    ours = error.sqlstate in ("P0001", "P0002") or diagnosis.message_hint
    return None if not internal and (named or ours) else f"{error.sqlstate} {message[:150]}"


def try_calls(caller: psycopg.Connection[Any], function: dict[str, Any]) -> dict[str, str]:
    """Odd calls of a function, each undone; what was wrong with refusals, with the arguments."""
    faults: dict[str, str] = {}
    fields = set(function["arguments"])
    if "loracomp.policy" in function["types"]:
        fields |= set(tables.policy.columns.keys())
    call = sql.SQL("SELECT * FROM {}({})").format(
        sql.SQL(function["name"]), sql.SQL(", ").join(sql.SQL("%s::" + kind) for kind in function["types"])
    )

    @quick
    @given(st.tuples(*(st.one_of(st.none(), KINDS[kind]) for kind in function["types"])))
    def tried(arguments: tuple[Any, ...]) -> None:
        try:
            with caller.transaction(force_rollback=True):
                caller.execute(call, arguments).fetchall()
        except psycopg.Error as error:
            if wrong := fault(error, fields):
                faults[f"{function['name']}: {wrong}"] = repr(arguments)[:200]

    tried()
    return faults


@pytest.mark.parametrize("person", [person for person, role in LOGINS.items() if role and person != "bob"])
def test_functions_refuse_by_name_or_answer(place: Scene, person: str) -> None:
    """What a type can't hold, such as a text for a number, never gets to a function: only what it holds is tried."""
    functions = place.owner.execute(FUNCTIONS, [LOGINS[person]]).fetchall()
    public = [function for function in functions if not HELPERS.fullmatch(function["name"])]
    assert public, f"{LOGINS[person]} may call nothing"
    faults: dict[str, str] = {}
    with place.connect(person) as caller:
        caller.execute(PATIENCE)
        for function in public:
            faults |= try_calls(caller, function)
    assert not faults, "\n".join(f"{what}\n    of {call}" for what, call in faults.items())


COLUMNS = {
    "prompt": texts,
    "choices": lists(texts),
    "max_new_tokens": integers,
    "stop": short_lists(texts),
    "temperature": floats,
    "top_p": floats,
    "seed": bigs,
    "policy": texts,
    "base_model": texts,
    "priority": integers,
    "run_at": times,
    "idempotency_key": texts,
    "tags": jsons,
    "exclude_tasks": short_lists(texts),
    "max_attempts": integers,
    "timeout_s": integers,
    "kind": st.sampled_from(("predict", "route", "", "PREDICT")),
}
JOBS = st.fixed_dictionaries({}, optional=COLUMNS).map(lambda columns: {"prompt": "why?", **columns})


def test_jobs_are_refused_by_name_or_answered_by_a_real_worker(place: Scene) -> None:
    accepted: list[int] = []
    faults: dict[str, str] = {}
    with place.connect("alice") as alice:
        alice.execute(PATIENCE)

        @settings(quick, max_examples=200 * TRIES)
        @given(JOBS, st.sets(st.sampled_from(sorted(COLUMNS)), max_size=3))
        def tried(columns: dict[str, Any], kept: set[str]) -> None:
            # Of a row full of odd values, the first refuses it: most tries hold one to three.
            row = {name: value for name, value in columns.items() if name == "prompt" or name in kept}
            try:
                accepted.append(submit(alice, **row))
            except psycopg.Error as error:
                if wrong := fault(error, set(row)):
                    faults[wrong] = repr(row)[:300]

        tried()
        honest = submit(alice, "an honest question")
    assert not faults, faults
    assert len(accepted) > 20
    place.owner.execute("UPDATE loracomp.job SET run_at = now() WHERE status = 'queued'")
    work(place)
    waiting = "SELECT id FROM loracomp.job WHERE status NOT IN ('succeeded', 'failed')"
    assert values(place.owner, waiting) == set()
    assert value(place.owner, f"SELECT output FROM loracomp.prediction WHERE job_id = {honest}") == "AN HONEST QUESTION"


JSON_COLUMNS = """
SELECT c.oid::regclass::text AS relation, a.attname AS name,
    ARRAY(
        SELECT pg_get_expr(k.conbin, k.conrelid) FROM pg_constraint AS k
        WHERE k.conrelid = c.oid AND k.contype = 'c' AND k.conkey = ARRAY[a.attnum]
    ) AS conditions
FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.atttypid = 'jsonb'::regtype AND a.attnum > 0
WHERE c.relnamespace = 'loracomp'::regnamespace AND c.relkind IN ('r', 'p') AND c.relname <> 'audit_event'
"""
WRITES = {
    "loracomp.job": "INSERT INTO loracomp.job (prompt, {}) VALUES ('why?', %s)",
    "loracomp.prediction": "UPDATE loracomp.prediction SET {} = %s",
}
"""Statements that write the column of a table that has a trigger refuse_faulty."""


def test_no_column_takes_json_that_readers_cannot_follow(place: Scene) -> None:
    """The audit alone has no limit of its own: triggers write it, from rows that have one."""
    submit(place.owner, "an honest question")
    work(place)
    columns = place.owner.execute(JSON_COLUMNS).fetchall()
    assert {column["relation"] for column in columns} > set(WRITES)
    for column in columns:
        for levels in (40, 4000):
            given = '{"a":' * levels + "1" + "}" * levels
            assert refuses(place.owner, column, given), f"{column['relation']}.{column['name']}"


def refuses(owner: Connection, column: dict[str, Any], given: str) -> bool:
    """Whether a constraint or a trigger refuses JSON for a column."""
    if write := WRITES.get(column["relation"]):
        with pytest.raises(psycopg.errors.CheckViolation, match=column["name"]):
            owner.execute(write.format(column["name"]), [given])
        return True
    holds = "SELECT {} AS holds FROM (SELECT %s::jsonb AS {}) AS given"
    return any(
        value(owner, holds.format(condition.replace("%", "%%"), column["name"]), [given]) is False
        for condition in column["conditions"]
    )


FIELDS = st.sampled_from([column.name for column in tables.prediction.columns])
ODD_TIMINGS = st.dictionaries(
    st.sampled_from(("encode", "route", "load", "predict", "record", "claim")), documents, max_size=3
)
ODD_POLICIES = st.dictionaries(
    st.sampled_from(("k", "routing_temperature", "routing_top_p", "max_adapters", "density", "router")),
    documents,
    max_size=3,
)
ODD_VALUES = st.one_of(documents, ODD_TIMINGS, ODD_POLICIES)


def test_what_a_faulty_worker_records_breaks_no_report(place: Scene) -> None:
    """Refused whole, or recorded so that every view of bi can be read."""
    faults: dict[str, str] = {}
    recorded = []
    with place.connect("wendy") as wendy:
        wendy.execute(PATIENCE)
        claim = "SELECT id, lease_token FROM loracomp.claim_jobs('w', %s, 1, '10 minutes')"

        @settings(quick, max_examples=120 * TRIES)
        @given(
            st.one_of(
                st.dictionaries(FIELDS, ODD_VALUES, min_size=1, max_size=2),
                st.fixed_dictionaries({"timings": ODD_TIMINGS}),
                st.fixed_dictionaries({"policy": ODD_POLICIES}),
            )
        )
        def tried(fields: dict[str, Any]) -> None:
            job_id = submit(place.owner, priority=10)
            (claimed,) = wendy.execute(claim, [BASE]).fetchall()
            assert claimed["id"] == job_id
            given = {**prediction_row(job_id), **fields}
            try:
                recorded.extend(
                    wendy.execute(RECORD_ROW, {"row": Jsonb(given, dumps=json.dumps), "token": claimed["lease_token"]})
                )
            except psycopg.Error as error:
                if error.sqlstate is None or error.sqlstate[:2] in ("XX", "57", "08", "53"):
                    faults[str(error)] = repr(fields)[:300]
            place.owner.execute("UPDATE loracomp.job SET priority = 0 WHERE priority = 10")
            wendy.execute("SELECT loracomp.release_jobs(%s, %s)", [[job_id], [claimed["lease_token"]]])
            if not ended(job_id):
                place.owner.execute("SELECT loracomp.cancel_job(%s)", [job_id])

        def ended(job_id: int) -> bool:
            return value(place.owner, "SELECT finished_at IS NOT NULL FROM loracomp.job WHERE id = %s", [job_id])

        tried()
    assert not faults, faults
    assert len(recorded) > 10
    place.owner.execute("SELECT loracomp.refresh_reports()")
    with place.connect("ana") as ana:
        for view in values(place.owner, "SELECT relname FROM pg_class WHERE relnamespace = 'bi'::regnamespace"):
            ana.execute(f"SELECT * FROM bi.{view}".encode()).fetchall()


def work(place: Scene) -> None:
    """A worker process, as its own login, until nothing is due."""
    command = [sys.executable, "tests/queue_worker.py", make_conninfo(place.url, user=login("wendy")), "--drain"]
    environment = {**os.environ, "LORACOMP_BATCH_SIZE": "64", "LORACOMP_LEASE_S": "60"}
    done = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
