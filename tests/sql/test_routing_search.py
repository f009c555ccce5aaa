"""nearest_examples and route_jobs against NumPy: which index is used, and what it finds."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from conftest import create_database, drop_database
from loracomp.database import connections as db
from loracomp.database.queries import QUERIES
from routing_data import (
    Library,
    Vectors,
    add_examples,
    add_jobs,
    add_task,
    load,
    queries_near,
    route_jobs,
    stored,
    unit,
)
from routing_reference import Settings, weigh

COUNTS = [1500, 1200, 1000, 900, 700, 200]  # without t0: 4,000, the most that is searched exactly
EVERY_TASK = [f"t{number}" for number in range(len(COUNTS))]
SCANS = "SELECT pg_stat_get_xact_numscans('loracomp.example_embedding_hnsw'::regclass) AS n"
# Excluded tasks -> whether the HNSW index serves.
SCOPES = {
    "all": ([], True),
    "one excluded": (["t5"], True),
    "4,000 examples": (["t0"], False),
    "one": (EVERY_TASK[1:], False),
}


@pytest.fixture(scope="module")
def loaded(server: str, template: str) -> Iterator[tuple[db.Connection, Library]]:
    """5,500 examples of six tasks; tests change them in a transaction that is rolled back, if at all."""
    name = f"{template}_search"
    with db.connect(create_database(server, name, template)) as connection:
        yield connection, load(connection, 1, COUNTS)
    drop_database(server, name)


@pytest.fixture
def connection(loaded: tuple[db.Connection, Library]) -> Iterator[db.Connection]:
    with loaded[0].transaction(force_rollback=True):
        yield loaded[0]


@pytest.fixture
def library(loaded: tuple[db.Connection, Library]) -> Library:
    return loaded[1]


@pytest.fixture
def queries(library: Library) -> Vectors:
    return queries_near(np.random.default_rng(2), library, 64)


def scans(connection: db.Connection) -> int:
    row = connection.execute(SCANS).fetchone()
    assert row
    return int(row["n"])


def exact(library: Library, vectors: Vectors, excluded: list[str], k: int = 30) -> list[dict[int, float]]:
    """Example id -> similarity of the k nearest, by brute force in double precision."""
    allowed = ~np.isin(library.task_ids, [library.id_of(task) for task in excluded])
    similarities = stored(vectors).astype(np.float64) @ library.vectors[allowed].astype(np.float64).T
    nearest = np.argsort(-similarities, axis=1)[:, :k]
    ids = library.example_ids[allowed]
    return [
        dict(zip(ids[row].tolist(), similarity[row].tolist(), strict=True))
        for row, similarity in zip(nearest, similarities, strict=True)
    ]


def recall(found: list[dict[str, Any]], expected: list[dict[int, float]]) -> float:
    shares = [
        len(set(row["example_ids"]) & set(right)) / len(right) for row, right in zip(found, expected, strict=True)
    ]
    return float(np.mean(shares))


@pytest.mark.parametrize("statistics", ["none", "analyzed"])
@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize("scope", SCOPES)
def test_route_jobs_uses_the_index_where_it_should(
    connection: db.Connection,
    library: Library,
    queries: Vectors,
    scope: str,
    mode: str,
    statistics: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    excluded, indexed = SCOPES[scope]
    if statistics == "analyzed":
        connection.execute("ANALYZE")
    connection.execute(f"SET LOCAL plan_cache_mode = {mode}")
    jobs = add_jobs(connection, 64, exclude_tasks=excluded)
    monkeypatch.setattr(connection, "prepare_threshold", 0)
    for _ in range(2):  # planned, then from the cache
        before = scans(connection)
        found = route_jobs(connection, jobs, queries, prepare=True)
        assert scans(connection) - before == (64 if indexed else 0)
    # Single precision takes one near tie for another.
    assert recall(found, exact(library, queries, excluded)) >= (0.95 if indexed else 0.999)
    assert not {task for row in found for task in row["example_tasks"]} & set(excluded)


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize("scope", SCOPES)
def test_route_uses_the_index_where_it_should(
    connection: db.Connection, queries: Vectors, scope: str, mode: str
) -> None:
    excluded, indexed = SCOPES[scope]
    connection.execute(f"SET LOCAL plan_cache_mode = {mode}")
    for query in queries[:8]:
        before = scans(connection)
        connection.execute("SELECT * FROM loracomp.route(%b, exclude_tasks => %s)", [query, excluded]).fetchall()
        assert scans(connection) - before == (1 if indexed else 0)


def test_nothing_tempts_an_exact_search_to_the_index(
    connection: db.Connection, library: Library, queries: Vectors
) -> None:
    excluded, _ = SCOPES["one"]
    connection.execute("SET LOCAL enable_sort = off; SET LOCAL enable_bitmapscan = off")
    before = scans(connection)
    found = route_jobs(connection, add_jobs(connection, 64, exclude_tasks=excluded), queries)
    assert scans(connection) == before
    assert recall(found, exact(library, queries, excluded)) == 1


def test_a_query_amid_an_excluded_task_still_finds_k(connection: db.Connection, library: Library) -> None:
    """More neighbours than ef_search are not eligible: the scan goes on until it has k that are."""
    vectors = library.vectors[library.task_ids == library.id_of("t1")][:32]
    before = scans(connection)
    found = route_jobs(connection, add_jobs(connection, 32, exclude_tasks=["t1"]), vectors)
    assert scans(connection) - before == 32
    assert {len(row["example_ids"]) for row in found} == {30}


def test_similarities_are_cosines_best_first(connection: db.Connection, library: Library, queries: Vectors) -> None:
    found = route_jobs(connection, add_jobs(connection, 64), 3 * queries)  # cosine: length does not matter
    row_of = {example: row for row, example in enumerate(library.example_ids.tolist())}
    for query, row in zip(queries, found, strict=True):
        rows = [row_of[example] for example in row["example_ids"]]
        assert row["example_tasks"] == [library.tasks[task] for task in library.task_ids[rows].tolist()]
        np.testing.assert_allclose(row["similarities"], library.vectors[rows] @ stored(3 * query), atol=1e-5)
        assert row["similarities"] == sorted(row["similarities"], reverse=True)


def test_whole_batches_agree_with_numpy(connection: db.Connection, library: Library) -> None:
    """600 jobs under 40 policies: retrieval (exact, as few are eligible) and weights."""
    generator = np.random.default_rng(3)
    policies = {f"p{number}": (int(generator.integers(1, 60)), some_settings(generator)) for number in range(40)}
    for name, (k, settings) in policies.items():
        add_policy(connection, name, k, settings)
    vectors = queries_near(generator, library, 600)
    jobs = add_jobs(connection, 600, *policies, exclude_tasks=["t0", "t1"])
    found = route_jobs(connection, jobs, vectors)
    expected = exact(library, vectors, ["t0", "t1"], k=60)
    for row, right in zip(found, expected, strict=True):
        k, settings = policies[row["policy_settings"]["name"]]
        assert_retrieved(row, right, k)
        assert_weighted(row, settings)


def some_settings(generator: np.random.Generator) -> Settings:
    return Settings(
        routing_temperature=float(generator.choice([0.0001, 0.01, 0.05, 0.1, 1, 100])),
        routing_top_p=float(generator.choice([0.0001, 0.5, 0.9, 1])),
        max_adapters=int(generator.integers(1, 6)),
        weighting=str(generator.choice(["similarity", "uniform"])),
    )


def add_policy(connection: db.Connection, name: str, k: int, settings: Settings) -> None:
    connection.execute(
        "INSERT INTO loracomp.policy"
        " (name, k, min_similarity, routing_temperature, routing_top_p, max_adapters, weighting)"
        " VALUES (%(name)s, %(k)s, -1, %(routing_temperature)s, %(routing_top_p)s, %(max_adapters)s, %(weighting)s)",
        {"name": name, "k": k, **settings.as_dict()},
    )


def assert_retrieved(row: dict[str, Any], nearest: dict[int, float], k: int) -> None:
    """The k nearest, unless two are too near each other for the server's single precision to tell."""
    right = list(nearest.items())
    np.testing.assert_allclose(row["similarities"], [similarity for _, similarity in right[:k]], atol=1e-6)
    if k == len(right) or right[k - 1][1] - right[k][1] > 1e-6:
        assert set(row["example_ids"]) == {example for example, _ in right[:k]}


