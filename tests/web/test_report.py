"""The report: from schema bi alone, as one file, without anybody's words."""

import pytest

from demo_fixtures import execute
from loracomp.database import connections as db
from loracomp.errors import NotFoundError, UsageError
from loracomp.web.render import self_contained
from loracomp.web.report import heat_map, read_report
from people_data import claim, fill_every_view, one, submit
from people_fixtures import connect


@pytest.fixture
def analyst(connection: db.Connection, database: str, logins: None) -> db.Connection:
    """On a database in which each view of bi has rows; anybody's words are SECRET."""
    fill_every_view(connection)
    return connect(database, "ana")


def test_an_analyst_gets_all_but_what_people_wrote(analyst: db.Connection) -> None:
    with analyst:
        shown = read_report(analyst, 7, tag="country=DE")
    page = self_contained("report.html", **shown)
    assert "SECRET" not in page.replace("SECRET-output", "")  # the choice that was the answer, of a reported tag
    assert [day["succeeded"] for day in shown["days"]] == [0] * 6 + [1] and shown["days"][-1]["failed"] == 1
    assert shown["failures"] == [{"reason": "code", "jobs": 1, "found": 1}]
    assert ">1 job</text>" in page and "1 jobs" not in page
    by_day, _, now = page.partition("<h2>Now</h2>")  # what is as old as the refresh, and what is not
    assert "refresh" in by_day and "Failed jobs by reason" in by_day and "Adapters used together" in now
    assert {row["policy"]: row["n"] for row in shown["accuracy"]} == {
        "own_task": 1, "default": 1, "base": 1, "measured": 1
    }  # fmt: skip
    assert [row["pair"] for row in shown["companions"]] == ["mnli + rte"]
    assert shown["declared"] is None  # he may not list declarations
    for said in (
        "Ended jobs by day",
        "Time to answer",
        "95th percentile",
        "Failed jobs by reason",
        "95 % intervals",
    ):
        assert said in page
    assert page.count('class="plus4"') > 0 and len(page) < 2_000_000


def test_a_job_that_used_many_adapters_adds_few_pairs(analyst: db.Connection, connection: db.Connection) -> None:
    """Counting all pairs of a hundred adapters took a minute, which is more than a page has."""
    connection.execute(
        "UPDATE loracomp.prediction AS p SET composed_tasks = m.tasks, adapter_ids = m.ids, adapter_sha256 = m.digests,"
        " adapter_weights = m.weights"
        " FROM (SELECT array_agg('t' || k) AS tasks, array_agg(k) AS ids, array_agg(repeat('a', 64)) AS digests,"
        " array_agg(1.0::float8 / 100) AS weights FROM generate_series(1, 100) AS k) AS m WHERE p.adapter_ids <> '{}'"
    )
    with analyst:
        assert {row["found"] for row in read_report(analyst, 7)["companions"]} == {8 * 7 / 2}


def nine_days_ago(connection: db.Connection) -> object:
    return one(connection, "SELECT (now() AT TIME ZONE 'UTC')::date - 9 AS day")["day"]


def test_failures_of_evaluations_are_not_counted(analyst: db.Connection, connection: db.Connection) -> None:
    asking = submit(connection, task="rte", expected="yes")
    token = claim(connection, *waiting(connection))[asking]
    connection.execute("SELECT loracomp.fail_jobs(%s, %s, '{other}', '{words}', '{f}')", [[asking], [token]])
    connection.execute("SELECT loracomp.refresh_reports()")
    with analyst:
        assert [row["reason"] for row in read_report(analyst, 7)["failures"]] == ["code"]


def waiting(connection: db.Connection) -> list[int]:
    return [row["id"] for row in connection.execute("SELECT id FROM loracomp.job WHERE status = 'queued'")]


def test_weights_that_are_all_zero_break_no_report(analyst: db.Connection, connection: db.Connection) -> None:
    connection.execute("UPDATE loracomp.prediction SET adapter_weights = '{0,0}' WHERE adapter_weights <> '{}'")
    connection.execute("UPDATE loracomp.report_day SET jobs = NULL")
    connection.execute("SELECT loracomp.refresh_reports()")
    with analyst:
        shown = read_report(analyst, 7)
    assert {row["share"] for row in shown["usage"]} == {0}
    assert "Adapters by share" in self_contained("report.html", **shown)


def test_days_that_were_not_asked_for_are_not_counted(analyst: db.Connection, connection: db.Connection) -> None:
    connection.execute("SET session_replication_role = replica")
    connection.execute(
        "UPDATE loracomp.job SET finished_at = finished_at - interval '9 days' WHERE finished_at IS NOT NULL"
    )
    connection.execute("SELECT loracomp.refresh_reports()")
    with analyst:
        assert {day["total"] for day in read_report(analyst, 7)["days"]} == {0}
        assert [day["day"] for day in read_report(analyst, 10)["days"] if day["total"]] == [nine_days_ago(analyst)]
        with pytest.raises(UsageError, match="days must be between"):
            read_report(analyst, 0)
    page = self_contained("report.html", **read_report(connection, 7))
    assert "No jobs ended on these days." in page
    with pytest.raises(NotFoundError, match="nope is not a declaration of yours"):
        read_report(connection, 7, answers="nope")


def test_a_list_that_is_cut_says_how_much_more_there_is(connection: db.Connection, analyst: db.Connection) -> None:
    connection.execute(
        "INSERT INTO loracomp.jobs_by_day SELECT d.day, d.submitted_by, d.policy, d.base_model, false,"
        " d.kind, 'failed', 'reason ' || i, 1, 0, 0, 0, 0, 0"
        " FROM (SELECT * FROM loracomp.jobs_by_day LIMIT 1) AS d, generate_series(1, 14) AS i"
    )
    with analyst:
        page = self_contained("report.html", **read_report(analyst, 7))
    assert page.count(">1 job</text>") == 12 and "and 3 more</text>" in page


def test_a_heat_map_has_the_gains_of_adapters_on_tasks() -> None:
    def row(adapter: str, task: str, gain: float) -> dict[str, object]:
        return {"adapter": adapter, "adapter_task": task, "task": task, "mean_gain": gain, "n": 3}

    heat = heat_map([row("a@1", "x", 0.5), row("a@1", "y", -1.0), row("b@1", "y", 0.25)])
    rows = [("a@1", [0.5, -1.0]), ("b@1", [None, 0.25])]
    assert heat == {"tasks": ["x", "y"], "rows": rows, "largest": 1.0, "more": (0, 0)}
    many = heat_map([row(f"a{i}", f"t{j}", 1.0) for i in range(110) for j in range(50) if j < 30 or i])
    assert (len(many["tasks"]), len(many["rows"]), len(many["rows"][0][1]), many["more"]) == (24, 100, 24, (10, 26))
    assert all(int(task[1:]) < 30 for task in many["tasks"])  # those on which most were measured


@pytest.mark.model
def test_the_command_prints_a_file(demo: dict[str, str]) -> None:
    page = execute(["loracomp", "report", "--days", "30", "--tag", "show"], demo)
    assert page.startswith("<!doctype html>") and "How much each adapter helps on each task" in page
