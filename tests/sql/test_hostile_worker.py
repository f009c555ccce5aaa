"""Whatever a worker's login writes: its call is refused, or everybody else goes on, with every report, view and answer.

LORACOMP_FUZZ multiplies the number of tries, which is small.
"""

# ruff: noqa: E501
import json
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from io import StringIO
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import create_database, drop_database
from job_data import add_jobs
from loracomp.cli.brief import brief
from loracomp.database import connections as db
from loracomp.database.queries import QUERIES
from loracomp.engine.evidence import fit_evidence
from loracomp.records import Prediction
from loracomp.replay import replay
from loracomp.web.picture import read_job
from loracomp.web.render import render, self_contained
from people_data import POLICY, fill_every_view, one
from people_fixtures import Scene, connect, value, values
from routing_data import BASE_MODEL
from test_fuzz import FUNCTIONS, PATIENCE, TRIES, quick

CHOICES = ("yes", "no")
RANDOM = random.Random(7)
DIGITS = "".join(RANDOM.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=16_000))
WIDE = "".join(chr(RANDOM.randrange(0x20000, 0x2A000)) for _ in range(3000))


def json_of(fields: Iterable[tuple[str, str]]) -> str:
    """An object whose values are JSON already, because Python's numbers are double precision, and those of jsonb are not."""
    return f"{{{','.join(f'{json.dumps(name)}:{value}' for name, value in fields)}}}"


def deep(levels: int) -> str:
    return '{"a":' * levels + "1" + "}" * levels


TEXTS = [
    json.dumps(text)
    for text in ("", " ", "\u202e\x1b[2J", DIGITS, WIDE, WIDE[:300], "x" * 1_000_001, "%s{0}", "SECRET", "\0", "\udc00")
]
NUMBERS = [
    "0", "-0.0", "1", "-1", "0.5", "1.0005", "-0.0005", "1e308", "-1e308", "1e-310", "5e-324", "1e-400", "1e400", "1e12", "-1e9",
    "1e-44", "1e-9", '"NaN"', '"Infinity"', '"-Infinity"', "null", "1" + "0" * 5000, "0." + "0" * 5000 + "1",
]  # fmt: skip
WHOLE = ["0", "1", "-1", "7", "1000001", "2147483647", "-2147483648", "9223372036854775807", "null"]
STEPS = ["predict", "queue", "total", "encode", "model", "record", "k", "top_p", "router", "name", "A b", DIGITS, WIDE]


def listed(of: list[str]) -> st.SearchStrategy[str]:
    """Short, long and nested arrays, one that is counted from 0, and none."""
    few = st.lists(st.sampled_from(of), max_size=3).map(lambda some: f"[{','.join(some)}]")
    pair = st.lists(st.sampled_from(of), min_size=2, max_size=2).map(lambda some: f"[{','.join(some)}]")
    one_of = st.sampled_from(of)
    return st.one_of(
        few, pair, pair, one_of.map(lambda x: f"[[{x}]]"), st.just(f"[{','.join([of[1]] * 1500)}]"), st.just("null"),
        st.just('"[0:1]={1,1}"'),
    )  # fmt: skip


