"""Tests which tags and choices analysts see, and what reports keep of purged jobs."""

import json
import random

import pytest
from psycopg import errors

from job_data import prediction_row, record
from loracomp.database import connections as db
from people_data import answer, claim, load, one, submit
from people_fixtures import connect, values

LATE = "SELECT loracomp.purge_jobs('1 day')"


@pytest.fixture
def examples(connection: db.Connection) -> dict[str, int]:
    return load(connection)


def tagged(connection, examples, choice, *, days_ago=0, expected=None, **tags):
    """A job with these tags that was given the choice, so many days ago; its number."""
    asked = {} if expected is None else {"expected": expected, "task": "rte"}
    job_id = submit(connection, choices=["yes", "no"], tags=json.dumps(tags), **asked)
    answer(connection, job_id, examples, output=choice, choice_index=1 + (choice == "no"))
    connection.execute(
        "UPDATE loracomp.job SET finished_at = now() - make_interval(days => %s) WHERE id = %s", [days_ago, job_id]
    )
    return job_id


def report(connection: db.Connection, columns: str, view: str) -> list[tuple]:
    connection.execute("SELECT FROM loracomp.refresh_reports()")
    rows = connection.execute(f"SELECT {columns} FROM bi.{view} ORDER BY {columns}".encode())
    return [tuple(row.values()) for row in rows]


def test_choices_are_counted_by_the_tags_that_an_administrator_lists(database: str, logins: None) -> None:
    with db.connect(database) as owner:
        examples = load(owner)
        tagged(owner, examples, "yes", country="DE", customer="SECRET")
        tagged(owner, examples, "no", country="DE", expected="yes")
        tagged(owner, examples, "yes", country="FR", product={"id": 7})
        answer(owner, submit(owner, tags='{"country": "FR"}'), examples, output="SECRET text")
    with connect(database, "ana") as ana:
        assert values(ana, "SELECT count(*) FROM bi.job_tag") == {0}
        with pytest.raises(errors.InsufficientPrivilege):
            ana.execute("SELECT loracomp.set_reported_tags('{customer}')")
    with connect(database, "adam") as adam:
        adam.execute("SELECT loracomp.set_reported_tags('{country,product}')")
        adam.execute("SELECT FROM loracomp.refresh_reports()")
    columns = "tag, value, choice, n, asked, correct"
    with connect(database, "ana") as ana:
        rows = ana.execute(f"SELECT {columns} FROM bi.answers_by_tag ORDER BY {columns}".encode()).fetchall()
        assert [tuple(row.values()) for row in rows] == [
            ("country", "DE", "no", 1, 1, 0),
            ("country", "DE", "yes", 1, 0, 0),
            ("country", "FR", "yes", 1, 0, 0),
            ("country", "FR", None, 1, 0, 0),
            ("product", '{"id": 7}', "yes", 1, 0, 0),
        ]
        joined = "SELECT count(*) FROM bi.job_tag AS t JOIN bi.prediction AS p USING (job_id) WHERE t.value = 'DE'"
        assert values(ana, joined) == {2}
    with db.connect(database) as owner:
        owner.execute("SELECT loracomp.set_reported_tags('{product}')")
        event = one(owner, "SELECT * FROM loracomp.audit_event WHERE entity = 'reported_tag' AND action = 'delete'")
        assert event["before"] == {"key": "country"}
    with connect(database, "ana") as ana:
        assert values(ana, "SELECT DISTINCT tag FROM bi.answers_by_tag") == {"product"}
        assert values(ana, "SELECT DISTINCT tag FROM bi.job_tag") == {"product"}


@pytest.mark.parametrize("keys", ["NULL", "'{NULL}'", "'{\" \"}'"])
def test_keys_that_are_none_are_refused(connection: db.Connection, keys: str) -> None:
    with pytest.raises(
        (errors.NullValueNotAllowed, errors.CheckViolation), match=r"null|reported_tag_must_not_be_blank"
    ):
        connection.execute(f"SELECT loracomp.set_reported_tags({keys})".encode())


def test_long_tags_and_choices_fit_into_the_report(connection: db.Connection, examples: dict[str, int]) -> None:
    connection.execute("SELECT loracomp.set_reported_tags('{t}')")
    wide = "\N{GRINNING FACE}" * 3000
    job_id = submit(connection, choices=[wide, "b"], tags=json.dumps({"t": wide}))
    answer(connection, job_id, examples, output=wide, choice_index=1)
    connection.execute("UPDATE loracomp.job SET finished_at = now() - interval '3 days'")
    for purge in (False, True):
        if purge:
            connection.execute(LATE)
        assert report(connection, "value, choice, n", "answers_by_tag") == [(wide[:200], wide[:200], 1)]


