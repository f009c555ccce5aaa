"""The bi schema: its numbers are right, its types plain, and it holds nobody's words."""

from itertools import pairwise

import psycopg
import pytest
from scipy.stats import binomtest

from loracomp.database import connections as db
from people_data import answer, claim, fill_every_view, load, one, submit, views

PLAIN = {"bigint", "integer", "text", "boolean", "double precision", "timestamp with time zone", "date"}


JOINS = {
    "prediction": "own_task=dim_task.task top_task=dim_task.task policy=dim_policy.policy "
    "base_model=dim_base_model.base_model",
    "retrieved_example": "task=dim_task.task policy=dim_policy.policy base_model=dim_base_model.base_model",
    "composed_adapter": "task=dim_task.task adapter_id=dim_adapter.adapter_id policy=dim_policy.policy "
    "base_model=dim_base_model.base_model",
}


@pytest.fixture
def examples(connection: db.Connection) -> dict[str, int]:
    return load(connection)


def test_only_plain_types(connection: db.Connection) -> None:
    assert {kind for columns in views(connection).values() for kind in columns.values()} <= PLAIN


def test_nobodys_words(connection: db.Connection) -> None:
    fill_every_view(connection)
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
    assert (found["own_task"], found["has_expected"], found["is_correct"]) == ("mnli", True, True)
    assert (found["nearest_task"], found["nearest_similarity"]) == ("rte", 0.9)
    assert (found["top_task"], found["top_probability"], found["adapter_count"]) == ("rte", 0.62, 2)
    assert (found["composition"], found["router"], found["strategy"]) == ("rte 0.62 + mnli 0.38", "retrieval", "cat")
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


def test_facts_meet_their_dimensions(connection: db.Connection, examples: dict[str, int]) -> None:
    """Each key of each fact is in its dimension exactly once, so that a join neither loses nor doubles rows."""
    asked = {"task": "rte", "expected": "yes", "example_id": 1}
    answer(connection, submit(connection, choices=["yes", "no"], **asked), examples)
    failing = submit(connection)
    token = claim(connection, failing)[failing]
    connection.execute("SELECT loracomp.fail_jobs(%s, %s, '{code}', '{words}', '{f}')", [[failing], [token]])
    for fact, joins in JOINS.items():
        count = one(connection, f"SELECT count(*) AS n FROM bi.{fact}")["n"]
        assert count > 0
        for join in joins.split():
            key, _, dimension = join.partition("=")
            column = dimension.partition(".")[2]
            joined = (
                f"SELECT count(d.{column}) AS n FROM bi.{fact} AS f JOIN bi.{dimension.partition('.')[0]} AS d "
                f"ON f.{key} = d.{column}"
            )
            missing = one(connection, f"SELECT count(*) AS n FROM bi.{fact} WHERE {key} IS NULL")["n"]
            assert one(connection, joined)["n"] == count - missing, f"{fact}.{join}"


def test_retrieved_examples(connection: db.Connection, examples: dict[str, int]) -> None:
    answer(connection, submit(connection), examples)
    rows = connection.execute("SELECT ordinal, example_id, task, similarity FROM bi.retrieved_example").fetchall()
    assert [row["example_id"] for row in rows] == list(examples.values())
    assert [(row["ordinal"], row["task"], row["similarity"]) for row in rows[:2]] == [(1, "rte", 0.9), (2, "rte", 0.8)]


@pytest.mark.parametrize(
    ("index", "view"),
    [
        *(("job_day", view) for view in ("prediction", "job_tag")),
        *(("prediction_day", view) for view in ("composed_adapter", "retrieved_example")),
    ],
)
def test_days_are_found_by_their_index(
    connection: db.Connection, examples: dict[str, int], index: str, view: str
) -> None:
    """The index has the same expression as the views' column day."""
    query = "SELECT c.relname FROM pg_partition_tree(%s::regclass) AS p JOIN pg_class AS c ON c.oid = p.relid"
    names = {index, *(row["relname"] for row in connection.execute(query, [f"loracomp.{index}"]))}
    with connection.transaction(force_rollback=True):
        # Cheaper for the few rows here.
        connection.execute("DROP INDEX loracomp.job_finished")
        connection.execute("SET LOCAL enable_seqscan = off")
        for condition in ("day = '2026-01-01'", "day > current_date - 7"):
            rows = connection.execute(f"EXPLAIN SELECT day FROM bi.{view} WHERE {condition}".encode())
            assert any(f" {name} " in row["QUERY PLAN"] for row in rows for name in names), condition


def test_the_planner_knows_how_many_were_routed(connection: db.Connection, examples: dict[str, int]) -> None:
    """Otherwise the planner expects 1 row in 200 to match, and looks up the job of each prediction one by one."""
    for _ in range(20):
        answer(connection, submit(connection), examples)
    connection.execute("ANALYZE loracomp.prediction")
    query = "EXPLAIN (FORMAT JSON) SELECT FROM loracomp.prediction WHERE policy_settings ->> 'router' = 'retrieval'"
    # An empty partition counts for a row.
    assert one(connection, query)["QUERY PLAN"][0]["Plan"]["Plan Rows"] in {20, 21}


def test_composed_adapters(connection: db.Connection, examples: dict[str, int]) -> None:
    answer(connection, submit(connection), examples)
    answer(connection, submit(connection), examples, composed_tasks=["rte"], adapter_weights=[1])
    adapters = connection.execute("SELECT * FROM bi.composed_adapter ORDER BY job_id, ordinal").fetchall()
    assert [(row["adapter"], row["version"], row["strategy"]) for row in adapters] == [
        ("rte", 1, "cat"),
        ("mnli", 1, "cat"),
        ("rte", 1, "cat"),
    ]


def test_accuracy(connection: db.Connection, examples: dict[str, int]) -> None:
    asked = {"expected": "yes", "task": "rte"}
    for output in ("yes", "yes", "no"):
        answer(connection, submit(connection, **asked), examples, output=output)
    connection.execute("SELECT loracomp.cancel_job(%s)", [submit(connection, **asked)])
    answer(connection, submit(connection), examples)
    connection.execute("SELECT FROM loracomp.refresh_reports()")
    found = one(connection, "SELECT * FROM bi.accuracy_by_day")
    assert (found["own_task"], found["policy"]) == ("rte", "default")
    assert (found["n"], found["correct"]) == (3, 2)


def test_wilson_interval_against_scipy(connection: db.Connection) -> None:
    statement = "SELECT i.* FROM bi.wilson_interval(%s, %s) AS i"
    for hits, n in [(0, 1), (1, 1), (0, 50), (50, 50), (7, 10), (7095, 10000)]:
        interval = binomtest(hits, n).proportion_ci(method="wilson")
        found = one(connection, statement, [hits, n])
        assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high), abs=1e-6)
    assert one(connection, statement, [0, 0]) == {"low": 0, "high": 1}
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="hits must be between 0 and 5, and is 10"):
        connection.execute(statement, [10, 5])


def test_health_of_the_queue_is_that_of_loracomp(connection: db.Connection, examples: dict[str, int]) -> None:
    answer(connection, submit(connection), examples)
    submit(connection)
    # In one statement: ages grow from one to the next.
    rows = connection.execute("SELECT *, now() FROM loracomp.queue_health UNION ALL TABLE bi.queue_health").fetchall()
    assert len(rows) == 2
    assert all(left == right for left, right in pairwise(rows))
