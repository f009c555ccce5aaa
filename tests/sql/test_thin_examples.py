"""thin_examples: which examples go, and what it says that routing loses."""

from collections.abc import Iterator

import psycopg
import pytest

from conftest import create_database, drop_database
from loracomp.database import connections as db
from loracomp.database.queries import QUERIES
from routing_data import Library, load

COUNTS = [60, 60, 60, 5]


@pytest.fixture(scope="module")
def loaded(server: str, template: str) -> Iterator[tuple[db.Connection, Library]]:
    name = f"{template}_thin"
    with db.connect(create_database(server, name, template)) as connection:
        yield connection, load(connection, 1, COUNTS)
    drop_database(server, name)


@pytest.fixture
def connection(loaded: tuple[db.Connection, Library]) -> Iterator[db.Connection]:
    with loaded[0].transaction(force_rollback=True):
        yield loaded[0]


def thin(connection: db.Connection, keep: int | None, task: str | None = None) -> list[dict]:
    return connection.execute(QUERIES["thin_examples"], {"keep": keep, "task": task}).fetchall()


def left(connection: db.Connection) -> dict[str, int]:
    rows = connection.execute(
        "SELECT t.name, count(*) AS examples FROM loracomp.example_embedding AS v"
        " JOIN loracomp.task AS t ON t.id = v.task_id GROUP BY t.name ORDER BY t.name"
    )
    return {row["name"]: row["examples"] for row in rows}


def test_each_task_keeps_so_many_and_a_smaller_one_all_it_has(connection: db.Connection) -> None:
    rows = thin(connection, 20)
    assert [(row["own_task"], row["kept"], row["deleted"], row["asked"]) for row in rows] == [
        (f"t{number}", 20, 40, 6) for number in range(3)
    ]
    assert left(connection) == {"t0": 20, "t1": 20, "t2": 20, "t3": 5}
    assert thin(connection, 20) == []


def test_one_task_alone_is_thinned_and_then_found_less_often(connection: db.Connection) -> None:
    (row,) = thin(connection, 1, "t1")
    assert left(connection) == {"t0": 60, "t1": 1, "t2": 60, "t3": 5}
    assert row["in_nucleus_before"] == row["asked"] == 6
    assert row["first_after"] < row["first_before"]


def test_measured_examples_and_then_the_first_by_their_hash_are_kept(
    connection: db.Connection, loaded: tuple[db.Connection, Library]
) -> None:
    last = "SELECT id FROM loracomp.example WHERE task_id = %s ORDER BY content_hash DESC LIMIT 2"
    task = loaded[1].id_of("t0")
    measured = {row["id"] for row in connection.execute(last, [task])}
    connection.execute(
        "INSERT INTO loracomp.measurement (example_id, base_model_id, task_id, choice_normalization, base_score,"
        " adapter_ids, gains, are_right) SELECT e.id, b.id, e.task_id, 'tokens', -1, '{}', '{}', '{}'"
        " FROM loracomp.example AS e, loracomp.base_model AS b WHERE e.id = ANY (%s)",
        [list(measured)],
    )
    first = "SELECT id FROM loracomp.example WHERE task_id = %s ORDER BY content_hash LIMIT 3"
    expected = measured | {row["id"] for row in connection.execute(first, [task])}
    (row,) = thin(connection, 5, "t0")
    kept = connection.execute("SELECT id FROM loracomp.example WHERE task_id = %s", [task])
    assert {row["id"] for row in kept} == expected
    assert (row["measured"], row["without_text"]) == (0, 55)
    (row,) = thin(connection, 1, "t0")
    assert (row["deleted"], row["measured"]) == (4, 1)


def test_what_cannot_be_is_refused_and_deletes_nothing(connection: db.Connection) -> None:
    cases = (
        (0, None, "keep must be"),
        (None, None, "keep must not be null"),
        (5, "none such", "there is no task none such"),
    )
    for keep, task, message in cases:
        with pytest.raises(psycopg.Error, match=message), connection.transaction():
            thin(connection, keep, task)
    assert sum(left(connection).values()) == sum(COUNTS)