def test_the_longest_names_fit_into_every_report(connection: db.Connection) -> None:
    """With texts that don't compress, because an index entry takes 2,704 bytes and a report's key has several names."""
    draws = random.Random(7)
    wide = ["".join(chr(draws.randrange(0x20000, 0x2A000)) for _ in range(300)) for _ in range(6)]
    policy, base_model, task, tag, tagged_as, label = wide
    load(connection)
    connection.execute("UPDATE loracomp.base_model SET name = %s", [base_model[:75]])
    connection.execute("UPDATE loracomp.task SET name = %s WHERE name = 'rte'", [task[:75]])
    connection.execute("SELECT loracomp.set_policy(%s, '{}')", [policy[:75]])
    connection.execute("SELECT loracomp.set_reported_tags(%s)", [[tag[:100]]])
    asked = {"policy": policy[:75], "choices": [label, "b"], "tags": json.dumps({tag[:100]: tagged_as})}
    named = {"tasks": [task[:75], "mnli"], "base_model": base_model[:75]}
    for more in ({}, {"task": task[:75], "expected": label, "example_id": 1}):
        job_id = submit(connection, **asked, **more)
        claimed = "SELECT lease_token FROM loracomp.claim_jobs('w', %s, 1, '1 minute')"
        token = one(connection, claimed, [base_model[:75]])["lease_token"]
        row = prediction_row(job_id, output=label, probabilities=[0.6, 0.4], weights=[0.6, 0.4], **named)
        row["policy_settings"] = {"name": policy[:75], "router": "retrieval"}
        assert record(connection, {job_id: token}, [row]) == {job_id}
    failing = submit(connection, **asked)
    token = one(connection, claimed, [base_model[:75]])["lease_token"]
    failed = "SELECT loracomp.fail_jobs(%s, %s, %s, '{error}', '{f}')"
    connection.execute(failed, [[failing], [token], [wide[0][:100]]])
    connection.execute("SELECT loracomp.refresh_reports()")
    assert len(connection.execute("SELECT FROM bi.answers_by_tag").fetchall()) == 1
    assert values(connection, "SELECT max(octet_length(reason)) FROM bi.jobs_by_day") == {400}


REMEMBERED = {
    "cost_by_submitter": "day, submitted_by, policy, base_model, jobs, prompt_tokens, output_tokens, "
    "round(compute_s::numeric, 9)",
    "jobs_by_day": "day, submitted_by, policy, base_model, has_expected, kind, status, reason, jobs, routed, fell_back",
    "accuracy_by_day": "day, own_task, policy, n, correct",
    "answers_by_tag": "day, tag, value, choice, policy, n, asked, correct",
    "routing_drift": "day, policy, jobs, entropy_bits, mix_entropy_bits, week_before_jobs, drift",
    "adapter_usage_by_day": "day, policy, adapter, task, jobs, weight",
    "latency_by_day": "day, step, n, p50_ms, p95_ms, p99_ms",
}


def all_reports(connection: db.Connection) -> dict[str, list[tuple]]:
    return {view: report(connection, columns, view) for view, columns in REMEMBERED.items()}


def test_reports_say_the_same_after_the_jobs_are_purged(connection: db.Connection, examples: dict[str, int]) -> None:
    """Also if a day is purged in two batches, and together with jobs that are still there; percentiles too."""
    connection.execute("SELECT loracomp.set_reported_tags('{country}')")
    for days_ago in (9, 9, 8, 0):
        tagged(connection, examples, "yes", days_ago=days_ago, expected="yes", country="DE")
        tagged(connection, examples, "no", days_ago=days_ago, expected="yes", country="FR")
        tagged(connection, examples, "no", days_ago=days_ago)
    failing = submit(connection, expected="yes", task="mnli")
    token = claim(connection, failing)[failing]
    connection.execute("SELECT loracomp.fail_jobs(%s, %s, '{code}', '{words}', '{f}')", [[failing], [token]])
    connection.execute("UPDATE loracomp.job SET finished_at = now() - interval '9 days' WHERE id = %s", [failing])
    before = all_reports(connection)
    assert all(before.values())
    assert len(before["cost_by_submitter"]) == 3
    assert values(connection, "SELECT loracomp.purge_jobs('1 day', 4)") == {4}
    assert all_reports(connection) == before  # though jobs of closed days are left
    assert values(connection, LATE) == {6}
    assert values(connection, "SELECT count(*) FROM bi.prediction") == {3}
    assert all_reports(connection) == before


def test_purging_computes_what_no_refresh_has_counted(connection: db.Connection, examples: dict[str, int]) -> None:
    """Even if the reports were last refreshed before the purged days."""
    for days_ago in (3, 3, 2, 0):
        tagged(connection, examples, "yes", days_ago=days_ago, expected="yes")
    connection.execute("UPDATE loracomp.report_refresh SET refreshed_at = now() - interval '9 days'")
    assert values(connection, "SELECT loracomp.purge_jobs('1 day', 1)") == {1}
    assert values(connection, LATE) == {2}
    by_day = {
        "SELECT jobs FROM bi.cost_by_submitter ORDER BY day": [2, 1],
        "SELECT n FROM bi.accuracy_by_day ORDER BY day": [2, 1],
    }
    for query, expected in by_day.items():
        assert [count for row in connection.execute(query.encode()) for count in row.values()] == expected, query


