"""Makes tasks with rows to evaluate, and records answers to them as workers would."""

from collections.abc import Callable, Sequence
from typing import Any

from psycopg.types.json import Jsonb

from job_data import record
from loracomp.database import connections as db
from loracomp.database.queries import QUERIES
from loracomp_lab.evaluation import start_evaluation
from people_data import one
from routing_data import BASE_MODEL, add_task

POLICIES = "SELECT name, to_jsonb(p) AS settings FROM loracomp.policy AS p"
ASKED = """
SELECT j.id, j.policy, j.task, j.expected, e.source_ref
FROM loracomp.job AS j JOIN loracomp.example AS e ON e.id = j.example_id WHERE j.id = ANY (%s)
"""

Asked = dict[str, Any]
"""The id, policy, task, expected answer and source_ref of a job."""


def add_rows(
    connection: db.Connection, task: str, count: int, *, family: str = "other", split: str = "validation"
) -> None:
    """Add the task, if it does not exist, and rows task/split#0, 1, ... whose right answer is yes."""
    if not connection.execute("SELECT FROM loracomp.task WHERE name = %s", [task]).fetchall():
        add_task(connection, task)
        connection.execute("UPDATE loracomp.task SET family = %s WHERE name = %s", [family, task])
    add_texts(
        connection, task, split, [f"Is this row {number} of the {split} rows of {task}?" for number in range(count)]
    )


def add_texts(connection: db.Connection, task: str, split: str, prompts: Sequence[str]) -> None:
    """Add rows with these prompts to an existing task."""
    rows = [
        {"split": split, "prompt": prompt, "choices": ["yes", "no"], "label": "yes", "source_ref": reference}
        | {"content_hash": one(connection, "SELECT encode(sha256(%s), 'hex') AS hash", [reference.encode()])["hash"]}
        for reference, prompt in ((f"{task}/{split}#{number}", prompt) for number, prompt in enumerate(prompts))
    ]
    connection.execute(QUERIES["add_examples"], {"task": task, "examples": Jsonb(rows)})


def start(
    connection: db.Connection, tasks: str, policies: str, name: str = "e", **changes: Any
) -> list[dict[str, Any]]:
    """Call `start_evaluation`; tasks and policies are given with spaces between them."""
    return start_evaluation(connection, name, tasks=tasks.split(), policies=policies.split(), **changes)


def claim(connection: db.Connection, count: int = 10_000) -> list[dict[str, Any]]:
    return connection.execute(
        "SELECT id, lease_token, prompt FROM loracomp.claim_jobs('w', %s, %s, '1 minute')", [BASE_MODEL, count]
    ).fetchall()


def answer_all(connection: db.Connection, columns: Callable[[Asked], dict[str, Any] | None]) -> None:
    """Claim all jobs and record each with these columns; None fails the job."""
    tokens = {row["id"]: row["lease_token"] for row in claim(connection)}
    policies = {row["name"]: row["settings"] for row in connection.execute(POLICIES)}
    asked = connection.execute(ASKED, [list(tokens)]).fetchall()
    answers = {job["id"]: columns(job) for job in asked}
    predictions = [
        {"job_id": job["id"], "policy_settings": policies[job["policy"]], **VERSIONS, **given}
        for job in asked
        if (given := answers[job["id"]]) is not None
    ]
    record(connection, tokens, predictions)
    failed = [job_id for job_id, given in answers.items() if given is None]
    connection.execute(
        "SELECT loracomp.fail_jobs(%s, %s, %s, %s, %s)",
        [
            failed,
            [tokens[n] for n in failed],
            *([text] * len(failed) for text in ("code", "words")),
            [False] * len(failed),
        ],
    )


VERSIONS = {"base_model": BASE_MODEL, "base_fingerprint": "0" * 64, "encoder": "toy/1", "code_version": "0.1.0"}


def right_on(rows: dict[tuple[str, str], Sequence[int]]) -> Callable[[Asked], dict[str, Any]]:
    """Return an argument for `answer_all`: it answers yes for the rows listed for a policy and task, and no for all
    others."""

    def answer(job: Asked) -> dict[str, Any]:
        number = int(job["source_ref"].rpartition("#")[2])
        return {"output": "yes" if number in rows[job["policy"], job["task"]] else "no"}

    return answer
