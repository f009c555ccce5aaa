"""A queue that is full refuses, in words, and costs an INSERT next to nothing until then."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from psycopg import errors
from psycopg.conninfo import make_conninfo

from job_data import BASE, add_jobs, claim, clear, shared_database
from loracomp.database import connections as db
from loracomp.database.connections import Connection, translated_errors
from loracomp.errors import RefusedError
from people_fixtures import login

SUBMIT = "SELECT loracomp.submit_job('again', idempotency_key => 'k') AS id"


@pytest.fixture(scope="module")
def database(server: str, template: str, logins: None) -> Iterator[str]:
    with shared_database(server, template) as url:
        yield url


@pytest.fixture
def connection(database: str) -> Iterator[Connection]:
    """The owner's, who is not bound by limits."""
    with db.connect(database) as opened:
        clear(opened)
        limit(opened, None)
        yield opened


@pytest.fixture
def alice(connection: Connection, database: str) -> Iterator[Connection]:
    with db.connect(make_conninfo(database, user=login("alice"))) as opened:
        yield opened


@pytest.fixture
def bob(connection: Connection, database: str) -> Iterator[Connection]:
    with db.connect(make_conninfo(database, user=login("bob"))) as opened:
        yield opened


def limit(connection: Connection, per_submitter: int | None) -> None:
    connection.execute("SELECT loracomp.set_queue_limits(%s)", [per_submitter])


def queued(connection: Connection) -> int:
    (row,) = connection.execute("SELECT count(*) AS n FROM loracomp.job WHERE status = 'queued'")
    return int(row["n"])


def counts(connection: Connection) -> int:
    """How often the queue has been counted for a limit, as the server's statistics of functions tell."""
    connection.execute("SELECT pg_stat_force_next_flush()")
    (row,) = connection.execute(
        "SELECT coalesce(sum(calls), 0) AS n FROM pg_stat_user_functions WHERE funcname = 'count_queued'"
    )
    return int(row["n"])


def test_nothing_is_limited_until_somebody_says_so(connection: Connection, alice: Connection):
    add_jobs(alice, *"abc")
    assert connection.execute("SELECT per_submitter FROM loracomp.queue_limit").fetchall() == [{"per_submitter": None}]


def test_the_last_that_fits_is_taken_and_the_next_refused(connection: Connection, alice: Connection, bob: Connection):
    limit(connection, 3)
    add_jobs(alice, *"abc")
    with pytest.raises(errors.ConfigurationLimitExceeded, match="at most 3 of your jobs may wait") as refused:
        add_jobs(alice, "d")
    assert refused.value.diag.constraint_name == "your_share_of_the_queue_is_full"
    assert "cancel jobs that are not needed" in str(refused.value.diag.message_hint)
    add_jobs(bob, *"abc")  # a share of his own
    claim(connection, 1)
    assert queued(connection) == 5


def test_room_that_workers_make_is_used(connection: Connection, alice: Connection):
    limit(connection, 2)
    add_jobs(alice, *"ab")
    assert len(claim(connection, 1)) == 1
    add_jobs(alice, "c")
    with pytest.raises(errors.ConfigurationLimitExceeded):
        add_jobs(alice, "d")


def test_the_error_in_our_words(connection: Connection, alice: Connection):
    limit(connection, 1)
    add_jobs(alice, "a")
    words = "your share of the queue is full: at most 1 of your jobs may wait.*cancel jobs that are not needed"
    with pytest.raises(RefusedError, match=words), translated_errors():
        add_jobs(alice, "b")


def test_a_statement_is_refused_whole(connection: Connection, alice: Connection):
    limit(connection, 5)
    with pytest.raises(errors.ConfigurationLimitExceeded):
        alice.execute("INSERT INTO loracomp.job (prompt) SELECT 'p' FROM generate_series(1, 6)")
    assert queued(connection) == 0
    alice.execute("INSERT INTO loracomp.job (prompt) SELECT 'p' FROM generate_series(1, 5)")
    assert queued(connection) == 5


def test_what_was_accepted_is_found_again_though_the_queue_is_full(connection: Connection, alice: Connection):
    limit(connection, 1)
    (first,) = alice.execute(SUBMIT)
    (second,) = alice.execute(SUBMIT)
    assert first == second


def test_administrators_are_not_bound(connection: Connection, database: str, alice: Connection):
    limit(connection, 1)
    with db.connect(make_conninfo(database, user=login("adam"))) as adam:
        add_jobs(adam, *"abcd")
    add_jobs(alice, "a")
    with pytest.raises(errors.ConfigurationLimitExceeded, match="1 of your"):
        add_jobs(alice, "b")


