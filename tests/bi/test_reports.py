"""Ready answers of bi: their numbers against other libraries', and how the heavy ones are refreshed."""

from collections.abc import Callable

import numpy as np
import pytest
from psycopg import errors
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy

from loracomp.database import connections as db
from people_data import answer, claim, load, one, submit
from people_fixtures import connect, values


@pytest.fixture
def examples(connection: db.Connection) -> dict[str, int]:
    return load(connection)


def answer_on(connection: db.Connection, examples: dict[str, int], days_ago: int, **columns: object) -> int:
    """A job that was answered that many days ago; its number."""
    job_id = submit(connection)
    answer(connection, job_id, examples, **columns)
    for table, column, key in (("job", "finished_at", "id"), ("prediction", "created_at", "job_id")):
        connection.execute(
            f"UPDATE loracomp.{table} SET {column} = now() - make_interval(days => %s) WHERE {key} = %s".encode(),
            [days_ago, job_id],
        )
    return job_id


def mixed(**probabilities: float) -> dict[str, object]:
    """Columns of a prediction with these tasks' probabilities, all of them inside the mix."""
    tasks, shares = list(probabilities), list(probabilities.values())
    return {
        "tasks": tasks,
        "probabilities": shares,
        "weights": shares,
        "composed_tasks": tasks,
        "adapter_weights": shares,
    }


def refresh(connection: db.Connection) -> int:
    """Refresh all reports; returns the number of days that were computed."""
    (row,) = connection.execute("SELECT * FROM loracomp.refresh_reports()").fetchall()
    return row["days"]


# What they say.


def test_drift_and_entropy_against_scipy(connection: db.Connection, examples: dict[str, int]) -> None:
    answer_on(connection, examples, 10, **mixed(mnli=1.0))
    answer_on(connection, examples, 3, **mixed(rte=0.9, mnli=0.1))
    answer_on(connection, examples, 2, **mixed(rte=1.0))
    answer_on(connection, examples, 0, **mixed(rte=0.25, mnli=0.75))
    answer_on(connection, examples, 0, **mixed(mnli=1.0))
    refresh(connection)
    rows = connection.execute("SELECT * FROM bi.routing_drift ORDER BY day").fetchall()
    assert [(row["jobs"], row["week_before_jobs"]) for row in rows] == [(1, 0), (1, 1), (1, 1), (2, 2)]
    assert rows[0]["drift"] is None
    distances = [([0.9, 0.1], [0, 1]), ([1, 0], [0.9, 0.1]), ([0.125, 0.875], [0.95, 0.05])]
    assert [row["drift"] for row in rows[1:]] == pytest.approx([jensenshannon(p, q, 2) ** 2 for p, q in distances])
    assert rows[3]["entropy_bits"] == pytest.approx(entropy([0.25, 0.75], base=2) / 2)
    assert rows[3]["mix_entropy_bits"] == pytest.approx(entropy([0.125, 0.875], base=2))


def test_jobs_that_test_a_policy_are_left_out(connection: db.Connection, examples: dict[str, int]) -> None:
    asked = {"task": "rte", "expected": "yes"}
    answer(connection, submit(connection, choices=["yes", "no"], **asked), examples)
    refresh(connection)
    for view in ("routing_drift", "adapter_usage_by_day", "latency_by_day"):
        assert values(connection, f"SELECT count(*) FROM bi.{view}") == {0}
    assert values(connection, "SELECT has_expected FROM bi.jobs_by_day") == {True}
    assert values(connection, "SELECT jobs FROM bi.cost_by_submitter") == {1}


def test_adapters_jobs_and_weights(connection: db.Connection, examples: dict[str, int]) -> None:
    answer_on(connection, examples, 0, **mixed(rte=0.75, mnli=0.25))
    answer_on(connection, examples, 0, **mixed(rte=1.0))
    answer_on(connection, examples, 0, **mixed(mnli=1.0))
    alone = {"tasks": ["rte"], "probabilities": [1], "weights": [0], "composed_tasks": [], "adapter_weights": []}
    answer_on(connection, examples, 0, **alone, fallback="nearest example below min_similarity")
    refresh(connection)
    rows = connection.execute("SELECT * FROM bi.adapter_usage_by_day ORDER BY adapter").fetchall()
    assert [(row["adapter"], row["task"], row["jobs"]) for row in rows] == [("mnli@1", "mnli", 2), ("rte@1", "rte", 2)]
    assert [row["weight"] for row in rows] == pytest.approx([1.25, 1.75])
    assert one(connection, "SELECT routed, fell_back FROM bi.jobs_by_day") == {"routed": 4, "fell_back": 1}