def assert_weighted(row: dict[str, Any], settings: Settings) -> None:
    numbers = {name: number for number, name in enumerate(EVERY_TASK)}
    expected = weigh([numbers[name] for name in row["example_tasks"]], row["similarities"], settings)
    assert [numbers[name] for name in row["tasks"]] == expected.tasks
    np.testing.assert_allclose(row["probabilities"], expected.probabilities, atol=1e-12)
    np.testing.assert_allclose(row["weights"], expected.weights, atol=1e-12)
    kept: npt.NDArray[np.bool_] = np.array(row["weights"]) > 0
    assert kept.tolist() == expected.kept.tolist()
    assert sorted(row["composed_tasks"]) == sorted(np.array(row["tasks"])[kept].tolist())
    by_task = dict(zip(row["tasks"], row["weights"], strict=True))
    assert row["adapter_weights"] == [by_task[task] for task in row["composed_tasks"]]
    assert row["fallback"] is None


def test_k_above_the_number_of_examples_takes_them_all(connection: db.Connection, library: Library) -> None:
    add_policy(connection, "wide", 200, Settings())
    few = unit(np.eye(3, 832))
    add_examples(connection, add_task(connection, "small"), few)
    (row,) = route_jobs(connection, add_jobs(connection, 1, "wide", exclude_tasks=EVERY_TASK), few[:1])
    assert (len(row["example_ids"]), row["similarities"], row["tasks"]) == (3, [1, 0, 0], ["small"])


