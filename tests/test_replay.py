"""A trace that no honest worker writes: replay says what is wrong with it, and goes on to the next job."""

import json
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb
from typer.testing import CliRunner

from job_data import BASE, RECORD_ROW, add_jobs, claim, prediction_row
from job_fixtures import cleared_connection, database_of_a_module  # noqa: F401
from loracomp import cli
from loracomp.cli import commands
from loracomp.database.connections import Connection
from loracomp.engine.engine import Engine
from loracomp.records import Prediction, Request
from loracomp.replay import replay
from loracomp.worker import start
from model_fixtures import as_base

CHOICES = ("yes", "no")
SETTINGS = {
    "choice_normalization": "tokens",
    "strategy": "cat",
    "density": 0.5,
    "router": "base",
}
SHA256 = "a" * 64


@pytest.fixture
def engine(tiny_model, tokenizer, minilm) -> Engine:
    return Engine(BASE, as_base(tiny_model, tokenizer), minilm)


def traced(connection: Connection, **columns: Any) -> dict[str, Any]:
    """The trace of a job with two choices, as the database took it from a login of a worker."""
    (job_id,) = add_jobs(connection, "Is it wet?", choices=[*CHOICES])
    (job,) = claim(connection)
    given = prediction_row(
        job_id, **{"policy_settings": SETTINGS, "base_fingerprint": "0" * 64, "choice_index": 1, **columns}
    )
    with connection.transaction():
        connection.execute("SET LOCAL ROLE loracomp_worker")
        assert connection.execute(RECORD_ROW, {"row": Jsonb(given), "token": job.lease_token}).fetchall()
    trace = connection.execute("SELECT * FROM loracomp.job_trace WHERE job_id = %s", [job_id]).fetchone()
    assert trace
    return trace


def honest(connection: Connection, engine: Engine) -> dict[str, Any]:
    """The trace of what the base model alone says."""
    (answer,) = engine.predict(connection, [Request("Is it wet?", CHOICES, None, normalization="tokens")])
    assert isinstance(answer, Prediction)
    return traced(
        connection, output=answer.output, choice_index=answer.choice_index, choice_scores=answer.choice_scores
    )


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"policy_settings": {}}, "choice_normalization: Field required"),
        (
            {"policy_settings": {**SETTINGS, "choice_normalization": "words"}},
            "choice_normalization: Input should be 'none'",
        ),
        ({"policy_settings": {**SETTINGS, "strategy": ["cat"]}}, "strategy: Input should be a valid string"),
        (
            {"policy_settings": {name: SETTINGS[name] for name in SETTINGS if name != "density"}},
            "density: Field required",
        ),
        (
            {"policy_settings": {**SETTINGS, "choice_normalization": "\x1b[2J"}},
            "choice_normalization: Input should be 'none'",
        ),
        (
            {"composed_tasks": ["rte"], "adapter_ids": [7], "adapter_sha256": [SHA256], "adapter_weights": [1]},
            "adapters [7] are not in the",
        ),
    ],
)
def test_what_cannot_be_composed_again_is_impossible_by_name(
    connection: Connection, engine: Engine, columns: dict[str, Any], said: str
) -> None:
    again = replay(engine, connection, traced(connection, **columns))
    assert again.outcome == "impossible"
    assert said in again.detail
    assert "\x1b" not in again.detail and len(again.detail) < 500


def test_described_choices_are_replayed_from_what_is_stored(connection: Connection, engine: Engine) -> None:
    """The encoder isn't asked again, so another one would make no difference."""
    described = Request("Is it wet?", CHOICES, None, normalization="tokens")
    similar = {"description_similarities": (0.125, 0.5), "score_weights": (0.5, 0.0, 10.0)}
    (answer,) = engine.predict(connection, [replace(described, **similar)])
    assert isinstance(answer, Prediction) and answer.output == CHOICES[1]
    given = {"output": answer.output, "choice_index": 2, "choice_scores": answer.choice_scores, **similar}
    stored = traced(connection, **given)
    assert (stored["description_similarities"], stored["score_weights"]) == ([0.125, 0.5], [0.5, 0, 10])
    again = replay(engine, connection, stored)
    assert (again.outcome, again.largest_difference) == ("equal", pytest.approx(0, abs=1e-6))
    broken = replay(engine, connection, stored | {"description_similarities": [0.1]})
    assert (broken.outcome, "description_similarities differ in length" in broken.detail) == ("impossible", True)