@pytest.mark.parametrize(
    "change",
    ["batch_size = 0", *(f"timings = '{{\"encode\": {value}}}'" for value in ("[1]", '"1"', "{}", "null", "1e300"))],
)
def test_what_reports_could_not_reckon_with_is_not_stored(
    connection: db.Connection, examples: dict[str, int], change: str
) -> None:
    answer(connection, submit(connection), examples)
    with pytest.raises(errors.CheckViolation, match=r"batch_size_must_be_positive|timings_must_be_numbers_by_step"):
        connection.execute(f"UPDATE loracomp.prediction SET {change}".encode())


def test_latency_against_numpy(connection: db.Connection, examples: dict[str, int]) -> None:
    times = [5, 80, 20, 40, 11]
    for milliseconds in times:
        answer_on(connection, examples, 0, timings={"encode": 1, "route": 2, "predict": milliseconds})
    connection.execute("UPDATE loracomp.job SET run_at = finished_at - interval '3 s', claimed_at = finished_at")
    connection.execute("UPDATE loracomp.job SET created_at = run_at")
    refresh(connection)
    rows = {row["step"]: row for row in connection.execute("SELECT * FROM bi.latency_by_day")}
    assert set(rows) == {"queue", "encode", "route", "predict", "total"}
    for percent in (50, 95, 99):
        assert rows["predict"][f"p{percent}_ms"] == pytest.approx(np.percentile(times, percent))
    assert rows["predict"]["n"] == 5
    assert rows["queue"]["p50_ms"] == rows["total"]["p50_ms"] == pytest.approx(3000)


def test_accuracy_by_day(connection: db.Connection, examples: dict[str, int]) -> None:
    for days_ago, output in ((3, "yes"), (0, "yes"), (0, "no"), (0, "yes")):
        job_id = submit(connection, expected="yes", task="rte")
        answer(connection, job_id, examples, output=output)
        connection.execute(
            "UPDATE loracomp.job SET finished_at = now() - make_interval(days => %s) WHERE id = %s", [days_ago, job_id]
        )
    refresh(connection)
    earlier, today = connection.execute("SELECT * FROM bi.accuracy_by_day ORDER BY day").fetchall()
    assert (earlier["n"], earlier["correct"]) == (1, 1)
    assert (today["own_task"], today["n"], today["correct"]) == ("rte", 3, 2)


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ("UPDATE loracomp.task SET name = 'entailment' WHERE name = 'rte'", "entailment"),
        ("SELECT loracomp.delete_task('rte', force => true)", None),
    ],
)
def test_accuracy_shows_tasks_as_the_jobs_do(
    connection: db.Connection, examples: dict[str, int], change: str, shown: str | None
) -> None:
    job_id = submit(connection, expected="yes", task="rte")
    answer(connection, job_id, examples, output="yes")
    connection.execute("UPDATE loracomp.job SET finished_at = now() - interval '3 days'")
    refresh(connection)
    connection.execute(change.encode())
    refresh(connection)
    assert values(connection, "SELECT own_task FROM bi.accuracy_by_day") == {shown}


def test_cost(connection: db.Connection, examples: dict[str, int]) -> None:
    for batch_size in (1, 4):
        timings = {"encode": 100, "route": 100, "predict": 600, "share": 800 / batch_size}
        answer_on(connection, examples, 0, timings=timings, batch_size=batch_size)
    failing = submit(connection)
    token = claim(connection, failing)[failing]
    connection.execute("SELECT loracomp.fail_jobs(%s, %s, '{code}', '{words}', '{f}')", [[failing], [token]])
    refresh(connection)
    found = one(connection, "SELECT * FROM bi.cost_by_submitter")
    assert (found["submitted_by"], found["jobs"]) == ("postgres", 3)
    assert (found["prompt_tokens"], found["output_tokens"]) == (24, 2)
    assert found["compute_s"] == pytest.approx(0.8 + 0.2)