def test_tasks_are_found_by_bisection_whatever_the_order_of_their_names(
    connection: db.Connection, library: Library, queries: Vectors
) -> None:
    connection.execute("UPDATE loracomp.task SET name = 'z' || (1000 - id)")
    connection.execute("SET LOCAL enable_seqscan = off; SET LOCAL hnsw.ef_search = 1000")
    connection.execute("SET LOCAL hnsw.iterative_scan = 'relaxed_order'")
    tasks = sorted(library.tasks)[::2]
    for query in queries[:8]:
        found = {
            exact: [
                row["example_id"]
                for row in connection.execute(
                    "SELECT n.example_id FROM loracomp.nearest_examples(%b::vector::halfvec, %s, 30, %s) AS n",
                    [query, tasks, exact],
                )
            ]
            for exact in (False, True)
        }
        assert len(set(found[False]) & set(found[True])) >= 29


def test_looking_for_tasks_that_write_text_reads_an_entry_of_an_index_for_each_task(
    connection: db.Connection, queries: Vectors
) -> None:
    """Tasks may have any number of examples with choices, and of examples without."""
    connection.execute(
        "UPDATE loracomp.example AS e SET prompt = 'x', choices = CASE WHEN t.name <> 't2' THEN '{a,b}'::text[] END"
        " FROM loracomp.task AS t WHERE t.id = e.task_id"
    )
    reads = (
        "SELECT pg_stat_get_xact_numscans('loracomp.example_of_text'::regclass) AS probes,"
        " pg_stat_get_xact_tuples_returned('loracomp.example'::regclass)"
        " + pg_stat_get_xact_tuples_fetched('loracomp.example'::regclass) AS rows"
    )
    before = connection.execute(reads).fetchone()
    rows = route_jobs(connection, add_jobs(connection, len(queries), choices=None), queries)
    after = connection.execute(reads).fetchone()
    assert before is not None and after is not None
    assert {task for row in rows for task in row["example_tasks"]} == {"t2"}
    assert after["probes"] - before["probes"] == len(EVERY_TASK)
    assert after["rows"] - before["rows"] <= 1


def test_equal_examples_come_in_order_of_their_ids(connection: db.Connection) -> None:
    ids = add_examples(connection, add_task(connection, "same"), unit(np.ones((30, 832))))
    (row,) = route_jobs(connection, add_jobs(connection, 1, exclude_tasks=EVERY_TASK), unit(np.ones((1, 832))))
    assert row["example_ids"] == ids[:30]


def test_the_examples_of_a_task_are_stored_side_by_side(connection: db.Connection) -> None:
    """What a search reads is then near in memory. Embeddings that are added later come last."""
    connection.execute("TRUNCATE loracomp.example_embedding")
    tasks = [add_task(connection, "one"), add_task(connection, "other")]
    for task in reversed(tasks):
        add_examples(connection, task, unit(np.ones((10, 832))))
    connection.execute("SELECT loracomp.build_embedding_index()")
    rows = connection.execute("SELECT task_id FROM loracomp.example_embedding ORDER BY ctid")
    assert [row["task_id"] for row in rows] == sorted(tasks * 10)


def test_no_function_that_disables_sequential_scans_may_be_compiled(connection: db.Connection) -> None:
    """A scan that cannot be avoided gets a cost far above jit_above_cost. The embedded server has no compiler."""
    rows = connection.execute(
        "SELECT oid::regprocedure::text AS name, 'jit=off' = ANY (proconfig) AS is_safe"
        " FROM pg_proc WHERE 'enable_seqscan=off' = ANY (proconfig)"
    ).fetchall()
    assert len(rows) > 10
    assert [row["name"] for row in rows if not row["is_safe"]] == []


def test_ef_search_grows_with_the_table(connection: db.Connection) -> None:
    sizes = [0, 100_000, 200_000, 1_000_000, 10_000_000_000]
    rows = connection.execute("SELECT loracomp.fitting_ef_search(n) AS ef FROM unnest(%s::bigint[]) AS n", [sizes])
    assert [row["ef"] for row in rows] == [100, 100, 132, 251, 1000]


def test_tune_routing_sets_ef_search_where_the_index_is_searched(connection: db.Connection) -> None:
    connection.execute("ALTER FUNCTION loracomp.route_jobs SET hnsw.ef_search = 40")
    connection.execute(QUERIES["tune_routing"])
    rows = connection.execute(
        "SELECT proname, c FROM pg_proc, unnest(proconfig) AS c WHERE c LIKE 'hnsw.ef_search=%' ORDER BY proname"
    ).fetchall()
    assert [(row["proname"], row["c"]) for row in rows] == [
        (name, "hnsw.ef_search=100") for name in ("likely_tasks", "route", "route_jobs")
    ]
