"""Inserts jobs and records their answers as a worker would, for tests of what people see."""

from collections import defaultdict
from typing import Any

from psycopg import sql

from job_data import REPORT, record
from loracomp.database import connections as db
from loracomp.database.queries import QUERIES
from routing_data import BASE_MODEL, add_base_model, add_task

ADD_EXAMPLE = """
INSERT INTO loracomp.example (task_id, split, prompt, label, source_ref, content_hash)
SELECT t.id, 'train', %(prompt)s, %(label)s, %(source_ref)s, sha256(convert_to(%(source_ref)s, 'UTF8'))
FROM loracomp.task AS t WHERE t.name = %(task)s RETURNING id
"""
POLICY = """
SELECT to_jsonb(p) - '{description,created_at,updated_at}'::text[] AS policy_settings
FROM loracomp.policy AS p WHERE name = %s
"""
MEASUREMENT = """
INSERT INTO loracomp.measurement (
    example_id, base_model_id, task_id, choice_normalization, base_score, base_is_right, adapter_ids, gains, are_right
)
SELECT e.id, a.base_model_id, e.task_id, 'tokens', -1, true, ARRAY[a.id], '{0.5}', '{t}'
FROM loracomp.example AS e JOIN loracomp.adapter AS a ON a.status = 'active' ORDER BY e.id, a.id LIMIT 1
"""
ADAPTERS = """
SELECT coalesce(array_agg(a.id ORDER BY place), '{}') AS adapter_ids,
    coalesce(array_agg(a.sha256 ORDER BY place), '{}') AS adapter_sha256
FROM unnest(%s::text[]) WITH ORDINALITY AS c (task, place)
JOIN loracomp.task AS t ON t.name = c.task JOIN loracomp.adapter AS a ON a.task_id = t.id AND a.status = 'active'
"""


def load(connection: db.Connection) -> dict[str, int]:
    """Add a base model, and tasks rte and mnli with an adapter and two examples each; returns the examples' ids by
    source_ref."""
    add_base_model(connection)
    return {**add_examples(connection, "rte"), **add_examples(connection, "mnli")}


def add_examples(connection: db.Connection, task: str, *, reader_role: str | None = None) -> dict[str, int]:
    """Add a task with an adapter and two examples that have a text; returns their ids by source_ref."""
    add_task(connection, task, reader_role=reader_role)
    return {f"{task}/train#{number}": add_example(connection, task, number) for number in (1, 2)}


def add_example(connection: db.Connection, task: str, number: int) -> int:
    given = {
        "task": task,
        "prompt": f"Does it rain in example {number} of {task}?",
        "label": "yes",
        "source_ref": f"{task}/train#{number}",
    }
    return one(connection, ADD_EXAMPLE, given)["id"]


def one(connection: db.Connection, statement: str, parameters: Any = None) -> dict[str, Any]:
    """Return the only row of a query."""
    row = connection.execute(statement, parameters).fetchone()
    assert row
    return row


def submit(connection: db.Connection, prompt: str = "Is it wet?", **columns: Any) -> int:
    """Insert a job as a person would, naming only the given columns."""
    given = {"prompt": prompt, **columns}
    statement = sql.SQL("INSERT INTO loracomp.job ({}) VALUES ({}) RETURNING id").format(
        sql.SQL(", ").join(map(sql.Identifier, given)), sql.SQL(", ").join(map(sql.Placeholder, given))
    )
    row = connection.execute(statement, given).fetchone()
    assert row
    return int(row["id"])


def claim(connection: db.Connection, *job_ids: int, worker: str = "worker-1") -> dict[int, int]:
    """Claim the due jobs, which must be these jobs; returns their tokens."""
    rows = connection.execute(
        "SELECT id, lease_token FROM loracomp.claim_jobs(%s, %s, 100, '1 minute')", [worker, BASE_MODEL]
    ).fetchall()
    assert {row["id"] for row in rows} == set(job_ids)
    return {row["id"]: row["lease_token"] for row in rows}


