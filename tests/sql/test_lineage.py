"""Who used what, what erasing removes and what it leaves, and how a policy looked on a day."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from answers_data import answer_all, as_alice, ask
from job_data import BASE, add_base_model, prediction_row, record, wait_for_a_lock
from loracomp.database import connections as db
from people_data import answer, claim, load, one, submit
from people_fixtures import connect, login, values
from routing_data import add_adapter

REPORT = "SELECT what, rows, names FROM loracomp.{}"
TEXTS = """
SELECT string_agg(t::text, '|') AS text FROM (
    SELECT to_jsonb(j)::text FROM loracomp.job AS j UNION ALL SELECT to_jsonb(p)::text FROM loracomp.prediction AS p
    UNION ALL SELECT to_jsonb(e)::text FROM loracomp.example AS e
    UNION ALL SELECT to_jsonb(a)::text FROM loracomp.audit_event AS a
) AS x (t)
"""


@pytest.fixture
def examples(connection: db.Connection) -> dict[str, int]:
    return load(connection)


def report(connection: db.Connection, call: str) -> dict[str, tuple[int, str | None]]:
    return {row["what"]: (row["rows"], row["names"]) for row in connection.execute(REPORT.format(call).encode())}


def test_erasing_an_example_leaves_its_id_alone(connection: db.Connection, examples: dict[str, int]) -> None:
    erased = examples["rte/train#1"]
    connection.execute("UPDATE loracomp.example SET prompt = 'SECRET words' WHERE id = %s", [erased])
    connection.execute(
        "INSERT INTO loracomp.example_embedding SELECT id, task_id, array_fill(1, '{832}')::vector"
        " FROM loracomp.example WHERE id = %s",
        [erased],
    )
    asking = submit(connection, "SECRET words", task="rte", expected="SECRET", example_id=erased)
    answer(connection, asking, {"mnli/train#1": examples["mnli/train#1"]}, output="SECRET answer")
    using = submit(connection)
    answer(connection, using, examples)
    assert report(connection, f"erase_example({erased})") == {
        "example deleted": (1, "rte/train#1"),
        "jobs deleted": (1, None),
        "of them unfinished": (0, None),
        "answers with their traces deleted": (1, None),
        "events of these jobs kept, without words": (3, None),  # claimed, answered, deleted
        "traces kept, which name its id": (1, None),
        "adapters of its task kept, which may have been trained on it": (1, "rte@1 (active)"),
    }
    assert "SECRET" not in one(connection, TEXTS)["text"]
    event = one(connection, "SELECT * FROM loracomp.audit_event WHERE entity = 'example' AND action = 'delete'")
    assert (event["entity_id"], event["entity_name"], event["reason"]) == (erased, "rte", "erase_example")
    assert event["before"]["ids"] == [erased]
    trace = one(connection, "SELECT prompt FROM loracomp.retrieved_example WHERE example_id = %s", [erased])
    assert trace == {"prompt": None}
    with pytest.raises(psycopg.errors.NoDataFound, match="there is no example"):
        connection.execute("SELECT loracomp.erase_example(%s)", [erased])


def test_erasing_a_submitter_leaves_events_alone(database: str, logins: None) -> None:
    with (
        db.connect(database) as owner,
        connect(database, "alice") as alice,
        connect(database, "bob") as bob,
        connect(database, "adam") as adam,
    ):
        examples = load(owner)
        words = {"tags": '{"t": "SECRET"}', "idempotency_key": "SECRET"}
        answer(owner, submit(alice, "SECRET prompt", **words), examples, output="SECRET answer")
        submit(alice, "SECRET too", choices=["SECRET", "b"], run_at="3000-01-01")
        cancelled = submit(alice, "SECRET three")
        alice.execute("SELECT loracomp.cancel_job(%s, 'SECRET reason')", [cancelled])
        kept = submit(bob, "bob's")
        owner.execute("SELECT loracomp.refresh_reports()")
        found = report(adam, f"erase_submitter('{login('alice')}')")
        assert found["jobs deleted"] == (3, None)
        assert found["of them unfinished"] == (1, None)
        assert found["answers with their traces deleted"] == (1, None)
        assert found["events of these jobs kept, without words"][0] == 6
        assert found["rows of reports deleted"] == (2, "bi.jobs_by_day")
        assert values(owner, "SELECT id FROM loracomp.job") == {kept}
        owner.execute("SELECT loracomp.refresh_reports()")
        assert values(owner, "SELECT submitted_by FROM bi.cost_by_submitter") == set()
        assert "SECRET" not in one(owner, TEXTS)["text"]
        event = one(owner, "SELECT * FROM loracomp.audit_event WHERE entity = 'submitter'")
        assert (event["actor"], event["entity_name"]) == (login("adam"), login("alice"))
        assert event["before"] == {"rows": 3, "predictions": 1}
        nothing = report(adam, "erase_submitter('')")
        assert set(nothing.values()) == {(0, None)}
        submit(alice, "alice may go on")


EVERYTHING = """
SELECT format('SELECT %L AS place, to_jsonb(t)::text AS text FROM %s AS t', c.oid::regclass, c.oid::regclass) AS read
FROM pg_class AS c
WHERE c.relnamespace::regnamespace::text IN ('loracomp', 'loracomp_parts', 'bi') AND c.relkind IN ('r', 'm')
UNION ALL
SELECT $$SELECT oid::regprocedure::text, prosrc FROM pg_proc WHERE pronamespace = 'loracomp_parts'::regnamespace$$
UNION ALL
SELECT $$SELECT oid::regclass::text, pg_get_viewdef(oid) FROM pg_class WHERE relkind = 'v' AND oid > 16383$$
UNION ALL
SELECT $$SELECT classoid::regclass::text, description FROM pg_description$$
"""
SECRETS = """
CREATE TABLE secrets (key text PRIMARY KEY, body text);
INSERT INTO secrets SELECT 'SECRET key ' || i, 'SECRET row ' || i FROM generate_series(1, 9) AS i;
SELECT loracomp.create_answers('answered', 'secrets', 'SECRET words: {body}',
    choices => '{SECRET a,b}', tags => '{"t": "SECRET"}');