values_of_json = st.one_of(
    st.sampled_from([*NUMBERS, *TEXTS, "true", "[]", "{}", "[[1]]", deep(40), deep(900), deep(5000)]), listed(NUMBERS)
)
documents = st.one_of(
    st.dictionaries(st.sampled_from(STEPS), values_of_json, max_size=3).map(lambda some: json_of(some.items())),
    st.just(json_of((f"{'ab'[n % 2]}{'x' * n}", "1") for n in range(60))),
    # What measurements hold, by the id of an adapter.
    st.tuples(st.sampled_from(["1", "2", "x"]), values_of_json).map(lambda pair: json_of([pair])),
    values_of_json,
)
KINDS = {
    "text": st.sampled_from([*TEXTS, "null"]),
    "integer": st.sampled_from(WHOLE),
    "smallint": st.sampled_from(WHOLE),
    "bigint": st.sampled_from(WHOLE),
    "double precision": st.sampled_from(NUMBERS),
    "boolean": st.sampled_from(["true", "false", "null"]),
    "interval": st.sampled_from(['"0"', '"-1 day"', '"178000000 years"', '"-178000000 years"', "null"]),
    "timestamp with time zone": st.sampled_from(['"now"', '"infinity"', '"-infinity"', '"294276-12-31"', "null"]),
    "jsonb": documents,
    "text[]": listed(TEXTS),
    "bytea[]": listed(['"\\\\x00"', '"\\\\x"', "null"]),
    "integer[]": listed(WHOLE),
    "bigint[]": listed(WHOLE),
    "boolean[]": listed(["true", "false", "null"]),
    "double precision[]": listed(NUMBERS),
    "real[]": listed(NUMBERS),
    "vector[]": listed(
        ['"[0]"', "null", *(f'"[{",".join([number] * 832)}]"' for number in ("1e-40", "1e38", "0.0346"))]
    ),
}
HONEST: dict[str, Any] = {
    "worker": "w", "name": "w", "status": "idle", "host": "here", "pid": 7, "code_version": "1", "device": "cpu/float32",
    "base_model": BASE_MODEL, "base_fingerprint": "0" * 64, "encoder": "toy-encoder/1", "lease": "1 minute", "batch_size": 0,
    "running_s": 1, "looked_s": 1, "silent_after_s": 60, "claimed": 0, "succeeded": 0, "failed": 0, "released": 0,
    "dropped": 0, "codes": ["code"], "messages": ["error"], "retries": [False], "choices": [*CHOICES], "log_likelihoods": [-1.0],
    "held_ids": [], "from_start": True, "task_id": 1, "base_model_id": 1, "input_version": None,
    "task": None, "after": 0, "text_hashes": None, "max_examples": 8, "embeddings": [str([0.0] * 831 + [1.0])],
}  # fmt: skip
"""Arguments by their names; ids, tokens and composite types are of the jobs that are held."""
ANSWER: dict[str, Any] = {
    "output": "yes", "choice_index": 1, "choice_scores": [-1.0, -2.0], "composition_digest": "d" * 64, "prompt_tokens": 3,
    "output_tokens": 1, "batch_size": 1, "timings": {"encode": 5, "route": 2, "load": 1, "predict": 9, "share": 4, "record": 2},
    "example_ids": [1, 2], "example_tasks": ["rte", "mnli"], "similarities": [0.9, 0.8], "tasks": ["rte", "mnli"],
    "probabilities": [0.6, 0.4], "weights": [0.6, 0.4], "composed_tasks": ["rte", "mnli"], "adapter_ids": [1, 2],
    "adapter_sha256": ["a" * 64, "b" * 64], "adapter_weights": [0.6, 0.4], "searched_task_count": 2,
}  # fmt: skip
TYPES = """
SELECT t.typname AS name, array_agg(a.attname ORDER BY a.attnum) AS fields,
    array_agg(format_type(a.atttypid, NULL) ORDER BY a.attnum) AS types
FROM pg_type AS t JOIN pg_attribute AS a ON a.attrelid = t.typrelid AND a.attnum > 0
WHERE t.typnamespace = 'loracomp'::regnamespace AND t.typname IN ('predicted', 'route_trace', 'measured') GROUP BY t.typname
"""
HELD = """
UPDATE loracomp.job SET status = 'running', worker = 'w', attempts = 1, claimed_at = now(), lease_token = id + 1000,
    lease_expires_at = now() + interval '1 hour'
WHERE id = ANY (%s)
"""
MEASURING = """
INSERT INTO loracomp.job (prompt, choices, kind, example_id, expected, adapter_ids, task)
SELECT e.prompt, e.choices, 'measure', e.id, e.label, ARRAY(SELECT a.id FROM loracomp.adapter AS a ORDER BY a.id), 'rte'
FROM loracomp.example AS e WHERE e.id = 1 RETURNING id
"""


