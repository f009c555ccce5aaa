"""Ranges of job ids: the partitions of prediction and audit_event, how they come and go, and who may look into them."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import pairwise

import psycopg
import pytest

from job_data import add_base_model, add_jobs, claim, ended, record_predictions, statuses, wait_for_a_lock
from loracomp.database import connections as db
from loracomp.database.connections import Connection

WIDTH = 10
SMALL = f"""
DROP TABLE loracomp_parts.prediction_0, loracomp_parts.audit_event_0;
CREATE OR REPLACE FUNCTION loracomp.range_width() RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN {WIDTH};
SELECT loracomp.make_partitions();
"""
PLACES = "SELECT job_id, tableoid::regclass::text AS part FROM loracomp.prediction ORDER BY job_id"
EVENTS = """
SELECT DISTINCT entity_id, tableoid::regclass::text AS part FROM loracomp.audit_event
WHERE entity = 'job' AND entity_id IS NOT NULL ORDER BY entity_id
"""
DROPPING = """
SELECT format('SELECT loracomp.drop_range(%s, %s, %s, %s)', first_id, end_id, predictions::oid, events::oid)
FROM loracomp.job_ranges() LIMIT 1
"""
RANGES = "SELECT first_id, end_id FROM loracomp.job_ranges()"


@pytest.fixture
def queue(connection: Connection) -> Connection:
    """A database whose ranges have ten ids each, except the first, which has twenty."""
    connection.execute(SMALL)
    add_base_model(connection)
    return connection


def value(connection: Connection, statement: str) -> object:
    (row,) = connection.execute(statement.encode()).fetchall()
    return next(iter(row.values()))


def make_partitions(connection: Connection) -> object:
    return value(connection, "SELECT loracomp.make_partitions()")


def ranges(connection: Connection) -> list[tuple[int, int]]:
    return [(row["first_id"], row["end_id"]) for row in connection.execute(RANGES)]


def places(connection: Connection) -> dict[int, str]:
    """Where each job's answer is."""
    return {row["job_id"]: row["part"].removeprefix("loracomp_parts.") for row in connection.execute(PLACES)}


def events(connection: Connection) -> dict[int, str]:
    """Where each job's events are."""
    return {row["entity_id"]: row["part"].removeprefix("loracomp_parts.") for row in connection.execute(EVENTS)}


def answer(connection: Connection, count: int) -> list[int]:
    """Jobs that were answered a hundred days ago; their ids."""
    ids = add_jobs(connection, *("a" for _ in range(count)))
    while jobs := claim(connection):
        record_predictions(connection, jobs, [ended(job.id) for job in jobs])
    connection.execute("UPDATE loracomp.job SET finished_at = now() - interval '100 days' WHERE id = ANY (%s)", (ids,))
    return ids


def purge(connection: Connection, batch: int = 10000) -> object:
    return value(connection, f"SELECT loracomp.purge_jobs('90 days', {batch})")


def use_up(connection: Connection, newest: int) -> None:
    """As INSERTs do that are rolled back."""
    connection.execute("SELECT setval('loracomp.job_id_seq', %s)", [newest])


def rows_read(connection: Connection, function: str) -> int:
    """How many rows of tables the only statement of a function looks at."""
    body = value(connection, f"SELECT prosrc FROM pg_proc WHERE oid = 'loracomp.{function}'::regproc")
    (row,) = connection.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {body}".encode())
    found, nodes = 0, [row["QUERY PLAN"][0]["Plan"]]
    while nodes:
        node = nodes.pop()
        nodes += node.get("Plans", [])
        if "Relation Name" in node:
            found += node["Actual Loops"] * (node["Actual Rows"] + node.get("Rows Removed by Filter", 0))
    return int(found)


@contextmanager
def reading(database: str, table: str) -> Iterator[Connection]:
    """Another session whose transaction has read a table."""
    with db.connect(database) as reader, reader.transaction():
        reader.execute(f"SELECT FROM {table} LIMIT 1".encode())
        yield reader


# --- ranges come


def test_ranges_are_made_before_their_jobs(queue: Connection) -> None:
    assert ranges(queue) == [(0, 20)]
    assert not make_partitions(queue)
    answer(queue, 10)
    assert make_partitions(queue)
    assert not make_partitions(queue)
    assert ranges(queue) == [(0, 20), (20, 30)]
    answer(queue, 12)
    assert places(queue) == {n: "prediction_0" if n < 20 else "prediction_20" for n in range(1, 23)}
    assert events(queue) == {n: "audit_event_0" if n < 20 else "audit_event_20" for n in range(1, 23)}