def test_jobs_by_day_counts_what_bi_prediction_lists(connection: db.Connection, examples: dict[str, int]) -> None:
    """The result does not depend on which days were refreshed before."""
    failing = submit(connection)
    token = claim(connection, failing)[failing]
    connection.execute("SELECT loracomp.fail_jobs(%s, %s, '{code}', '{words}', '{f}')", [[failing], [token]])
    connection.execute("UPDATE loracomp.job SET finished_at = now() - interval '3 days'")
    counted = (
        "SELECT day, submitted_by, policy, base_model, has_expected, kind, status, reason, sum(jobs)::bigint AS jobs"
        " FROM bi.jobs_by_day GROUP BY 1, 2, 3, 4, 5, 6, 7, 8 ORDER BY 1, 3, 7"
    )
    listed = (
        "SELECT day, submitted_by, policy, base_model, has_expected, kind, status,"
        " error_code AS reason, count(*) AS jobs FROM bi.prediction GROUP BY 1, 2, 3, 4, 5, 6, 7, 8 ORDER BY 1, 3, 7"
    )
    for days_ago, policy in ((2, "default"), (1, "linear"), (0, "default"), (0, "base")):
        refresh(connection)
        answer_on(connection, examples, days_ago, policy=policy)
    refresh(connection)
    answer_on(connection, examples, 0)
    connection.execute("SELECT loracomp.cancel_job(%s)", [submit(connection)])
    refresh(connection)
    rows = connection.execute(counted).fetchall()
    assert rows == connection.execute(listed).fetchall()
    assert sum(row["jobs"] for row in rows) == 7


# How they are refreshed.

COUNT = "SELECT coalesce(sum(jobs), 0) FROM bi.adapter_usage_by_day"
WITH_A_DAY_FUNCTION = """
SELECT c.relname FROM pg_class AS c JOIN pg_proc AS p ON p.prorettype = c.reltype AND p.proname = c.relname || '_on'
WHERE c.relnamespace = 'loracomp'::regnamespace
"""


def test_they_stay_as_they_were_until_refreshed_and_say_since_when(
    connection: db.Connection, examples: dict[str, int]
) -> None:
    answer(connection, submit(connection), examples)
    before = one(connection, "SELECT refreshed_at AS at, age_s AS age FROM bi.report_refresh")
    assert before["age"] >= 0
    assert values(connection, COUNT) == {0}
    rows = connection.execute("SELECT * FROM loracomp.refresh_reports('1 hour')").fetchall()
    assert rows == []
    refresh(connection)
    assert values(connection, COUNT) == {2}
    assert values(connection, "SELECT refreshed_at > %s FROM bi.report_refresh", [before["at"]]) == {True}
    assert values(connection, "SELECT seconds BETWEEN 0 AND 60 FROM bi.report_refresh") == {True}
    shown = "SELECT as_of FROM bi.adapter_usage_by_day UNION SELECT refreshed_at FROM bi.report_refresh"
    assert len(values(connection, shown)) == 1


def test_they_are_refreshed_after_the_clock_has_gone_back(connection: db.Connection) -> None:
    connection.execute("UPDATE loracomp.report_refresh SET refreshed_at = now() + interval '1 day'")
    assert connection.execute("SELECT days FROM loracomp.refresh_reports('1 hour')").fetchone()
    assert connection.execute("SELECT age_s FROM bi.report_refresh").fetchone()["age_s"] < 3600
    assert not connection.execute("SELECT days FROM loracomp.refresh_reports('1 hour')").fetchone()


def test_readers_and_refreshing_do_not_wait_for_each_other(database: str, connection: db.Connection) -> None:
    examples = load(connection)
    answer(connection, submit(connection), examples)
    with db.connect(database) as reader, db.connect(database) as other, reader.transaction():
        for session in (connection, reader, other):
            session.execute("SET statement_timeout = '20s'")
        assert values(reader, COUNT) == {0}
        with connection.transaction():
            refresh(connection)
            assert values(reader, COUNT) == {0}
            assert other.execute("SELECT * FROM loracomp.refresh_reports()").fetchall() == []
        assert values(reader, COUNT) == {2}


def erase(connection: db.Connection, job_id: int) -> None:
    connection.execute("SELECT loracomp.erase_jobs(ids => %s)", [[job_id]])


def delete_by_hand(connection: db.Connection, job_id: int) -> None:
    connection.execute("DELETE FROM loracomp.job WHERE id = %s", [job_id])


def move(connection: db.Connection, job_id: int) -> None:
    """Changes the jobs' end to another time of the same day."""
    connection.execute("UPDATE loracomp.job SET finished_at = finished_at + interval '1 us' WHERE id = %s", [job_id])


