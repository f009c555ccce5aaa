"""Routing by principal axes: what is found by them, and that the reduced embeddings follow the whole ones."""

from collections.abc import Iterator

import numpy as np
import psycopg
import pytest

from conftest import create_database, drop_database
from loracomp.database import connections as db
from loracomp.database.tables import DIMENSIONS
from loracomp.records import AXES
from loracomp.registry import embeddings
from routing_data import (
    ADD_EXAMPLES,
    Library,
    Vectors,
    add_base_model,
    add_examples,
    add_jobs,
    add_task,
    queries_near,
    route_jobs,
    stored,
    unit,
)

COUNTS = [1700, 1500, 1000, 300]  # 4,000 or less are scanned
INDEXES = """
SELECT indexname AS name FROM pg_indexes WHERE schemaname = 'loracomp' AND indexdef LIKE '%hnsw%' ORDER BY 1
"""
SCANS = "SELECT pg_stat_get_xact_numscans('loracomp.reduced_embedding_hnsw'::regclass) AS n"
APART = """
SELECT count(*) AS n FROM loracomp.example_embedding AS e FULL JOIN loracomp.reduced_embedding AS r USING (example_id)
WHERE e.task_id IS DISTINCT FROM r.task_id OR loracomp.reduce_embedding(e.embedding) <-> r.embedding > 0.01
"""
WHOLE, REDUCED = [{"name": "example_embedding_hnsw"}], [{"name": "reduced_embedding_hnsw"}]


def texts(generator: np.random.Generator, count: int) -> Vectors:
    """Unit vectors with a spectrum like that of texts: the 256 longest directions have most of their length."""
    return unit(generator.normal(size=(count, DIMENSIONS)) / np.arange(1, DIMENSIONS + 1) ** 0.5)


@pytest.fixture(scope="module")
def loaded(server: str, template: str) -> Iterator[tuple[db.Connection, Library]]:
    """4,500 examples of four tasks, indexed by principal axes."""
    name = f"{template}_axes"
    generator = np.random.default_rng(1)
    with db.connect(create_database(server, name, template)) as connection, pytest.MonkeyPatch.context() as patch:
        patch.setattr(embeddings, "REDUCED_FROM", sum(COUNTS))
        add_base_model(connection)
        vectors = [unit(texts(generator, 1) + texts(generator, count)) for count in COUNTS]
        tasks = [add_task(connection, f"t{number}") for number in range(len(COUNTS))]
        connection.execute("DROP INDEX loracomp.example_embedding_hnsw")  # as if the index had to be built in the end
        ids = [add_examples(connection, *each) for each in zip(tasks, vectors, strict=True)]
        assert embeddings.index_embeddings(connection) == AXES
        scan_at_most(connection, 4000, instead_of=20000)
        names = {task: f"t{number}" for number, task in enumerate(tasks)}
        yield (
            connection,
            Library(np.concatenate(ids), np.repeat(tasks, COUNTS), stored(np.concatenate(vectors)), names),
        )
    drop_database(server, name)


@pytest.fixture
def connection(loaded: tuple[db.Connection, Library]) -> Iterator[db.Connection]:
    with loaded[0].transaction(force_rollback=True):
        yield loaded[0]


@pytest.fixture
def library(loaded: tuple[db.Connection, Library]) -> Library:
    return loaded[1]


def scan_at_most(connection: db.Connection, most: int, instead_of: int) -> None:
    row = connection.execute("SELECT pg_get_functiondef('loracomp.search_exactly'::regproc) AS it").fetchone()
    assert row
    connection.execute(row["it"].replace(str(instead_of), str(most)).encode())