def test_answers_without_a_range_are_stored_and_the_next_range_begins_after_them(queue: Connection) -> None:
    answer(queue, 31)
    assert {n for n, part in places(queue).items() if part == "prediction_others"} == set(range(20, 32))
    assert make_partitions(queue)
    assert ranges(queue) == [(0, 20), (40, 50)]
    answer(queue, 10)
    assert places(queue)[39] == "prediction_others" and places(queue)[40] == "prediction_40"
    assert events(queue)[39] == "audit_event_job_others" and events(queue)[40] == "audit_event_40"
    assert [purge(queue), purge(queue), purge(queue)] == [19, 22, 0]
    assert places(queue) == events(queue) == {}


def test_one_range_is_enough_however_many_jobs_came_at_once(queue: Connection) -> None:
    add_jobs(queue, *("a" for _ in range(95)))
    assert make_partitions(queue)
    assert ranges(queue) == [(0, 20), (20, 110)]


def test_ids_without_jobs_make_few_ranges(queue: Connection) -> None:
    """A range is made for each tenth job at first, and then for an eighth of all ids that were used up."""
    for newest in range(10, 3000, 10):
        use_up(queue, newest)
        make_partitions(queue)
    made = ranges(queue)
    assert 8 < len(made) < 60
    assert all(end == first for (_, end), (first, _) in pairwise(made))
    assert all(end - first <= max(10, first / 8 + 10) for first, end in made[1:])
    answer(queue, 3)
    assert set(places(queue).values()) < {f"prediction_{first}" for first, _ in made}


def test_ranges_of_many_jobs_keep_their_width(queue: Connection) -> None:
    for _ in range(15):
        add_jobs(queue, *("a" for _ in range(10)))
        assert make_partitions(queue)
    assert {end - first for first, end in ranges(queue)[1:]} == {WIDTH}


def test_two_who_maintain_at_once_make_one_range(queue: Connection, database: str) -> None:
    add_jobs(queue, *("a" for _ in range(10)))
    with ThreadPoolExecutor(4) as pool, ExitStack() as stack:
        sessions = [stack.enter_context(db.connect(database)) for _ in range(4)]
        made = list(pool.map(make_partitions, sessions))
    assert made.count(True) == 1
    assert ranges(queue) == [(0, 20), (20, 30)]


def test_who_is_killed_while_maintaining_leaves_nothing_behind(queue: Connection, database: str) -> None:
    add_jobs(queue, *("a" for _ in range(10)))
    with db.connect(database) as killed, pytest.raises(psycopg.OperationalError), killed.transaction():
        assert make_partitions(killed)
        queue.execute("SELECT pg_terminate_backend(%s, 5000)", (killed.info.backend_pid,))
        killed.execute("SELECT 1")
    assert ranges(queue) == [(0, 20)]
    assert make_partitions(queue)
    assert ranges(queue) == [(0, 20), (20, 30)]


def test_whoever_maintains_waits_for_no_reader_and_says_so(queue: Connection, database: str) -> None:
    add_jobs(queue, *("a" for _ in range(10)))
    said: list[str | None] = []
    queue.add_notice_handler(lambda notice: said.append(notice.message_primary))
    with reading(database, "loracomp.prediction"):
        assert not make_partitions(queue)  # and not after the statement's time
    assert said == ["no range was made for jobs from 20, because prediction or audit_event is in use"]
    assert make_partitions(queue)


SHAPE = """
SELECT jsonb_build_object(
    'columns', (
        SELECT jsonb_agg(jsonb_build_array(
            a.attname, a.atttypid::regtype, a.attnotnull, a.attstorage, a.attstattarget,
            pg_get_expr(d.adbin, d.adrelid), col_description(a.attrelid, a.attnum)
        ) ORDER BY a.attnum)
        FROM pg_attribute AS a LEFT JOIN pg_attrdef AS d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    ),
    'constraints', (
        SELECT jsonb_agg(pg_get_constraintdef(k.oid) ORDER BY pg_get_constraintdef(k.oid)) FROM pg_constraint AS k
        WHERE k.conrelid = c.oid
    ),
    'indexes', (
        SELECT jsonb_agg(substring(pg_get_indexdef(i.indexrelid) FROM ' USING .*') ORDER BY i.indexrelid)
        FROM pg_index AS i WHERE i.indrelid = c.oid
    ),
    'attached', (
        SELECT count(*) FROM pg_index AS i JOIN pg_inherits AS h ON h.inhrelid = i.indexrelid WHERE i.indrelid = c.oid
    ),
    'options', c.reloptions
) AS shape
FROM pg_class AS c WHERE c.relnamespace = 'loracomp_parts'::regnamespace AND c.relkind = 'r' AND c.relname ~ %s
ORDER BY c.oid
"""