class Hostile:
    """The functions that a worker's login may call, from the catalog, with their arguments: honest ones, and others."""

    def __init__(self, owner: db.Connection) -> None:
        self.owner = owner
        self.types = {
            f"loracomp.{row['name']}[]": dict(zip(row["fields"], row["types"], strict=True))
            for row in owner.execute(TYPES)
        }
        policy = one(owner, POLICY, ["default"])
        self.fields = {
            **ANSWER, "policy_settings": policy["policy_settings"], "choice_normalization": "tokens", "base_score": -1, "base_is_right": True,
            "chat_template": False, "gains": [0.5, -0.5], "are_right": [True, False], "choice_scores": [-1.0, -2.0],
        }  # fmt: skip

    def honest(self, name: str, jobs: list[int]) -> str | None:
        """JSON of an argument as an honest worker gives it; None if nobody has said what that is."""
        if name in ("ids", "job_ids"):
            return json.dumps(jobs)
        if name == "tokens":
            return json.dumps([job + 1000 for job in jobs])
        if name in ("codes", "messages", "retries"):
            return json.dumps(HONEST[name] * len(jobs))
        if name in ("example_ids", "adapter_ids"):
            return "[1]"
        return json.dumps(HONEST[name]) if name in HONEST else None

    def arguments(self, draw: Callable[..., Any], function: dict[str, Any], jobs: list[int]) -> str:
        """A JSON object of a function's arguments, of which one or two are not as they should be."""
        given = list(zip(function["arguments"], function["types"], strict=True))
        places = [
            (name, field)
            for name, kind in given
            for field in self.types.get(kind, {"": ""})
            if field not in ("job_id", "lease_token")
        ]
        odd = draw(st.lists(st.sampled_from(places), min_size=1, max_size=2))

        def row(name: str, kind: str, job: int) -> str:
            return json_of(
                (field, draw(KINDS[type_]) if (name, field) in odd else self.honest_field(field, kind, job))
                for field, type_ in self.types[kind].items()
            )

        def argument(name: str, kind: str) -> str:
            if kind in self.types:
                return f"[{','.join(row(name, kind, job) for job in jobs)}]"
            # Of a worker that embeds, it is the fingerprint, or null for the encoder that is set.
            is_null = name == "encoder" and "predictions" not in function["arguments"]
            known = "null" if is_null else self.honest(name, jobs)
            return draw(KINDS[kind]) if known is None or (name, "") in odd else known

        return json_of((name, argument(name, kind)) for name, kind in given)

    def honest_field(self, field: str, kind: str, job: int) -> str:
        if field in ("job_id", "lease_token"):
            return str(job if field == "job_id" else job + 1000)
        if (kind, field) == ("loracomp.measured[]", "choice_scores"):
            return '{"1": [-1, -2], "2": [-2, -1]}'
        return json.dumps(self.fields.get(field))


@pytest.fixture(scope="module")
def place(server: str, template: str, logins: None) -> Iterator[Scene]:
    url = create_database(server, "hostile_worker", template)
    with db.connect(url) as owner:
        fill_every_view(owner)
        owner.execute("UPDATE loracomp.example SET choices = '{yes,no}'")
        owner.execute("SELECT loracomp.cancel_job(id) FROM loracomp.job WHERE status = 'queued'")
        yield Scene(url, owner, 0, 0, 0)
    drop_database(server, "hostile_worker")


def held_jobs(place: Scene, alice: db.Connection) -> list[int]:
    """Two jobs of alice's, and one that measures, leased to the worker."""
    jobs = add_jobs(alice, "Is it wet?", "Is it cold?", choices=[*CHOICES])
    jobs += values(place.owner, MEASURING)
    place.owner.execute(HELD, [jobs])
    return jobs


WRITING = (
    "claim_jobs", "renew_leases", "release_jobs", "release_claim", "record_predictions", "fail_jobs", "record_measurements", "record_evidence",
    "report_worker", "add_embeddings",
)  # fmt: skip
"""Some calls of each of these must be taken, or the test shows little."""
CALL = "SELECT f.* FROM jsonb_to_record(%s::jsonb) AS a ({columns}) CROSS JOIN LATERAL {name}({arguments}) AS f"


def call_of(function: dict[str, Any]) -> bytes:
    names = [f'"{name}"' for name in function["arguments"]]
    columns = ", ".join(f"{name} {kind}" for name, kind in zip(names, function["types"], strict=True))
    arguments = ", ".join(f"{name} => a.{name}" for name in names)
    return CALL.format(columns=columns, name=function["name"], arguments=arguments).encode()


def try_function(
    place: Scene, hostile: Hostile, function: dict[str, Any], wendy: db.Connection, alice: db.Connection
) -> list[str]:
    """Call the function with odd arguments; returns the arguments that it took."""
    call = call_of(function)
    taken: list[str] = []
    columns = sum(len(hostile.types.get(kind, "1")) for kind in function["types"])

    @settings(quick, max_examples=TRIES * (5 + 5 * columns))
    @given(st.data())
    def tried(data: st.DataObject) -> None:
        jobs = held_jobs(place, alice)
        asked = jobs[2:] if "loracomp.measured[]" in function["types"] else jobs[:2]
        arguments = hostile.arguments(data.draw, function, asked)
        try:
            wendy.execute(call, [arguments]).fetchall()
            taken.append(arguments[:1000])
        except psycopg.Error as error:
            assert error.sqlstate and error.sqlstate[:2] not in ("XX", "57", "08", "53"), (arguments[:500], error)
        ended = "SELECT loracomp.cancel_job(id) FROM loracomp.job WHERE id = ANY (%s) AND finished_at IS NULL"
        place.owner.execute(ended, [jobs])

    tried()
    return taken


