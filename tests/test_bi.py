"""The bi schema: its numbers are right, its types plain, and it holds nobody's words."""

from itertools import pairwise

import pytest
from scipy.stats import binomtest

from loracomp import db
from people_data import answer, claim, load, one, submit

PLAIN = {"bigint", "integer", "text", "boolean", "double precision", "timestamp with time zone", "date"}


@pytest.fixture
def examples(connection: db.Connection) -> dict[str, int]:
    return load(connection)


def test_only_plain_types(connection: db.Connection) -> None:
    columns = connection.execute(
        "SELECT table_name, column_name, data_type FROM information_schema.columns WHERE table_schema = 'bi'"
    ).fetchall()
    assert {row["table_name"] for row in columns} == {
        "prediction", "composed_adapter", "task_usage_by_day", "accuracy", "failure_by_reason", "queue_health",
        "evaluation", "evaluation_accuracy", "evaluation_pair", "evaluation_regret", "routing_quality",
    }  # fmt: skip
    assert [row for row in columns if row["data_type"] not in PLAIN] == []


def test_nobodys_words(connection: db.Connection, examples: dict[str, int]) -> None:
    words = {"prompt": "SECRET-prompt", "tags": '{"t": "SECRET-tag"}', "idempotency_key": "SECRET-key"}
    answer(connection, submit(connection, **words), examples, output="SECRET-output")
    failing = submit(connection, **{**words, "idempotency_key": "2"}, choices=["SECRET-a", "SECRET-b"])
    token = claim(connection, failing)[failing]
    connection.execute("SELECT loracomp.fail_jobs(%s, %s, '{code}', '{SECRET-error}', '{f}')", [[failing], [token]])
    connection.execute("INSERT INTO loracomp.evaluation (name) VALUES ('weekly')")
    asked = {"evaluation": "weekly", "task": "rte", "expected": "SECRET-expected"}
    asking = submit(connection, **{**words, "idempotency_key": "4"}, **asked, example_id=1, policy="own_task")
    answer(connection, asking, examples, output="SECRET-expected")
    expecting = submit(connection, **{**words, "idempotency_key": "3"}, **asked, example_id=1)
    answer(connection, expecting, examples, output="SECRET-expected")
    views = connection.execute("SELECT relname FROM pg_class WHERE relnamespace = 'bi'::regnamespace AND relkind = 'v'")
    for view in [row["relname"] for row in views]:
        rows = connection.execute(f"SELECT * FROM bi.{view}").fetchall()
        assert rows, view
        assert "SECRET" not in str(rows), view


def test_prediction(connection: db.Connection, examples: dict[str, int]) -> None:
    job_id = submit(connection, choices=["yes", "no"], expected="yes", task="mnli")
    answer(connection, job_id, examples, choice_index=1)
    submit(connection)
    found = one(connection, "SELECT * FROM bi.prediction")
    assert (found["job_id"], found["status"], found["submitted_by"]) == (job_id, "succeeded", "postgres")
    assert (found["own_task"], found["is_correct"], found["choice_count"]) == ("mnli", True, 2)
    assert (found["nearest_task"], found["nearest_similarity"], found["example_count"]) == ("rte", 0.9, 4)
    assert (found["top_task"], found["top_probability"], found["adapter_count"]) == ("rte", 0.62, 2)
    assert (found["composition"], found["router"], found["strategy"]) == ("rte 0.62 + mnli 0.38", "retrieval", "linear")
    assert (found["encode_ms"], found["route_ms"], found["predict_ms"]) == (5.5, 2.25, 40)
    assert 0 <= found["wait_s"] <= found["latency_s"] < 60


def test_prediction_has_the_jobs_that_failed(connection: db.Connection, examples: dict[str, int]) -> None:
    assert examples
    failing = submit(connection)
    token = claim(connection, failing)[failing]
    connection.execute("SELECT loracomp.fail_jobs(%s, %s, '{code}', '{words}', '{f}')", [[failing], [token]])
    connection.execute("SELECT loracomp.cancel_job(%s)", [submit(connection)])
    rows = connection.execute("SELECT * FROM bi.prediction ORDER BY job_id").fetchall()
    assert [(row["status"], row["error_code"], row["is_correct"]) for row in rows] == [
        ("failed", "code", None),
        ("cancelled", "cancelled", None),
    ]
    failure = one(connection, "SELECT * FROM bi.failure_by_reason")
    assert (failure["reason"], failure["policy"], failure["jobs"]) == ("code", "default", 1)


def test_usage_of_tasks(connection: db.Connection, examples: dict[str, int]) -> None:
    answer(connection, submit(connection), examples)
    answer(connection, submit(connection), examples, composed_tasks=["rte"], adapter_weights=[1])
    rows = connection.execute("SELECT * FROM bi.task_usage_by_day ORDER BY task").fetchall()
    assert [(row["task"], row["jobs"]) for row in rows] == [("mnli", 1), ("rte", 2)]
    assert [row["mean_weight"] for row in rows] == pytest.approx([0.38, 0.81])
    assert [row["share"] for row in rows] == pytest.approx([0.19, 0.81])
    adapters = connection.execute("SELECT * FROM bi.composed_adapter ORDER BY job_id, place").fetchall()
    assert [(row["adapter"], row["version"], row["strategy"]) for row in adapters] == [
        ("rte", 1, "linear"),
        ("mnli", 1, "linear"),
        ("rte", 1, "linear"),
    ]


def test_accuracy(connection: db.Connection, examples: dict[str, int]) -> None:
    connection.execute("INSERT INTO loracomp.evaluation (name) VALUES ('weekly')")
    asked = {"expected": "yes", "task": "rte", "evaluation": "weekly"}
    for output in ("yes", "yes", "no"):
        answer(connection, submit(connection, **asked), examples, output=output)
    connection.execute("SELECT loracomp.cancel_job(%s)", [submit(connection, **asked)])
    answer(connection, submit(connection), examples)
    found = one(connection, "SELECT * FROM bi.accuracy")
    assert (found["evaluation"], found["own_task"], found["policy"]) == ("weekly", "rte", "default")
    assert (found["asked"], found["n"], found["correct"]) == (4, 3, 2)
    interval = binomtest(2, 3).proportion_ci(method="wilson")
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert (found["accuracy_low"], found["accuracy_high"]) == pytest.approx((interval.low, interval.high), abs=1e-6)


def test_wilson_interval_against_scipy(connection: db.Connection) -> None:
    statement = "SELECT i.* FROM bi.wilson_interval(%s, %s) AS i"
    for hits, n in [(0, 1), (1, 1), (0, 50), (50, 50), (7, 10), (7095, 10000)]:
        interval = binomtest(hits, n).proportion_ci(method="wilson")
        found = one(connection, statement, [hits, n])
        assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high), abs=1e-6)
    assert one(connection, statement, [0, 0]) == {"low": 0, "high": 1}


def test_health_of_the_queue_is_that_of_loracomp(connection: db.Connection, examples: dict[str, int]) -> None:
    answer(connection, submit(connection), examples)
    submit(connection)
    # In one statement: ages grow from one to the next.
    rows = connection.execute("TABLE loracomp.queue_health UNION ALL TABLE bi.queue_health").fetchall()
    assert len(rows) == 2
    assert all(left == right for left, right in pairwise(rows))