def test_all_partitions_are_alike(connection: Connection) -> None:
    connection.execute("CREATE INDEX ON loracomp.prediction USING gin (example_ids)")
    assert make_partitions(connection)
    first, *others = [row["shape"] for row in connection.execute(SHAPE, ["^prediction_"])]
    assert len(others) == 2 and all(other == first for other in others)
    assert first["attached"] == len(first["indexes"]) == 3
    assert first["options"] == ["toast_tuple_target=4080"]
    first, *others = [row["shape"] for row in connection.execute(SHAPE, ["^audit_event_"])]
    assert [len(other["indexes"]) for other in others] == [3, 3, 3] and first["attached"] == 2
    assert all({**other, "indexes": 0} == {**first, "indexes": 0} for other in others)
    assert all(sorted(other["indexes"]) == sorted(first["indexes"]) for other in others)


# --- ranges go


def test_purge_drops_a_range_whose_jobs_have_all_ended(queue: Connection) -> None:
    answer(queue, 19)
    recent = add_jobs(queue, "b", "c")
    assert make_partitions(queue)
    assert purge(queue, batch=19) == 19
    assert ranges(queue) == [(20, 40)]
    assert value(queue, "SELECT to_regclass('loracomp_parts.prediction_0') IS NULL")
    assert value(queue, "SELECT to_regclass('loracomp_parts.audit_event_0') IS NULL")
    assert statuses(queue) == dict.fromkeys(recent, "queued")
    assert value(queue, "SELECT sum(jobs)::int FROM bi.cost_by_submitter") == 19
    assert value(queue, "SELECT count(*) FROM loracomp.audit_event WHERE entity = 'job' AND entity_id < 20") == 0
    assert purge(queue) == 0


def test_a_job_that_has_not_ended_keeps_its_range(queue: Connection) -> None:
    answer(queue, 18)
    (late,) = add_jobs(queue, "late", run_at="3000-01-01")
    answer(queue, 4)
    assert make_partitions(queue)
    assert [purge(queue, batch=15) for _ in range(3)] == [15, 7, 0]
    assert ranges(queue)[0] == (0, 20)
    queue.execute("SELECT loracomp.cancel_job(%s)", (late,))
    queue.execute("UPDATE loracomp.job SET finished_at = now() - interval '100 days'")
    assert purge(queue) == 1
    assert ranges(queue)[0] != (0, 20)


def test_a_range_with_more_jobs_than_a_batch_is_emptied_in_batches(queue: Connection) -> None:
    answer(queue, 20)
    assert make_partitions(queue)
    sizes = []
    while ranges(queue)[0] == (0, 20):
        sizes.append(purge(queue, batch=8))
        assert len(places(queue)) == len(events(queue)) == 20 - sum(sizes)
    assert sizes in ([8, 8, 3], [8, 8, 4])  # the job of the next range goes with one batch or another


def test_events_of_erased_jobs_outlast_their_range(queue: Connection) -> None:
    answer(queue, 10)
    assert make_partitions(queue)
    answer(queue, 15)
    assert make_partitions(queue)
    queue.execute("SELECT * FROM loracomp.erase_jobs('{4, 7}'::bigint[])")
    (before,) = queue.execute("SELECT json_agg(e ORDER BY id) FROM loracomp.audit_event AS e WHERE entity_id IN (4, 7)")
    assert purge(queue) == 17
    assert events(queue) == {
        **dict.fromkeys((4, 7), "audit_event_job_others"),
        **dict.fromkeys(range(20, 26), "audit_event_20"),
    }
    (after,) = queue.execute("SELECT json_agg(e ORDER BY id) FROM loracomp.audit_event AS e WHERE entity_id IN (4, 7)")
    assert after == before
    queue.execute("SELECT * FROM loracomp.erase_jobs('{20, 21}'::bigint[])")
    make_partitions(queue)
    assert purge(queue) == 4
    assert set(events(queue)) == {4, 7, 20, 21}