def test_the_current_day_is_purged_by_force_alone_and_then_forgotten(
    connection: db.Connection, examples: dict[str, int]
) -> None:
    """Jobs that end later on that day are counted, and purged jobs of earlier days stay counted."""
    tagged(connection, examples, "yes", days_ago=2)
    purged = tagged(connection, examples, "yes")
    assert report(connection, "jobs", "cost_by_submitter") == [(1,), (1,)]
    assert values(connection, "SELECT loracomp.purge_jobs('1 hour')") == {1}
    assert values(connection, "SELECT loracomp.purge_jobs('1 hour')") == {0}
    assert values(connection, "SELECT id FROM loracomp.job") == {purged}
    assert values(connection, "SELECT loracomp.purge_jobs('0', force => true)") == {1}
    assert report(connection, "jobs", "cost_by_submitter") == [(1,)]
    for _ in range(2):
        tagged(connection, examples, "yes")
    assert report(connection, "jobs", "cost_by_submitter") == [(1,), (2,)]


def test_a_day_is_purged_whole_unless_forced(connection: db.Connection, examples: dict[str, int]) -> None:
    """Also by force, reports keep all jobs of a day that is over."""
    early, late = (tagged(connection, examples, "yes") for _ in range(2))
    for job_id, hour in ((early, 0), (late, 23)):
        connection.execute(
            "UPDATE loracomp.job SET finished_at = date_trunc('day', now(), 'UTC') - interval '4 days'"
            " + make_interval(hours => %s, mins => 30) WHERE id = %s",
            [hour, job_id],
        )
    noon = values(
        connection, "SELECT now() - date_trunc('day', now(), 'UTC') + interval '3 days 12 hours' AS age"
    ).pop()
    assert values(connection, "SELECT loracomp.purge_jobs(%s)", [noon]) == {0}
    assert values(connection, "SELECT loracomp.purge_jobs(%s, force => true)", [noon]) == {1}
    assert values(connection, "SELECT id FROM loracomp.job") == {late}
    assert report(connection, "jobs", "cost_by_submitter") == [(2,)]
    assert values(connection, "SELECT loracomp.purge_jobs('1 day')") == {1}
    assert report(connection, "jobs", "cost_by_submitter") == [(2,)]


def test_what_is_erased_is_not_remembered(connection: db.Connection, examples: dict[str, int]) -> None:
    connection.execute("SELECT loracomp.set_reported_tags('{customer}')")
    for customer in (7, 7, 8):
        tagged(connection, examples, "yes", days_ago=3, customer=customer)
    connection.execute(LATE)
    tagged(connection, examples, "yes", customer=7)
    assert report(connection, "value, n", "answers_by_tag") == [("7", 1), ("7", 2), ("8", 1)]
    said: list[str | None] = []
    connection.add_notice_handler(lambda notice: said.append(notice.message_primary))
    connection.execute("SELECT * FROM loracomp.erase_jobs(tags => '{\"custmer\": 7}')")
    rows = connection.execute("SELECT * FROM loracomp.erase_jobs(tags => '{\"customer\": 7}')").fetchall()
    assert said == ["no job has these tags (custmer)"]
    assert tuple(rows[-1].values()) == ("rows of reports until they are refreshed", 1, "bi.answers_by_tag")
    assert report(connection, "value, n", "answers_by_tag") == [("8", 1)]
    connection.execute("SELECT loracomp.erase_submitter(current_user)")
    assert report(connection, "jobs", "cost_by_submitter") == []


def test_every_view_but_dimensions_says_up_to_when_it_counts(connection: db.Connection) -> None:
    views = """
        SELECT c.relname FROM pg_class AS c
        WHERE c.relnamespace = 'bi'::regnamespace AND c.relkind = 'v' AND c.relname NOT LIKE 'dim!_%' ESCAPE '!'
            AND c.relname <> 'report_refresh'
            AND NOT EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attname = 'as_of')
    """
    assert values(connection, views) == set()


def test_a_refreshed_view_lags_behind_a_live_one_and_says_so(
    connection: db.Connection, examples: dict[str, int]
) -> None:
    tagged(connection, examples, "yes", expected="yes")
    connection.execute("SELECT FROM loracomp.refresh_reports()")
    tagged(connection, examples, "yes", expected="yes")
    refreshed = one(connection, "SELECT jobs, as_of FROM bi.cost_by_submitter")
    live = one(connection, "SELECT count(*) AS n, max(as_of) AS as_of FROM bi.prediction")
    assert (refreshed["jobs"], live["n"]) == (1, 2)
    assert (
        refreshed["as_of"] < one(connection, "SELECT max(finished_at) AS at FROM bi.prediction")["at"] < live["as_of"]
    )