"""
OF_CLOSED_DAYS = "rows of reports of closed days kept, with tags and choices of all submitters"


def places_of(owner: db.Connection, words: str) -> set[str]:
    """Where a text stands: in which tables of the catalog, or in what was made for declarations."""
    found: set[str] = set()
    for row in owner.execute(EVERYTHING).fetchall():
        read = f"SELECT DISTINCT place FROM ({row['read']}) AS t (place, text) WHERE strpos(text, %s) > 0"
        found |= values(owner, read, [words])
    return {place.removeprefix("loracomp.") for place in found}


@pytest.fixture
def declared(database: str, connection: db.Connection, logins: None) -> Iterator[db.Connection]:
    """Alice, who has declared answers to secrets: they have come, and some were corrected, asked again and reported."""
    add_base_model(connection)
    connection.execute("SELECT loracomp.set_reported_tags('{t}')")
    with as_alice(database) as alice:
        alice.execute(SECRETS)
        answer_all(connection, "SECRET a")
        connection.execute("UPDATE loracomp.job SET finished_at = now() - interval '9 days'")
        connection.execute("SELECT loracomp.purge_jobs('5 days')")
        alice.execute("UPDATE secrets SET body = body || ' changed' WHERE key < 'SECRET key 6'")
        answer_all(connection, "SECRET a")
        alice.execute("UPDATE answered SET correct = 'b' WHERE key < 'SECRET key 4'")
        with connect(database, "adam") as adam:
            adam.execute("SELECT loracomp.correct_row('answered', '{SECRET key 5}', 'SECRET a')")
            adam.execute(
                "INSERT INTO loracomp.job (prompt, choices, task, expected, example_id)"
                " SELECT e.prompt, e.choices, t.name, e.label, e.id FROM loracomp.example AS e"
                " JOIN loracomp.task AS t ON t.id = e.task_id WHERE t.name LIKE 'answers/%'"
            )
        connection.execute("SELECT loracomp.refresh_reports()")
        alice.execute("UPDATE secrets SET body = 'SECRET hint' WHERE key = 'SECRET key 9'")
        submit(alice, "SECRET of her own", run_at="3000-01-01")
        yield alice


def test_erasing_a_submitter_leaves_nothing_of_what_it_declared(
    database: str, connection: db.Connection, declared: db.Connection
) -> None:
    tables = {"answer_row", "answer_hint", "example", "declaration", "job", "answers_by_tag"}
    assert tables < places_of(connection, "SECRET")
    with connect(database, "adam") as adam:
        found = report(adam, f"erase_submitter('{login('alice')}')")
    assert found["declarations deleted, with their answers and corrections"] == (1, "public.answered")
    assert found["declarations kept, but emptied and paused"] == (0, None)
    assert found["rows of reports deleted until they are refreshed"] == (1, "bi.answers_by_tag")
    assert found[OF_CLOSED_DAYS] == (1, "bi.answers_by_tag")
    closed = "SELECT DISTINCT o.is_closed FROM loracomp.answers_by_tag JOIN loracomp.report_day AS o USING (day)"
    for _ in range(2):
        assert places_of(connection, "SECRET") == {"answers_by_tag"}
        assert values(connection, closed) == {True}
        connection.execute("SELECT loracomp.refresh_reports()")
    declared.execute("INSERT INTO secrets VALUES ('SECRET key 10', 'SECRET')")  # her table is hers, and nothing asks
    assert ask(connection) == {}
    connection.execute("""SELECT loracomp.erase_jobs(tags => '{"t": "SECRET"}')""")
    assert places_of(connection, "SECRET") == set()


def test_erasing_jobs_says_that_corrections_stay_until_their_rows_are_deleted(
    connection: db.Connection, declared: db.Connection
) -> None:
    kept = "rows of declarations kept, with their keys and corrections"
    assert report(declared, """erase_jobs(tags => '{"t": "SECRET"}')""")[kept] == (5, "public.answered")
    assert "SECRET row 1" in str(values(connection, "SELECT prompt FROM loracomp.example"))
    declared.execute("DELETE FROM secrets")
    ask(connection)
    assert {"example", "answer_row", "answer_hint"} & places_of(connection, "SECRET") == set()


def test_a_declaration_that_others_depend_on_is_emptied_and_paused(
    database: str, connection: db.Connection, declared: db.Connection
) -> None:
    task = one(connection, "SELECT name FROM loracomp.task WHERE name LIKE 'answers/%'")["name"]
    add_adapter(connection, task, base_model=BASE)
    declared.execute("CREATE VIEW dependent AS SELECT * FROM answered")
    with connect(database, "adam") as adam:
        found = report(adam, f"erase_submitter('{login('alice')}')")
    why = "public.answered (cannot drop view public.answered because other objects depend on it)"
    assert found["declarations kept, but emptied and paused"] == (1, why)
    assert found["adapters kept, which were trained on its corrections"] == (1, f"{task}@1")
    assert {"declaration"} < places_of(connection, "SECRET")  # its prompt, choices and tags, and what was made of these
    assert places_of(connection, "SECRET key") == places_of(connection, "SECRET row") == set()
    assert values(declared, "SELECT status FROM dependent") == {"waiting"}
    assert ask(connection) == {}
    declared.execute("SELECT loracomp.alter_answers('answered', paused => false)")
    assert len(ask(connection)) == 9


def test_an_open_transaction_of_the_submitter_does_not_stop_its_erasure(
    database: str, connection: db.Connection, declared: db.Connection
) -> None:
    with connect(database, "adam") as adam, declared.transaction():
        declared.execute("SELECT FROM secrets")
        found = report(adam, f"erase_submitter('{login('alice')}')")
    why = "public.answered (canceling statement due to lock timeout)"
    assert found["declarations kept, but emptied and paused"] == (1, why)
    assert places_of(connection, "SECRET key") == places_of(connection, "SECRET row") == set()


def test_an_open_correction_is_what_an_erasure_says_it_waits_for(
    database: str, connection: db.Connection, declared: db.Connection
) -> None:
    erase = f"erase_submitter('{login('alice')}')"
    with connect(database, "bob") as bob, connect(database, "adam") as adam:
        declared.execute(f"GRANT SELECT, UPDATE (correct) ON answered TO {login('bob')}".encode())
        with bob.transaction():
            bob.execute("UPDATE answered SET correct = 'b' WHERE key = 'SECRET key 7'")
            with pytest.raises(
                psycopg.errors.LockNotAvailable, match=r"has locked rows of public\.answered, as a corr"
            ):
                report(adam, erase)
        report(adam, erase)
    assert places_of(connection, "SECRET key") == places_of(connection, "SECRET row") == set()


def test_corrections_of_others_rows_stay_theirs_and_are_counted(
    database: str, connection: db.Connection, declared: db.Connection
) -> None:
    with connect(database, "bob") as bob, connect(database, "adam") as adam:
        declared.execute(f"GRANT SELECT, UPDATE (correct) ON answered TO {login('bob')}".encode())
        bob.execute("UPDATE answered SET correct = 'b' WHERE key = 'SECRET key 7'")
        bob.execute("UPDATE answered SET correct = 'SECRET a' WHERE key = 'SECRET key 3'")  # Alice's is 'b'
        found = report(adam, f"erase_submitter('{login('bob')}')")
        assert found["corrections kept, which it made in others' declarations"] == (2, "public.answered")
        assert values(declared, "SELECT correct FROM answered WHERE key = 'SECRET key 7'") == {"b"}


def test_the_audit_of_a_correction_names_no_key(connection: db.Connection, declared: db.Connection) -> None:
    jobs = values(connection, "SELECT job_id FROM loracomp.answer_row WHERE correct IS NOT NULL")
    events = connection.execute("SELECT after FROM loracomp.audit_event WHERE reason = 'corrected' ORDER BY id")
    assert [row["after"] for row in events] == [{"job_id": job} for job in sorted(jobs)]


def test_erasing_whom_nobody_knows_is_warned_of(connection: db.Connection) -> None:
    said: list[str | None] = []
    connection.add_notice_handler(lambda notice: said.append(notice.message_primary))
    connection.execute("SELECT loracomp.erase_submitter('nobody_of_that_name')")
    assert said == ["there is no role nobody_of_that_name, and there are no jobs or declarations under that name"]
    connection.execute("SELECT loracomp.erase_submitter(current_user)")
    assert len(said) == 1


def test_erasing_a_persons_jobs_by_number_or_tag_leaves_others_and_no_words(database: str, logins: None) -> None:
    with (
        db.connect(database) as owner,
        connect(database, "alice") as alice,
        connect(database, "bob") as bob,
        connect(database, "adam") as adam,
    ):
        examples = load(owner)
        tagged = {"tags": '{"customer": 7, "product": "SECRET"}', "idempotency_key": "SECRET"}
        answer(owner, submit(alice, "SECRET prompt", **tagged), examples, output="SECRET answer")
        submit(bob, "SECRET too", **tagged, run_at="3000-01-01")
        kept = [
            submit(alice, "another customer", tags='{"customer": 8}', run_at="3000-01-01"),
            submit(alice, "a text", tags='{"customer": "7"}', run_at="3000-01-01"),
            submit(alice, "more than one", tags='{"customer": [7]}', run_at="3000-01-01"),
            submit(bob, "no tags", run_at="3000-01-01"),
        ]
        nothing = report(adam, """erase_jobs(tags => '{"customer": 7, "product": "other"}')""")
        assert nothing["jobs deleted"] == (0, None)
        assert report(adam, """erase_jobs(tags => '{"customer": 7}')""") == {
            "jobs deleted": (2, None),
            "of them unfinished": (1, None),
            "answers with their traces deleted": (1, None),
            "events of these jobs kept, without words": (4, None),  # claimed, answered, and two deleted
            "ids that no job of yours has": (0, None),
        }
        assert values(owner, "SELECT id FROM loracomp.job") == set(kept)
        assert values(owner, "SELECT job_id FROM loracomp.prediction") == set()
        assert "SECRET" not in one(owner, TEXTS)["text"]
        erased = report(adam, f"erase_jobs(ARRAY[{kept[0]}, {kept[0]}, 4711, NULL])")
        assert erased["jobs deleted"] == (1, None)
        assert erased["ids that no job of yours has"] == (1, "4711")
        assert values(owner, "SELECT id FROM loracomp.job") == set(kept[1:])
        events = owner.execute(
            "SELECT actor, action, before FROM loracomp.audit_event"
            " WHERE entity = 'job' AND entity_id IS NULL ORDER BY id"
        )
        assert [tuple(event.values()) for event in events] == [
            (login("adam"), "delete", {"rows": rows, "predictions": predictions})
            for rows, predictions in ((0, 0), (2, 1), (1, 0))
        ]
        reasons = "SELECT reason FROM loracomp.audit_event WHERE entity_id IS NOT NULL AND action = 'delete'"
        assert values(owner, reasons) == {"erase_jobs"}


def test_the_answer_of_a_running_job_that_is_erased_is_dropped(
    database: str, connection: db.Connection, examples: dict[str, int]
) -> None:
    job_id = submit(connection, "SECRET")
    token = claim(connection, job_id)[job_id]
    assert report(connection, f"erase_jobs('{{{job_id}}}')")["of them unfinished"] == (1, None)
    with db.connect(database) as worker:
        renewed = worker.execute("SELECT loracomp.renew_leases(%s, %s, '1 minute')", [[job_id], [token]])
        assert renewed.fetchall() == []
        assert record(worker, {job_id: token}, [prediction_row(job_id)]) == set()
    assert connection.execute("SELECT FROM loracomp.prediction").fetchall() == []


def test_erasing_waits_for_an_answer_that_is_being_written_and_takes_it_along(
    database: str, connection: db.Connection, examples: dict[str, int]
) -> None:
    job_id = submit(connection, "SECRET")
    with db.connect(database) as worker, ThreadPoolExecutor(1) as pool:
        with worker.transaction():
            answer(worker, job_id, examples, output="SECRET")
            erasing = pool.submit(report, connection, f"erase_jobs('{{{job_id}}}'::bigint[])")
            wait_for_a_lock(worker)
        assert erasing.result(60)["answers with their traces deleted"] == (1, None)
    assert "SECRET" not in one(connection, TEXTS)["text"]


def test_erasing_does_not_wait_for_ever_for_somebody_who_keeps_a_job_locked(
    database: str, connection: db.Connection, examples: dict[str, int]
) -> None:
    job_id = submit(connection, "SECRET")
    erasing = "SELECT proname FROM pg_proc CROSS JOIN unnest(proconfig) AS c WHERE c LIKE 'lock_timeout=%'"
    assert {"erase_jobs", "erase_submitter"} <= values(connection, erasing)
    with db.connect(database) as other, other.transaction():
        other.execute("SELECT FROM loracomp.job FOR UPDATE")
        for call, given in (("erase_jobs", f"'{{{job_id}}}'::bigint[]"), ("erase_submitter", "current_user")):
            with pytest.raises(psycopg.errors.LockNotAvailable), connection.transaction():
                connection.execute(f"ALTER FUNCTION loracomp.{call} SET lock_timeout = '100ms'".encode())
                report(connection, f"{call}({given})")
    assert report(connection, f"erase_jobs('{{{job_id}}}'::bigint[])")["jobs deleted"] == (1, None)


def test_a_purge_leaves_one_event(connection: db.Connection) -> None:
    load(connection)
    job_id = submit(connection)
    connection.execute("SELECT loracomp.cancel_job(%s)", [job_id])
    connection.execute("SELECT loracomp.purge_jobs('0', force => true)")
    connection.execute("SELECT loracomp.purge_jobs('0', force => true)")  # nothing left: no event
    rows = connection.execute(
        "SELECT entity, action, reason, coalesce(after, before) ->> 'rows' AS rows FROM loracomp.audit_event"
        " WHERE entity = 'job' ORDER BY id"
    )
    assert [tuple(row.values()) for row in rows] == [("job", "delete", "purge_jobs", "1")]