def test_what_a_workers_login_writes_breaks_nothing_of_others(place: Scene) -> None:
    functions = place.owner.execute(FUNCTIONS, ["loracomp_worker"]).fetchall()
    assert {"loracomp.record_predictions", "loracomp.fail_jobs"} <= {each["name"] for each in functions}
    hostile = Hostile(place.owner)
    taken: dict[str, list[str]] = {}
    with connect(place.url, "wendy") as wendy, connect(place.url, "alice") as alice:
        wendy.execute(PATIENCE)
        for function in functions:
            name = function["name"]
            taken[name] = try_function(place, hostile, function, wendy, alice)
        assert not [name for name in WRITING if not taken[f"loracomp.{name}"]]
        look_at_everything(place, alice)
    purge(place)


def look_at_everything(place: Scene, alice: db.Connection) -> None:
    """What others do with what is recorded; none of it may raise."""
    owner = place.owner
    with connect(place.url, "adam") as adam, connect(place.url, "ana") as ana:
        adam.execute("SELECT loracomp.refresh_reports()")
        for reader in (adam, ana, alice):
            for relation in values(reader, READABLE):
                reader.execute(f"SELECT * FROM {relation}".encode()).fetchall()
        adam.execute("SELECT loracomp.explain_job(id) FROM loracomp.job")
        adam.execute("SELECT * FROM loracomp.worker_demand(), loracomp.check_health(), loracomp.database_metrics()")
        adam.execute("SELECT * FROM loracomp.list_measurements()")
        ended = values(
            alice, "SELECT id FROM loracomp.job WHERE status IN ('succeeded', 'failed') AND kind = 'predict'"
        )
        for job in ended:
            alice.execute("SELECT loracomp.explain_job(%s)", [job])
            shown = read_job(alice, job)
            self_contained("job.html", **shown), render("job.svg", **shown)
            (trace,) = alice.execute(QUERIES["job_trace"], {"id": job})
            json.dump(trace, StringIO(), default=str)
            asdict(replay(Stub(), alice, trace))
        for row in alice.execute(QUERIES["job_results"], {"ids": list(ended)}).fetchall():
            if row["status"] == "succeeded":
                list(brief(row))
    measured = values(owner, "SELECT id FROM loracomp.job WHERE kind = 'measure'")
    if rows := owner.execute(QUERIES["labelled_scores"], {"job_ids": list(measured)}).fetchall():
        fit_evidence([*rows, *rows, *rows, *rows])
    owner.execute(ROUTED).fetchall()


READABLE = """
SELECT c.oid::regclass::text FROM pg_class AS c
WHERE c.relnamespace::regnamespace::text IN ('loracomp', 'bi') AND c.relkind IN ('v', 'r', 'p')
    AND has_table_privilege(c.oid, 'select')
"""
ROUTED = """
SELECT w.*
FROM loracomp.policy AS p
CROSS JOIN LATERAL (
    SELECT array_agg(g.task_id) AS tasks, array_agg(g.gain) AS gains
    FROM loracomp.expected_gains('{1,2,3,4}', '{0.1,1,0.9,0.8}', '{1,2}', '{1,2}', p) AS g
) AS g
CROSS JOIN LATERAL loracomp.task_weights(
    '{1,2}', '{0.1,1}', p, coalesce(g.tasks, '{}'), coalesce(g.gains, '{}'),
    loracomp.adapter_worths(1, '{yes,no}', coalesce(g.tasks, '{}'), '{1,2}', '{1,2}')
) AS w
WHERE p.weighting = 'measured'
"""


class Stub:
    """An engine that answers without a model."""

    class base:  # noqa: N801
        fingerprint = "0" * 64

    device = "cpu/float32"

    def predict(self, connection: db.Connection, requests: list[Any]) -> list[Prediction]:
        return [Prediction("yes", 1, (-1.0, -2.0)) for _ in requests]


def purge(place: Scene) -> None:
    """Days that are over: their reports are computed once more, and their jobs go."""
    place.owner.execute(
        "UPDATE loracomp.job SET finished_at = finished_at - interval '3 days' WHERE finished_at IS NOT NULL"
    )
    with connect(place.url, "adam") as adam:
        while value(adam, "SELECT loracomp.purge_jobs('1 day', 1000)"):
            pass
        adam.execute("SELECT loracomp.refresh_reports()")