def test_jobs_for_later_wait_too_and_those_that_ended_do_not(connection: Connection, alice: Connection):
    limit(connection, 1)
    (later,) = add_jobs(alice, "a", run_at=datetime.now(UTC) + timedelta(days=1))
    with pytest.raises(errors.ConfigurationLimitExceeded):
        add_jobs(alice, "b")
    alice.execute("SELECT loracomp.cancel_job(%s)", [later])
    add_jobs(alice, "b")


@pytest.mark.session
def test_the_queue_is_counted_once_in_a_while(connection: Connection, database: str):
    limit(connection, 1000)
    connection.execute(f"ALTER DATABASE {connection.info.dbname} SET track_functions = 'all'".encode())
    with db.connect(make_conninfo(database, user=login("alice"))) as alice:
        before = counts(connection)
        for _ in range(200):
            alice.execute("INSERT INTO loracomp.job (prompt) VALUES ('p')")
        alice.execute("SELECT 1")
        few = counts(alice) - before
    assert 1 <= few <= 6


def place(connection: Connection, job_id: int) -> int:
    (row,) = connection.execute("SELECT place FROM loracomp.job WHERE id = %s", [job_id])
    return int(row["place"])


@pytest.mark.parametrize("priority", [0, 3, -2])
def test_a_refusal_costs_no_place_in_the_queue(connection: Connection, alice: Connection, priority: int):
    limit(connection, 2)
    (first,) = add_jobs(alice, "a", priority=priority)
    for _ in range(3):
        with pytest.raises(errors.ConfigurationLimitExceeded):
            alice.execute(
                "INSERT INTO loracomp.job (prompt, priority) SELECT 'b', %s FROM generate_series(1, 100)", [priority]
            )
    (second,) = add_jobs(alice, "c", priority=priority)
    assert place(connection, second) == place(connection, first) + 1


def test_a_key_that_is_sent_again_costs_no_place_in_the_queue(connection: Connection, alice: Connection):
    (first,) = {alice.execute(SUBMIT).fetchone()["id"] for _ in range(5)}
    (second,) = add_jobs(alice, "a")
    assert place(connection, second) == place(connection, first) + 1


def test_refused_inserts_are_counted(connection: Connection, alice: Connection):
    limit(connection, 1)
    refused = "SELECT last_value AS n FROM loracomp.refused_inserts"
    (before,) = connection.execute(refused)
    for _ in range(3):
        with pytest.raises(errors.ConfigurationLimitExceeded):
            add_jobs(alice, *"ab")
    (after,) = connection.execute(refused)
    assert after["n"] - before["n"] == 3


def test_an_open_transaction_keeps_no_other_from_inserting(connection: Connection, alice: Connection, bob: Connection):
    limit(connection, 100)
    bob.execute("SET statement_timeout = '60s'")
    with alice.transaction():
        add_jobs(alice, "a")
        add_jobs(bob, *"abc")
        limit(connection, 4)
        add_jobs(bob, "d")
    with bob.transaction():
        bob.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        with pytest.raises(errors.ConfigurationLimitExceeded):
            add_jobs(bob, "e")


def test_what_a_function_inserts_with_its_owners_rights_counts_as_its_owners(
    connection: Connection, alice: Connection, bob: Connection
):
    """Whoever calls it: rows belong to the role that inserts them."""
    limit(connection, 2)
    owner = login("alice")
    connection.execute(
        "CREATE FUNCTION public.enqueue(prompt text) RETURNS bigint LANGUAGE sql SECURITY DEFINER"
        " SET search_path = loracomp, pg_temp BEGIN ATOMIC"
        " INSERT INTO loracomp.job (prompt) VALUES (enqueue.prompt) RETURNING id; END"
    )
    connection.execute(f"ALTER FUNCTION public.enqueue OWNER TO {owner}".encode())
    try:
        add_jobs(bob, *"ab")  # his own places are taken, and matter to nobody else
        for _ in range(2):
            bob.execute("SELECT public.enqueue('p')")
        with pytest.raises(errors.ConfigurationLimitExceeded, match=f"at most 2 of {owner}'s jobs may wait"):
            bob.execute("SELECT public.enqueue('p')")
        with pytest.raises(errors.ConfigurationLimitExceeded, match="at most 2 of your jobs may wait"):
            add_jobs(alice, "p")
        assert queued(connection) == 4
    finally:
        connection.execute("DROP FUNCTION public.enqueue")