def number(connection: db.Connection, query: str) -> int:
    row = connection.execute(query.encode()).fetchone()
    assert row
    return int(row["n"])


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize(("excluded", "scans"), [([], 64), (["t3"], 64), (["t0"], 0)])
def test_nearly_all_of_the_nearest_are_found_by_their_coordinates(
    connection: db.Connection, library: Library, excluded: list[str], scans: int, mode: str
) -> None:
    connection.execute(f"SET LOCAL plan_cache_mode = {mode}")
    queries = queries_near(np.random.default_rng(2), library, 64)
    before = number(connection, SCANS)
    found = route_jobs(connection, add_jobs(connection, 64, exclude_tasks=excluded), queries)
    assert number(connection, SCANS) - before == scans
    allowed = ~np.isin(library.task_ids, [library.id_of(task) for task in excluded])
    similarities = stored(queries) @ library.vectors[allowed].T
    nearest = np.argsort(-similarities, axis=1)[:, :30]
    ids = library.example_ids[allowed]
    shares = [np.isin(row["example_ids"], ids[best]).mean() for row, best in zip(found, nearest, strict=True)]
    assert np.mean(shares) >= 0.99
    place_of = {example: place for place, example in enumerate(ids.tolist())}
    for row, mine in zip(found, similarities, strict=True):
        assert row["similarities"] == sorted(row["similarities"], reverse=True)
        places = [place_of[example] for example in row["example_ids"]]
        np.testing.assert_allclose(row["similarities"], mine[places], atol=1e-5)  # of whole embeddings


def test_likes_are_stored_side_by_side(connection: db.Connection) -> None:
    ordered = "SELECT binary_quantize(embedding)::text AS signs FROM loracomp.reduced_embedding ORDER BY ctid"
    signs = [row["signs"] for row in connection.execute(ordered)]
    assert signs == sorted(signs)


@pytest.fixture
def few(connection: db.Connection, monkeypatch: pytest.MonkeyPatch) -> Vectors:
    """In place of the 4,500, to index which takes seconds: 300, which are enough for axes."""
    connection.execute("TRUNCATE loracomp.example_embedding")
    vectors = texts(np.random.default_rng(4), 300)
    add_examples(connection, add_task(connection, "few"), vectors)
    monkeypatch.setattr(embeddings, "REDUCED_FROM", 300)
    return vectors


@pytest.mark.usefixtures("few")
def test_the_index_of_whole_embeddings_serves_until_it_is_dropped(connection: db.Connection) -> None:
    connection.execute("SELECT loracomp.build_embedding_index()")
    assert connection.execute(INDEXES).fetchall() == WHOLE
    assert embeddings._build_index(connection) == AXES
    assert connection.execute(INDEXES).fetchall() == WHOLE + REDUCED
    connection.execute("SELECT loracomp.drop_spare_index()")
    assert connection.execute(INDEXES).fetchall() == REDUCED
    size = "SELECT pg_relation_size('loracomp.reduced_embedding_hnsw') AS n"
    before = number(connection, size)
    connection.execute("UPDATE loracomp.example_embedding SET embedding = embedding + embedding")
    assert embeddings.index_embeddings(connection) == AXES
    assert number(connection, size) < 1.2 * before  # without rows that are gone


def test_a_transaction_that_might_not_see_the_axes_changes_no_embedding(server: str, template: str) -> None:
    name = f"{template}_axes_unseen"
    url = create_database(server, name, template)
    with db.connect(url) as connection:
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="a transaction that is repeatable read"):
            connection.execute("DELETE FROM loracomp.example_embedding")
        connection.execute("ROLLBACK")
    drop_database(server, name)


@pytest.mark.parametrize("axes", [np.eye(DIMENSIONS)[:255], 2 * np.eye(DIMENSIONS)[:256], np.eye(256), None])
def test_other_axes_are_refused(connection: db.Connection, axes: Vectors | None) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="256 vectors of 832 dimensions and of length 1"):
        connection.execute(
            "SELECT loracomp.build_embedding_index(%b::vector[])", [axes if axes is None else list(axes)]
        )