def test_the_event_of_a_job_that_is_deleted_meanwhile_outlasts_its_range(queue: Connection, database: str) -> None:
    queue.execute("ALTER FUNCTION loracomp.drop_range SET lock_timeout = '20s'")
    answer(queue, 25)
    assert make_partitions(queue)
    with db.connect(database) as other, ThreadPoolExecutor(1) as pool:
        with other.transaction():
            other.execute("DELETE FROM loracomp.job WHERE id = 4")
            purging = pool.submit(purge, queue)
            wait_for_a_lock(other)
        assert purging.result() == 18
    assert events(queue)[4] == "audit_event_job_others" and ranges(queue)[0] != (0, 20)


def test_a_range_that_another_purge_has_dropped_is_no_error(queue: Connection) -> None:
    answer(queue, 25)
    assert make_partitions(queue)
    dropping = str(value(queue, DROPPING))
    assert purge(queue) == 19
    assert value(queue, dropping) is True


def test_many_ranges_are_read_once_and_dropped_in_a_row(queue: Connection) -> None:
    many = 120
    for first in range(2 * WIDTH, many * WIDTH, WIDTH):
        queue.execute(f"SELECT loracomp.add_range({first}, {first + WIDTH})".encode())
    answer(queue, 5)
    use_up(queue, many * WIDTH - 5)
    recent = add_jobs(queue, "b")
    assert rows_read(queue, "job_ranges") < 50 * many  # and not a row for each two ranges
    assert make_partitions(queue)
    assert ranges(queue)[-1] == (many * WIDTH, many * WIDTH + WIDTH)
    assert purge(queue) == 5
    while purge(queue):
        pass
    assert [first for first, _ in ranges(queue)] == [many * WIDTH - WIDTH, many * WIDTH]
    assert statuses(queue) == {recent[0]: "queued"}


def test_a_purge_that_finds_only_empty_ranges_says_so(queue: Connection) -> None:
    for newest in range(10, 60, 10):
        use_up(queue, newest)
        make_partitions(queue)
    assert len(ranges(queue)) == 6
    total = 0
    while (count := purge(queue)) != 0:
        total += int(str(count))
    assert total == 4 and ranges(queue) == [(50, 60), (60, 70)]


def test_a_job_that_others_have_locked_keeps_no_other_range(queue: Connection, database: str) -> None:
    answer(queue, 15)
    make_partitions(queue)
    for newest in range(20, 60, 10):
        use_up(queue, newest)
        make_partitions(queue)
    with db.connect(database) as other, other.transaction():
        other.execute("SELECT FROM loracomp.job WHERE id = 7 FOR UPDATE")
        assert purge(queue) == 14
        while purge(queue):
            pass
    assert [first for first, _ in ranges(queue)] == [0, 50, 60]


def test_truncating_jobs_deletes_all_answers(queue: Connection) -> None:
    answer(queue, 25)
    queue.execute("TRUNCATE loracomp.job")
    assert places(queue) == {}


def test_the_newest_range_stays(queue: Connection) -> None:
    answer(queue, 5)
    assert purge(queue) == 5
    assert ranges(queue) == [(0, 20)]


@pytest.mark.parametrize("table", ["prediction", "audit_event"])
def test_a_range_that_others_read_is_emptied_and_dropped_later(queue: Connection, database: str, table: str) -> None:
    answer(queue, 25)
    assert make_partitions(queue)
    with reading(database, f"loracomp.{table}"):
        assert purge(queue) == 19
    assert min(places(queue)) == min(events(queue)) == 20 and ranges(queue)[0] == (0, 20)
    assert purge(queue) == 6
    assert ranges(queue)[0] != (0, 20)


def test_a_range_with_a_job_that_others_have_locked_is_not_dropped(queue: Connection, database: str) -> None:
    answer(queue, 25)
    assert make_partitions(queue)
    with db.connect(database) as other, other.transaction():
        other.execute("SELECT FROM loracomp.job WHERE id = 7 FOR UPDATE")
        assert (purge(queue), purge(queue)) == (18, 6)
    assert set(places(queue)) == set(events(queue)) == {7} and ranges(queue)[0] == (0, 20)