@pytest.mark.parametrize("who_is_open", ["submitter", "administrator"])
def test_a_lower_limit_holds_whatever_was_inserted_under_the_old_one_meanwhile(
    connection: Connection, alice: Connection, database: str, who_is_open: str
):
    limit(connection, 1000)
    with db.connect(make_conninfo(database, user=login("alice"))) as older:
        if who_is_open == "submitter":
            with older.transaction():
                older.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                older.execute("SELECT FROM loracomp.job")
                limit(connection, 3)
                add_jobs(older, "by the old limit")
        else:
            with connection.transaction():
                limit(connection, 3)
                add_jobs(older, "by the old limit")
    add_jobs(alice, "a", "b")
    with pytest.raises(errors.ConfigurationLimitExceeded, match="at most 3 of your jobs"):
        add_jobs(alice, "c")


def test_a_transaction_that_does_not_see_others_jobs_makes_no_room_for_them(
    connection: Connection, database: str, alice: Connection
):
    limit(connection, 3)
    with db.connect(make_conninfo(database, user=login("alice"))) as older, older.transaction():
        older.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        older.execute("SELECT FROM loracomp.job")
        add_jobs(alice, "a", "b", "c")
        for _ in range(3):
            with older.transaction(force_rollback=True):
                add_jobs(older, "unseen")
            with pytest.raises(errors.ConfigurationLimitExceeded):
                add_jobs(alice, "d")


@pytest.mark.parametrize("how", ["cancel_jobs(ids => {})", "erase_jobs({})"])
def test_what_a_transaction_takes_away_that_is_rolled_back_makes_no_room(
    connection: Connection, alice: Connection, how: str
):
    limit(connection, 3)
    add_jobs(alice, "a", "b", "c")
    take_away = f"SELECT loracomp.{how.format('ARRAY(SELECT id FROM loracomp.job)')}".encode()
    for _ in range(3):
        with alice.transaction(force_rollback=True):
            alice.execute(take_away)
            add_jobs(alice, "instead")
        with pytest.raises(errors.ConfigurationLimitExceeded):
            add_jobs(alice, "d")
    with alice.transaction():
        alice.execute(take_away)
        add_jobs(alice, "instead")
    add_jobs(alice, "e", "f")
    with pytest.raises(errors.ConfigurationLimitExceeded):
        add_jobs(alice, "g")


def test_a_limit_that_makes_no_sense_is_refused_and_changes_are_audited(connection: Connection, alice: Connection):
    with pytest.raises(errors.CheckViolation, match="per_submitter_must_be_between"):
        limit(connection, 0)
    limit(connection, 7)
    (row,) = connection.execute(
        "SELECT after ->> 'per_submitter' AS n FROM loracomp.audit_event"
        " WHERE entity = 'queue_limit' ORDER BY id DESC LIMIT 1"
    )
    assert row["n"] == "7"
    with pytest.raises(errors.InsufficientPrivilege):
        alice.execute("SELECT loracomp.set_queue_limits(NULL)")


def test_base_models_share_the_queue(connection: Connection, alice: Connection):
    from job_data import add_base_model

    add_base_model(connection, "other", default=False)
    limit(connection, 2)
    add_jobs(alice, "a", base_model="other")
    add_jobs(alice, "b", base_model=BASE)
    with pytest.raises(errors.ConfigurationLimitExceeded):
        add_jobs(alice, "c", base_model="other")


@pytest.mark.parametrize(
    "question",
    [
        "SELECT loracomp.count_queued(current_user, 10)",
        "SELECT * FROM loracomp.queue_health",
        "SELECT * FROM loracomp.database_metrics()",
        "SELECT * FROM loracomp.check_work()",
    ],
)
def test_whoever_asks_for_the_queue_reads_no_history(connection: Connection, question: str):
    add_jobs(connection, "now")
    add_jobs(connection, "later", run_at=datetime.now(UTC) + timedelta(days=1))
    connection.execute(
        "INSERT INTO loracomp.job (prompt, status, finished_at)"
        " SELECT 'old', 'succeeded', now() - interval '1 day' FROM generate_series(1, 3000)"
    )
    connection.execute("ANALYZE loracomp.job")
    with connection.transaction():
        before = whole_reads(connection)
        connection.execute(question.encode()).fetchall()
        assert whole_reads(connection) == before


def whole_reads(connection: Connection) -> int:
    """How often this transaction has read the table of jobs from end to end."""
    (row,) = connection.execute("SELECT pg_stat_get_xact_numscans('loracomp.job'::regclass) AS n")
    return int(row["n"])


def test_jobs_for_later_count_too(connection: Connection):
    later = datetime.now(UTC) + timedelta(days=1)
    add_jobs(connection, "now")
    add_jobs(connection, *"abc", run_at=later)
    expected = [(connection.info.user, 4, 9), (connection.info.user, 2, 2)]
    for submitter, count, at_most in expected:
        found = connection.execute("SELECT loracomp.count_queued(%s, %s) AS n", (submitter, at_most)).fetchone()
        assert found == {"n": count}