def test_reduced_embeddings_follow_every_change(connection: db.Connection, library: Library) -> None:
    assert (number(connection, APART), connection.execute(INDEXES).fetchall()) == (0, REDUCED)
    task = add_task(connection, "more")
    ids = add_examples(connection, task, texts(np.random.default_rng(3), 20))
    changed = "UPDATE loracomp.example_embedding SET embedding = embedding + embedding WHERE task_id = %s"
    connection.execute(changed, [task])
    connection.execute("SELECT loracomp.erase_example(%s)", ids[:1])
    connection.execute("DELETE FROM loracomp.example WHERE id = %s", ids[1:2])
    left = "SELECT count(*) AS n FROM loracomp.reduced_embedding WHERE task_id = (SELECT max(id) FROM loracomp.task)"
    assert (number(connection, APART), number(connection, left)) == (0, 18)
    connection.execute("TRUNCATE loracomp.example_embedding")
    assert number(connection, "SELECT count(*) AS n FROM loracomp.reduced_embedding") == 0


def test_a_load_that_builds_the_index_brings_axes_and_a_small_one_keeps_them(
    connection: db.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection.execute("TRUNCATE loracomp.example_embedding")
    connection.execute("SELECT loracomp.build_embedding_index()")
    assert (number(connection, APART), connection.execute(INDEXES).fetchall()) == (0, WHOLE)
    monkeypatch.setattr(embeddings, "REDUCED_FROM", 300)
    generator = np.random.default_rng(4)
    for count, indexes, axes in ((299, WHOLE, 0), (300, REDUCED, AXES), (9, REDUCED, AXES), (400, REDUCED, AXES)):
        given = {"task_id": add_task(connection, f"with {count}"), "count": count}
        rows = [{"example_id": row["id"]} for row in connection.execute(ADD_EXAMPLES, given)]
        before = connection.execute("SELECT axis FROM loracomp.principal_axis ORDER BY place").fetchall()
        embeddings.load_embeddings(connection, rows, texts(generator, count))
        assert (number(connection, APART) if axes else 0, connection.execute(INDEXES).fetchall()) == (0, indexes)
        after = connection.execute("SELECT axis FROM loracomp.principal_axis ORDER BY place").fetchall()
        assert (len(after), before == after) == (axes, count in (299, 9))


def test_few_or_short_embeddings_are_indexed_whole(
    connection: db.Connection, few: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embeddings, "REDUCED_FROM", len(few) + 1)
    assert embeddings.index_embeddings(connection) == DIMENSIONS
    assert connection.execute(INDEXES).fetchall() == WHOLE
    assert number(connection, "SELECT count(*) AS n FROM loracomp.reduced_embedding") == 0
    (row,) = route_jobs(connection, add_jobs(connection, 1), few[:1])
    assert row["similarities"][0] == pytest.approx(1)
    monkeypatch.setattr(embeddings, "REDUCED_FROM", 1)
    monkeypatch.setattr(embeddings, "AXES", DIMENSIONS // 2 + 1)
    assert embeddings.index_embeddings(connection) == DIMENSIONS


def test_a_transaction_from_before_the_axes_still_finds_the_nearest(
    server: str, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not see the axes, and the index that it would use is gone: it compares all, which takes longer."""
    name = f"{template}_axes_come"
    url = create_database(server, name, template)
    with db.connect(url) as connection, db.connect(url) as earlier:
        add_base_model(connection)
        connection.execute("DROP INDEX loracomp.example_embedding_hnsw")
        scan_at_most(connection, 290, instead_of=4000)
        vectors = texts(np.random.default_rng(5), 300)
        ids = add_examples(connection, add_task(connection, "t"), vectors)
        jobs = add_jobs(connection, 1)
        monkeypatch.setattr(embeddings, "REDUCED_FROM", len(ids))
        earlier.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        earlier.execute("SELECT FROM loracomp.job")
        assert embeddings.index_embeddings(connection) == AXES
        (row,) = route_jobs(earlier, jobs, vectors[:1])
        (now,) = route_jobs(connection, jobs, vectors[:1])
        assert (row["example_ids"][0], len(row["example_ids"])) == (ids[0], 30)
        assert len(set(row["example_ids"]) & set(now["example_ids"])) >= 29
        earlier.execute("ROLLBACK")
    drop_database(server, name)
