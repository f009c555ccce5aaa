"""route as an analyst calls them: settings, rights, and what they refuse."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import psycopg
import pytest
from psycopg import sql
from psycopg.types.json import Jsonb

from conftest import create_database, drop_database, url_of
from loracomp.database import connections as db
from routing_data import (
    Library,
    add_base_model,
    add_examples,
    add_jobs,
    add_task,
    clustered,
    queries_near,
    route_jobs,
)
from routing_reference import Settings, weigh

ROUTE = """
SELECT * FROM loracomp.route(%(embedding)b, policy => %(policy)s, settings => %(settings)s,
    exclude_tasks => %(exclude_tasks)s, base_model => %(base_model)s)
"""
ADD_ENCODER = (
    "INSERT INTO loracomp.encoder VALUES (1, 'toy-encoder', 'made up', NULL, repeat('0', 64), repeat('0', 64), 832, 1)"
)
AS_THE_POLICY = {"policy": "default", "exclude_tasks": [], "base_model": None}
# Other settings than the default policy's.
CHANGES: list[dict[str, Any]] = [
    {},
    {"k": 5},
    {"routing_temperature": 0.01},
    {"routing_temperature": 100.0, "routing_top_p": 0.5},
    {"max_adapters": 2, "weighting": "uniform"},
    {"routing_temperature": 1.0, "min_share": 0.2},
]


@pytest.fixture(scope="module")
def library(server: str, template: str) -> Iterator[tuple[str, db.Connection, Library]]:
    """Five tasks of 30 examples, the last for members of one role."""
    name = f"{template}_people"
    with db.connect(create_database(server, name, template)) as connection:
        add_base_model(connection)
        connection.execute(ADD_ENCODER)
        ids, task_ids, tasks = [], [], {}
        embeddings = clustered(np.random.default_rng(5), [30] * 5)
        for number, vectors in enumerate(embeddings):
            task_id = add_task(connection, f"t{number}", reader_role="toy_readers" if number == 4 else None)
            ids += add_examples(connection, task_id, vectors)
            task_ids += [task_id] * 30
            tasks[task_id] = f"t{number}"
        yield name, connection, Library(np.array(ids), np.array(task_ids), np.concatenate(embeddings), tasks)
    drop_database(server, name)


@pytest.fixture
def connection(library: tuple[str, db.Connection, Library]) -> Iterator[db.Connection]:
    with library[1].transaction(force_rollback=True):
        yield library[1]


@pytest.fixture
def query(library: tuple[str, db.Connection, Library]) -> Any:
    return queries_near(np.random.default_rng(6), library[2], 1)[0]


def route(connection: db.Connection, query: Any, **changes: Any) -> list[dict[str, Any]]:
    """With these arguments of the function; all others are settings."""
    given = {name: changes.pop(name, value) for name, value in AS_THE_POLICY.items()}
    return connection.execute(ROUTE, {**given, "embedding": query, "settings": Jsonb(as_json(changes))}).fetchall()


def as_json(settings: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN and no infinity; Postgres reads them as texts."""
    return {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in settings.items()
    }


def expected(trace: dict[str, Any], changes: dict[str, Any]) -> list[tuple[str, float, bool, float]]:
    k = changes.get("k", 30)
    settings = Settings(**{name: value for name, value in changes.items() if name != "k"})
    names = sorted(set(trace["example_tasks"]))
    numbers = [names.index(task) for task in trace["example_tasks"][:k]]
    found = weigh(numbers, trace["similarities"][:k], settings)
    columns = (found.probabilities.tolist(), found.kept.tolist(), found.weights.tolist())
    return list(zip([names[task] for task in found.tasks], *columns, strict=True))


def as_tuples(rows: list[dict[str, Any]]) -> list[tuple[str, float, bool, float]]:
    return [(row["task"], row["probability"], row["in_nucleus"], row["weight"]) for row in rows]


def assert_same(found: list[tuple[str, float, bool, float]], right: list[tuple[str, float, bool, float]]) -> None:
    assert [(task, kept) for task, _, kept, _ in found] == [(task, kept) for task, _, kept, _ in right]
    numbers = [[(probability, weight) for _, probability, _, weight in rows] for rows in (found, right)]
    np.testing.assert_allclose(*numbers, rtol=0, atol=1e-12)


@pytest.mark.parametrize("changes", CHANGES)
def test_route_gives_what_a_job_would_get(connection: db.Connection, query: Any, changes: dict[str, Any]) -> None:
    (trace,) = route_jobs(connection, add_jobs(connection, 1), np.array([query]))
    found = route(connection, query, **changes)
    assert_same(as_tuples(found), expected(trace, changes))
    retrieved = trace["example_tasks"][: changes.get("k", 30)]
    for row in found:
        assert row["nearest"] == trace["similarities"][retrieved.index(row["task"])]
        assert row["examples"] == retrieved.count(row["task"])


def test_below_min_similarity_all_weights_are_zero(connection: db.Connection, query: Any) -> None:
    found = route(connection, query, min_similarity=1)
    assert found and {row["weight"] for row in found} == {0}