@pytest.mark.parametrize("scores", [None, [], [-1], [-1, -2, -3]])
def test_a_score_for_each_choice_is_part_of_being_equal(
    connection: Connection, engine: Engine, scores: list[Any] | None
) -> None:
    right = honest(connection, engine)
    forged = {"output": right["output"], "choice_index": right["choice_index"], "choice_scores": scores}
    again = replay(engine, connection, traced(connection, **forged))
    assert (again.outcome, again.largest_difference) == ("different", None)
    assert again.detail == "the same choice; its trace does not have a score for each of the 2 choices"


def test_a_sample_goes_on_behind_bad_traces(connection: Connection, database: str, engine: Engine, monkeypatch):
    monkeypatch.setenv("LORACOMP_DATABASE_URL", database)
    monkeypatch.setattr(start, "load_engine", lambda settings, connection: engine)
    if not cli.app.registered_groups:
        commands.register(cli.app)
    right = honest(connection, engine)
    connection.execute("DELETE FROM loracomp.job WHERE id <> %s", [right["job_id"]])
    bad = [
        traced(connection, policy_settings={})["job_id"],
        traced(connection, choice_scores=[-1], output=right["output"])["job_id"],
    ]
    done = CliRunner().invoke(cli.app, ["replay", "--all-since", "2024-01-01", "--json"])
    assert done.exit_code == 1, done.output
    outcomes = {result["job"]: result["outcome"] for result in json.loads(done.stdout)}
    assert outcomes == {right["job_id"]: "equal", bad[0]: "impossible", bad[1]: "different"}
    said = CliRunner().invoke(cli.app, ["replay", "--all-since", "2024-01-01"])
    assert "3 jobs: 1 equal, 1 different, 1 impossible" in said.stdout


@pytest.mark.parametrize("tags", ['{"a":' * 5000 + "1" + "}" * 5000, '{"a": %s}' % ("[" * 40 + "]" * 40)])
def test_tags_that_no_reader_can_follow_are_refused_by_name(connection: Connection, tags: str) -> None:
    with pytest.raises(psycopg.errors.CheckViolation, match="tags_must_be_nested_at_most_32_deep"):
        add_jobs(connection, "Is it wet?", tags=tags)


def test_a_sample_goes_on_behind_numbers_that_python_refuses(
    connection: Connection, database: str, engine: Engine, monkeypatch
) -> None:
    """A number of more than 4,300 digits; and deep nesting, where no trigger refused it."""
    monkeypatch.setenv("LORACOMP_DATABASE_URL", database)
    monkeypatch.setattr(start, "load_engine", lambda settings, connection: engine)
    if not cli.app.registered_groups:
        commands.register(cli.app)
    jobs = [honest(connection, engine)["job_id"] for _ in range(2)]
    connection.execute("DELETE FROM loracomp.job WHERE id <> ALL (%s)", [jobs])
    change = "UPDATE loracomp.job SET tags = %s WHERE id = %s"
    connection.execute(change, ['{"a": 1%s}' % ("0" * 5000), jobs[0]])
    connection.execute(change, ['{"a":' * 5000 + "1" + "}" * 5000, jobs[1]])
    try:
        replayed = CliRunner().invoke(cli.app, ["replay", "--all-since", "2024-01-01"])
        assert "2 jobs: 2 equal, 0 different, 0 impossible" in replayed.stdout
        for job in jobs:
            shown = CliRunner().invoke(cli.app, ["explain", str(job), "--json"])
            assert json.loads(shown.stdout)["job_id"] == job
            assert CliRunner().invoke(cli.app, ["explain", str(job), "--html"]).exit_code == 0
    finally:
        connection.execute("DELETE FROM loracomp.job")