@pytest.mark.parametrize("change", [erase, delete_by_hand, move])
def test_only_days_whose_jobs_changed_are_computed_again(
    connection: db.Connection, examples: dict[str, int], change: Callable[[db.Connection, int], None]
) -> None:
    _, changing, _ = (answer_on(connection, examples, days_ago) for days_ago in (4, 4, 2))
    assert refresh(connection) == 2
    assert refresh(connection) == 0
    connection.execute("UPDATE loracomp.jobs_by_day SET jobs = 7")  # to see which rows are written
    answer_on(connection, examples, 0)
    assert refresh(connection) == 1
    change(connection, changing)
    assert refresh(connection) == 1
    left = 2 if change is move else 1
    rows = connection.execute("SELECT jobs FROM bi.cost_by_submitter ORDER BY day").fetchall()
    assert [row["jobs"] for row in rows] == [left, 7, 1]


def test_a_day_whose_jobs_are_all_gone_has_no_rows(connection: db.Connection, examples: dict[str, int]) -> None:
    erased = answer_on(connection, examples, 3)
    assert refresh(connection) == 1
    erase(connection, erased)
    assert (refresh(connection), refresh(connection)) == (1, 0)
    assert values(connection, "SELECT count(*) FROM bi.latency_by_day") == {0}


def test_a_job_that_is_tried_again_leaves_its_day(connection: db.Connection, examples: dict[str, int]) -> None:
    assert examples
    job_id = submit(connection)
    token = claim(connection, job_id)[job_id]
    connection.execute("SELECT loracomp.fail_jobs(%s, %s, '{code}', '{words}', '{f}')", [[job_id], [token]])
    connection.execute("UPDATE loracomp.job SET finished_at = now() - interval '2 days'")
    assert refresh(connection) == 1
    connection.execute("SELECT loracomp.retry_job(%s)", [job_id])
    answer(connection, job_id, examples)
    assert refresh(connection) == 2
    assert values(connection, "SELECT (status, jobs)::text FROM bi.jobs_by_day") == {"(succeeded,1)"}


def test_a_job_whose_transaction_ends_late_is_counted(database: str, connection: db.Connection) -> None:
    examples = load(connection)
    with db.connect(database) as slow, slow.transaction():
        answer(slow, submit(slow), examples)
        refresh(connection)
        assert values(connection, COUNT) == {0}
    assert refresh(connection) == 1
    assert values(connection, COUNT) == {2}


def test_a_refresh_that_is_broken_off_leaves_the_reports_as_they_were(
    connection: db.Connection, examples: dict[str, int]
) -> None:
    answer(connection, submit(connection), examples)
    with connection.transaction(force_rollback=True):
        refresh(connection)
    assert values(connection, COUNT) == {0}
    assert refresh(connection) == 1
    assert values(connection, COUNT) == {2}


def test_new_tags_and_new_names_of_policies_reach_days_that_are_not_closed(
    connection: db.Connection, examples: dict[str, int]
) -> None:
    connection.execute("INSERT INTO loracomp.policy (name) VALUES ('first')")
    for days_ago in (9, 2):
        job_id = submit(connection, tags='{"country": "DE"}', policy="first")
        answer(connection, job_id, examples)
        connection.execute(
            "UPDATE loracomp.job SET finished_at = now() - make_interval(days => %s) WHERE id = %s", [days_ago, job_id]
        )
    connection.execute("SELECT loracomp.purge_jobs('5 days')")
    refresh(connection)
    connection.execute("SELECT loracomp.set_reported_tags('{country}')")
    assert refresh(connection) == 1
    assert values(connection, "SELECT value FROM bi.answers_by_tag") == {"DE"}
    connection.execute("UPDATE loracomp.policy SET name = 'second' WHERE name = 'first'")
    assert refresh(connection) == 1
    rows = connection.execute("SELECT policy FROM bi.cost_by_submitter ORDER BY day").fetchall()
    assert [row["policy"] for row in rows] == ["first", "second"]
    counted = "SELECT policy FROM bi.jobs_by_day ORDER BY day"
    connection.execute("UPDATE loracomp.policy SET name = 'third' WHERE name = 'second'")
    refresh(connection)
    assert [row["policy"] for row in connection.execute(counted)] == ["first", "third"]


def test_a_submitter_who_drops_declarations_lets_no_day_be_computed_again(
    connection: db.Connection, examples: dict[str, int]
) -> None:
    answer(connection, submit(connection), examples)
    refresh(connection)
    connection.execute("CREATE TABLE rows (id integer PRIMARY KEY, body text)")
    connection.execute("SELECT loracomp.create_answers('answered', 'rows', '{body}')")
    connection.execute("SELECT loracomp.drop_answers('answered')")
    assert refresh(connection) == 0