def test_where_nothing_is_eligible_no_task_is_named(connection: db.Connection, query: Any) -> None:
    add_base_model(connection, "other", is_default=False)
    assert route(connection, query, base_model="other") == []
    assert route(connection, query, exclude_tasks=["t0", "t1", "t2", "t3", "t4"]) == []


WRONG = {"k": 201, "routing_temperature": math.nan, "routing_top_p": 0.0, "max_adapters": 0}
WRONG |= {"weighting": "equal", "min_similarity": math.inf, "min_share": 2}


@pytest.mark.parametrize("field", WRONG)
def test_settings_out_of_range_are_refused_by_name(connection: db.Connection, query: Any, field: str) -> None:
    with pytest.raises(psycopg.errors.CheckViolation, match=f"^{field} must be "):
        route(connection, query, **{field: WRONG[field]})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"topp": 0.9}, "there is no setting topp: the settings are k, routing_temperature, routing_top_p, "),
        ({"strategy": "linear"}, "there is no setting strategy: the settings are k, routing_temperature"),
        ({"name": "other"}, "there is no setting name: the settings are "),
        ({"k": "many"}, 'k must be of type integer, not "many"'),
        ({"k": 2.5}, "k must be of type integer, not 2.5"),
        ({"k": 1e10}, "k must be of type integer, not 1"),
        ({"routing_top_p": [0.9]}, r"routing_top_p must be of type double precision, not \[0.9\]"),
        ({"routing_top_p": None}, "routing_top_p must not be null"),
        ({"weighting": 3}, "weighting must be one of similarity, uniform, measured, not 3"),
        ([["routing_top_p", 0.9]], "settings must be a JSON object"),
        (None, "settings must be a JSON object"),
    ],
)
@pytest.mark.parametrize("function", ["route", "policy_with"])
def test_an_overlay_that_is_none_is_refused_by_name_with_what_is_allowed(
    connection: db.Connection, query: Any, function: str, settings: Any, message: str
) -> None:
    call = {
        "route": "SELECT loracomp.route(%(query)b, settings => %(settings)s)",
        "policy_with": "SELECT loracomp.policy_with('default', %(settings)s)",
    }[function]
    given = {"query": query, "settings": None if settings is None else Jsonb(settings)}
    with pytest.raises((psycopg.errors.InvalidParameterValue, psycopg.IntegrityError), match=f"^{message}"):
        connection.execute(call, {name: value for name, value in given.items() if f"%({name})" in call})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy": "none such"}, "there is no policy none such"),
        ({"policy": None}, "there is no policy"),
        ({"exclude_tasks": ["t1", "none such"]}, "exclude_tasks names tasks that do not exist: none such"),
        ({"base_model": "none such"}, "base model none such is not registered"),
    ],
)
def test_unknown_names_are_refused(
    connection: db.Connection, query: Any, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises((psycopg.errors.NoDataFound, psycopg.errors.ForeignKeyViolation), match=message):
        route(connection, query, **changes)


def test_a_vector_of_another_encoder_is_refused(connection: db.Connection) -> None:
    with pytest.raises(psycopg.DataError, match="embedding has 3 dimensions; this database holds vectors of 832"):
        route(connection, np.ones(3, dtype=np.float32))


def test_a_missing_vector_is_refused(connection: db.Connection) -> None:
    with pytest.raises(psycopg.DataError, match="embedding must not be null"):
        route(connection, None)


# Rights, with roles that log in

ROLES = "toy_pool, toy_reader, toy_outsider, toy_readers"


@pytest.fixture(scope="module")
def people(library: tuple[str, db.Connection, Library]) -> Iterator[None]:
    """Two analysts, one of them a reader of t4, and a pool's login that may become either."""
    owner = library[1]
    owner.execute("CREATE ROLE toy_readers; CREATE ROLE toy_outsider LOGIN IN ROLE loracomp_analyst")
    owner.execute("CREATE ROLE toy_reader LOGIN IN ROLE toy_readers, loracomp_analyst")
    owner.execute("CREATE ROLE toy_pool LOGIN NOINHERIT IN ROLE toy_reader, toy_outsider")
    yield
    owner.execute(f"DROP ROLE {ROLES}")


@pytest.mark.usefixtures("people")
@pytest.mark.parametrize("login", ["toy_pool", None])
@pytest.mark.parametrize(("role", "sees"), [("toy_reader", True), ("toy_outsider", False)])
def test_route_retrieves_what_the_caller_may_read(
    library: tuple[str, db.Connection, Library], server: str, login: str | None, role: str, sees: bool
) -> None:
    hidden = library[2].vectors[-1]
    with db.connect(url_of(server, library[0], login or role)) as caller:
        if login:
            caller.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))
        assert ("t4" in [row["task"] for row in route(caller, hidden)]) == sees
        for forged in ("SET ROLE postgres", "SET SESSION AUTHORIZATION postgres"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                caller.execute(forged)


@pytest.mark.usefixtures("people")
def test_an_analyst_reads_no_embedding_and_routes_no_jobs(
    library: tuple[str, db.Connection, Library], server: str, query: Any
) -> None:
    with db.connect(url_of(server, library[0], "toy_outsider")) as caller:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            caller.execute("SELECT embedding FROM loracomp.example_embedding")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            caller.execute("SELECT loracomp.route_jobs('{1}', %b::vector[])", [[query]])
