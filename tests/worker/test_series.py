"""Rows of a table lose half of what the other rows' choices score on average; the answers replay."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from job_data import add_jobs, claim
from job_fixtures import cleared_connection, database_of_a_module  # noqa: F401
from loracomp.database.connections import Connection
from loracomp.engine.engine import Engine
from loracomp.engine.series import LATEST, SeriesScores
from loracomp.records import Prediction, Request
from loracomp.registry.encoder_change import set_encoder
from loracomp.replay import replay
from loracomp.worker.recorder import record
from model_fixtures import as_base

CHOICES = ["yes", "no", "can not be told"]
BEFORE, AFTER = "The text: ", "\nIs it wet?"


@pytest.fixture
def engine(connection: Connection, database: str, tiny_model, tokenizer, minilm) -> Engine:
    set_encoder(database, minilm)
    connection.execute("UPDATE loracomp.base_model SET fingerprint = repeat('0', 64)")
    return Engine("tiny", as_base(tiny_model, tokenizer), minilm)


def answered(connection: Connection, engine: Engine, *texts: str, together: int = 8, **fields: Any) -> list[Any]:
    """The traces of jobs that ask the same question about these texts."""
    fields = {"choices": CHOICES} | fields
    ids = []
    for text in texts:
        at = {"text_at": f"[{len(BEFORE) + 1},{len(BEFORE + text)}]"}
        ids += add_jobs(connection, BEFORE + text + AFTER, **(at | fields))
    while jobs := claim(connection, together):
        record(connection, engine.run(connection, jobs))
    traces = [
        connection.execute("SELECT * FROM loracomp.job_trace WHERE job_id = %s", [job_id]).fetchone() for job_id in ids
    ]
    assert all(trace and trace["status"] == "succeeded" for trace in traces)
    return traces


def of_mix(engine: Engine, connection: Connection, traces: Sequence[Any]) -> Any:
    """The scores [jobs, choices] of requests that belong to no series."""
    asked = [Request(each["prompt"], tuple(each["choices"]), None, normalization="tokens") for each in traces]
    predictions = engine.predict(connection, asked)
    assert all(isinstance(each, Prediction) for each in predictions)
    return np.array([each.choice_scores for each in predictions if isinstance(each, Prediction)])


def test_half_of_the_other_rows_mean_is_taken_off(connection: Connection, engine: Engine) -> None:
    (alone,) = answered(connection, engine, "rain")
    assert alone["choice_biases"] is None
    assert alone["score_weights"] is None
    together = answered(connection, engine, "sand", "a river of mud", "dust")
    scores = of_mix(engine, connection, [alone, *together])
    for place, trace in enumerate(together, start=1):
        mean = np.delete(scores, place, axis=0).mean(axis=0)
        np.testing.assert_allclose(trace["choice_biases"], (mean.mean() - mean) / 2, atol=1e-4)
        np.testing.assert_allclose(trace["choice_scores"], scores[place] + trace["choice_biases"], atol=1e-4)
        assert trace["choice_index"] == 1 + int(np.argmax(trace["choice_scores"]))
        assert replay(engine, connection, trace).outcome == "equal"
    (explained,) = connection.execute("SELECT loracomp.explain_job(%s) AS text", [together[0]["job_id"]])
    assert ", less half of what other rows of the table scored" in explained["text"]
    assert "labelled" not in explained["text"]


@pytest.mark.parametrize(
    "changed",
    [
        {"submitted_by": "pg_monitor"},
        {"choices": CHOICES[::-1]},
        {"descriptions": ["rain falls", "nothing is wet", "who knows"]},
        {"text_at": None},
        {"policy": "by characters"},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_other_jobs_do_not_count(connection: Connection, engine: Engine, changed: dict[str, Any]) -> None:
    connection.execute("""SELECT loracomp.set_policy('by characters', '{"choice_normalization": "characters"}')""")
    answered(connection, engine, "sand", "mud")
    (other,) = answered(connection, engine, "dust", **changed)
    assert other["choice_biases"] is None
    (same,) = answered(connection, engine, "dust")
    assert same["choice_biases"] is not None


def test_only_the_latest_rows_count_and_the_row_itself_never_does() -> None:
    series = SeriesScores()
    for place in range(LATEST + 10):
        series.add(b"a", [float(place), 0.0])
        series.add(b"b", [1.0, 1.0])
    last = [float(LATEST + 9), 0.0]
    mean = np.arange(10, LATEST + 9).mean()
    assert series.biases(b"a", last) == pytest.approx((-mean / 4, mean / 4))
    assert series.biases(b"b", [1.0, 1.0]) == (0.0, 0.0)
    assert series.biases(b"c", last) == ()