def test_a_transaction_with_an_older_snapshot_deletes_row_by_row(queue: Connection) -> None:
    answer(queue, 25)
    assert make_partitions(queue)
    with queue.transaction():
        queue.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        assert purge(queue) == 25
    assert places(queue) == {} and ranges(queue)[0] == (0, 20)


def test_a_job_that_appears_when_its_range_is_gone_is_answered(queue: Connection, database: str) -> None:
    with db.connect(database) as slow, slow.transaction():
        (late,) = add_jobs(slow, "late")
        answer(queue, 25)
        assert make_partitions(queue)
        assert purge(queue) > 0
        assert ranges(queue)[0] != (0, 20)
    answer(queue, 1)
    assert statuses(queue)[late] == "succeeded" and places(queue)[late] == "prediction_others"


def test_a_view_on_a_partition_is_named_and_nothing_is_lost(queue: Connection) -> None:
    answer(queue, 25)
    assert make_partitions(queue)
    queue.execute("CREATE VIEW first_answers AS SELECT output FROM loracomp_parts.prediction_0")
    with pytest.raises(psycopg.errors.DependentObjectsStillExist, match="first_answers"):
        purge(queue)
    assert len(places(queue)) == len(statuses(queue)) == len(events(queue)) == 25


def test_jobs_deleted_one_by_one_take_their_answers_along(queue: Connection) -> None:
    answer(queue, 10)
    assert make_partitions(queue)
    answer(queue, 15)
    queue.execute("DELETE FROM loracomp.job WHERE id IN (3, 22)")
    queue.execute("SELECT * FROM loracomp.erase_jobs('{4, 23}'::bigint[])")
    assert set(places(queue)) == set(range(1, 26)) - {3, 4, 22, 23}


# --- who may look into them


@pytest.mark.parametrize("role", ["submitter", "worker", "analyst", "admin"])
@pytest.mark.parametrize("verb", ["SELECT FROM", "DELETE FROM", "TRUNCATE"])
def test_no_role_reaches_a_partition_but_through_its_table(connection: Connection, role: str, verb: str) -> None:
    connection.execute(f"SET ROLE loracomp_{role}".encode())
    for part in ("prediction_0", "audit_event_0", "audit_event_others", "audit_event_jobs"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="schema loracomp_parts"):
            connection.execute(f"{verb} loracomp_parts.{part}".encode())
    connection.execute("RESET ROLE")


def test_who_may_read_all_data_is_held_to_row_security_in_partitions_too(queue: Connection) -> None:
    answer(queue, 22)
    role = f"reader_of_{queue.info.backend_pid}"
    queue.execute(f"CREATE ROLE {role} IN ROLE pg_read_all_data".encode())
    parts = [f"loracomp_parts.{part}" for part in {*places(queue).values(), *events(queue).values()}]
    queue.execute(f"SET ROLE {role}".encode())
    for table in (
        *parts,
        "loracomp_parts.audit_event_jobs",
        "loracomp_parts.audit_event_others",
        "loracomp.prediction",
    ):
        assert value(queue, f"SELECT count(*) FROM {table}") == 0
    queue.execute("RESET ROLE")
    queue.execute(f"DROP ROLE {role}".encode())


READS = {
    "job_result": "SELECT * FROM loracomp.job_result WHERE job_id = 25",
    "job_trace": "SELECT * FROM loracomp.job_trace WHERE job_id = 25",
    "bi.prediction": "SELECT * FROM bi.prediction WHERE job_id = 25",
    "retrieved_example": "SELECT * FROM loracomp.retrieved_example WHERE job_id = 25",
    "audit_event": "SELECT * FROM loracomp.audit_event WHERE entity = 'job' AND entity_id = 25",
    "policies": "SELECT * FROM loracomp.audit_event WHERE entity = 'policy'",
}


@pytest.mark.parametrize("view", READS)
def test_to_read_one_job_touches_one_partition(queue: Connection, view: str) -> None:
    for _ in range(4):
        answer(queue, 10)
        make_partitions(queue)
    plan = str(queue.execute(f"EXPLAIN {READS[view]}".encode()).fetchall())
    touched = set(re.findall(r" on ((?:prediction|audit_event)_\w+)", plan))
    expected = {
        "bi.prediction": {"prediction_20", "audit_event_others"},  # which has former names of tasks
        "audit_event": {"audit_event_20"},
        "policies": {"audit_event_others"},
    }
    assert touched == expected.get(view, {"prediction_20"})