def test_a_name_that_was_given_away_is_another_policys_another_tasks_and_another_models(
    connection: db.Connection, examples: dict[str, int]
) -> None:
    connection.execute("SELECT loracomp.set_policy('first', '{}')")
    answer(connection, submit(connection, policy="first"), examples)
    answer(connection, submit(connection, policy="first", task="rte", expected="yes"), examples)
    refresh(connection)
    assert refresh(connection) == 0
    for table in ("policy", "task", "base_model"):
        name = {"policy": "first", "task": "rte"}.get(table) or one(connection, "SELECT name FROM loracomp.base_model")[
            "name"
        ]
        connection.execute(f"UPDATE loracomp.{table} SET name = 'second' WHERE name = %s".encode(), [name])
    connection.execute("SELECT loracomp.set_policy('first', '{}')")
    connection.execute("SELECT loracomp.add_task('rte', 'another family', '')")
    assert refresh(connection) == 1
    assert refresh(connection) == 0
    named = {
        "jobs_by_day": "policy, base_model",
        "cost_by_submitter": "policy, base_model",
        "accuracy_by_day": "policy, base_model, own_task",
        "adapter_usage_by_day": "policy, base_model",
        "prediction": "policy, base_model",
        "latency_by_day": "base_model",
        "routing_drift": "policy, base_model",
    }
    for view, columns in named.items():
        rows = connection.execute(f"SELECT DISTINCT {columns} FROM bi.{view}".encode()).fetchall()
        assert {name for row in rows for name in row.values()} - {None} == {"second"}, view
    assert values(connection, "SELECT (task, family)::text FROM bi.adapter_usage_by_day") == {
        "(second,other)",
        "(mnli,other)",
    }


def test_no_worker_reports_the_times_that_the_database_measures(
    connection: db.Connection, examples: dict[str, int]
) -> None:
    for step in ("queue", "total"):
        with (
            pytest.raises(errors.CheckViolation, match="timings_must_be_of_known_steps"),
            connection.transaction(),
        ):
            answer(connection, submit(connection), examples, timings={step: 1, "predict": 2})
        connection.execute("SELECT loracomp.cancel_jobs(ids => ARRAY(SELECT id FROM loracomp.job))")


def test_purging_and_erasing_wait_for_a_refresh(database: str, connection: db.Connection) -> None:
    """Otherwise a closed day could be computed again from the jobs that are left, and an erased submitter could come
    back."""
    examples = load(connection)
    answer_on(connection, examples, 3)
    with db.connect(database) as other:
        other.execute("SET lock_timeout = '100ms'")
        for name in ("erase_submitter", "erase_jobs"):
            connection.execute(f"ALTER FUNCTION loracomp.{name} SET lock_timeout = '100ms'".encode())
        with connection.transaction():
            refresh(connection)
            for statement in ("purge_jobs('1 day')", "erase_submitter('x')", "erase_jobs('{1}')"):
                with pytest.raises(errors.LockNotAvailable):
                    other.execute(f"SELECT loracomp.{statement}".encode())
        assert values(other, "SELECT loracomp.purge_jobs('1 day')") == {1}


def test_a_day_is_computed_from_its_own_jobs_alone(connection: db.Connection) -> None:
    """The plan uses the index. A function that is not inlined into the caller's query would be a Function Scan."""
    connection.execute("SET enable_seqscan = off")
    for report in values(connection, WITH_A_DAY_FUNCTION):
        rows = connection.execute(f"EXPLAIN SELECT * FROM loracomp.{report}_on('2024-05-06')".encode()).fetchall()
        plan = "\n".join(row["QUERY PLAN"] for row in rows)
        assert "job_finished" in plan and "2024-05-07" in plan, plan


def test_administrators_refresh_and_nobody_else(database: str, logins: None) -> None:
    """The tables behind the reports contain the names of hidden tasks."""
    with db.connect(database) as owner:
        examples = load(owner)
        answer(owner, submit(owner), examples)
        reports = values(owner, "SELECT unnest(loracomp.reports())")
        assert reports == values(owner, WITH_A_DAY_FUNCTION)
    with connect(database, "adam") as adam:
        refresh(adam)
        assert values(adam, COUNT) == {2}
    for name in ("alice", "wendy", "ana", "nobody"):
        with connect(database, name) as connection:
            statements = [f"SELECT FROM loracomp.{report}" for report in reports]
            statements += [f"DELETE FROM loracomp.{report}" for report in reports]
            statements.append("SELECT loracomp.roll_up('{}')")
            for statement in (*statements, "SELECT loracomp.refresh_reports()"):
                with pytest.raises(errors.InsufficientPrivilege):
                    connection.execute(statement.encode())