def answer(connection: db.Connection, job_id: int, examples: dict[str, int], **columns: Any) -> None:
    """Claim the only due job and record its prediction: rte and mnli composed from these examples, unless given."""
    token = claim(connection, job_id)[job_id]
    tasks = columns.get("composed_tasks", ["rte", "mnli"])
    row = {
        "job_id": job_id,
        "output": "yes",
        "example_ids": list(examples.values()),
        "example_tasks": [reference.split("/")[0] for reference in examples],
        "similarities": [0.9 - 0.1 * place for place in range(len(examples))],
        "tasks": ["rte", "mnli"],
        "probabilities": [0.62, 0.38],
        "weights": [0.62, 0.38],
        "composed_tasks": tasks,
        "adapter_weights": [0.62, 0.38],
        **one(connection, ADAPTERS, [tasks]),
        **one(connection, POLICY, ["default"]),
        "composition_digest": "d" * 64,
        "prompt_tokens": 12,
        "output_tokens": 1,
        "timings": {
            "claim": 1,
            "encode": 5.5,
            "route": 2.25,
            "load": 3,
            "compose": 4,
            "calibrate": 7,
            "predict": 40,
            "record": 2,
        },
        "device": "cpu/float32",
        "base_model": BASE_MODEL,
        "base_fingerprint": "0" * 64,
        "encoder": "toy-encoder/1",
        "code_version": "0.1.0",
        **columns,
    }
    assert record(connection, {job_id: token}, [row]) == {job_id}


COLUMNS_OF_BI = """
SELECT c.relname AS view, a.attname AS name, format_type(a.atttypid, a.atttypmod) AS type
FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
WHERE c.relnamespace = 'bi'::regnamespace AND c.relkind = 'v' AND a.attnum > 0
ORDER BY c.relname, a.attnum
"""


def views(connection: db.Connection) -> dict[str, dict[str, str]]:
    """Return the views of bi with their columns' types, as the catalog has them."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for row in connection.execute(COLUMNS_OF_BI):
        found[row["view"]][row["name"]] = row["type"]
    return dict(found)


def fill_every_view(connection: db.Connection) -> None:
    """Add answered, failed and due jobs, and jobs with expected answers, so that every view of bi has a row; every text
    of a user is SECRET."""
    examples = load(connection)
    words = {"prompt": "SECRET-prompt", "tags": '{"t": "SECRET-tag", "country": "DE"}'}
    connection.execute("SELECT loracomp.set_reported_tags('{country}')")
    answer(connection, submit(connection, **words, idempotency_key="SECRET-key"), examples, output="SECRET-output")
    failing = submit(connection, **words, choices=["SECRET-a", "SECRET-b"])
    token = claim(connection, failing)[failing]
    connection.execute("SELECT loracomp.fail_jobs(%s, %s, '{code}', '{SECRET-error}', '{f}')", [[failing], [token]])
    asked = {"task": "rte", "expected": "SECRET-expected", "example_id": 1}
    for policy in ("own_task", "default"):
        asking = submit(connection, **words, **asked, policy=policy)
        answer(connection, asking, examples, output="SECRET-expected")
    scored = {"output": "SECRET-expected", "choice_index": 1, "choice_scores": [-1.0, -2.0]}
    for policy, trace in (
        ("base", {"composed_tasks": [], "adapter_weights": []}),
        ("measured", {"expected_gains": [0.5, None]}),
    ):
        secret = words | {"tags": '{"t": "SECRET-tag"}'}  # of a listed tag the chosen choice is shown
        asking = submit(connection, **secret, **asked, policy=policy, choices=["SECRET-expected", "SECRET-b"])
        settings = one(connection, POLICY, [policy])
        answer(connection, asking, examples, **scored, **settings, **trace)
    connection.execute(MEASUREMENT)
    submit(connection, **words)
    connection.execute(QUERIES["report_worker"], REPORT)
    connection.execute("SELECT loracomp.refresh_reports()")
