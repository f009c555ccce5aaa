"""task_weights against NumPy, and what they refuse."""

import math
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from psycopg.types.json import Jsonb

from conftest import create_database, drop_database
from loracomp.database import connections as db
from routing_reference import Settings, Weighted, weigh

TASK_WEIGHTS = """
SELECT c.n, w.*
FROM jsonb_to_recordset(%s) AS c (n int, tasks int[], similarities float8[], settings jsonb)
CROSS JOIN LATERAL loracomp.policy_with('default', c.settings) AS s
CROSS JOIN LATERAL loracomp.task_weights(c.tasks, c.similarities, s) AS w
"""
Case = tuple[list[int], list[float], Settings]


@pytest.fixture(scope="module")
def read_only(server: str, template: str) -> Iterator[db.Connection]:
    """A database that no test of this module changes."""
    name = f"{template}_weights"
    with db.connect(create_database(server, name, template)) as connection:
        yield connection
    drop_database(server, name)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Up to 60 examples of up to 9 tasks, with many ties or none, under any settings that a policy may have."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    count = draw(st.integers(1, 60))
    digits = draw(st.sampled_from([1, 2, 17]))
    similarities = np.sort(np.round(generator.uniform(-0.2, 1, count), digits))[::-1]
    tasks = generator.integers(1, draw(st.integers(2, 10)), count)
    routing_temperature = draw(st.sampled_from([0.0001, 0.01, 0.05, 0.1, 1.0, 100.0]) | st.floats(0.0001, 10))
    return (
        tasks.tolist(),
        similarities.tolist(),
        Settings(
            routing_temperature=routing_temperature,
            routing_top_p=draw(st.sampled_from([0.0001, 0.5, 0.8, 0.9, 1.0]) | st.floats(0.0001, 1)),
            max_adapters=draw(st.integers(1, 9)),
            weighting=draw(st.sampled_from(["similarity", "uniform"])),
            min_share=draw(st.sampled_from([0.0, 0.0, 0.1, 0.25, 1.0]) | st.floats(0, 1)),
        ),
    )


def in_sql(connection: db.Connection, batch: list[Case]) -> list[Weighted]:
    rows = [
        {"n": n, "tasks": tasks, "similarities": similarities, "settings": settings.as_dict()}
        for n, (tasks, similarities, settings) in enumerate(batch)
    ]
    answered = connection.execute(TASK_WEIGHTS, [Jsonb(rows)]).fetchall()
    grouped = {n: list(found) for n, found in groupby(answered, key=lambda row: row["n"])}
    return [weighted(grouped[n]) for n in range(len(batch))]


def weighted(rows: list[dict[str, Any]], task: str = "task_id") -> Weighted:
    return Weighted(
        [row[task] for row in rows],
        np.array([row["probability"] for row in rows]),
        np.array([row["in_nucleus"] for row in rows]),
        np.array([row["weight"] for row in rows]),
    )


def assert_same(found: Weighted, expected: Weighted) -> None:
    assert found.tasks == expected.tasks
    assert found.kept.tolist() == expected.kept.tolist()
    np.testing.assert_allclose(found.probabilities, expected.probabilities, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.weights, expected.weights, rtol=0, atol=1e-12)


@given(batch=st.lists(cases(), min_size=50, max_size=50))
# Without shrinking: a batch of 50 cases takes minutes to shrink, and the case that fails is shown anyway.
@hypothesis_settings(max_examples=20, deadline=None, derandomize=True, phases=[Phase.generate])
def test_weights_are_those_of_numpy(read_only: db.Connection, batch: list[Case]) -> None:
    for case, found in zip(batch, in_sql(read_only, batch), strict=True):
        assert_same(found, weigh(*case))
        assert found.kept[0], "the nucleus is never empty"
        assert math.isclose(found.weights.sum(), 1)


def test_ties_go_to_the_most_similar_example(read_only: db.Connection) -> None:
    """Sums that differ by less than 1e-12 are tied: task 7 has the best example, and 9 a sum larger by 2.5e-13."""
    one = Settings(routing_temperature=100.0, routing_top_p=0.5, max_adapters=1)
    (found,) = in_sql(read_only, [([7, 9, 9, 7], [0.8 + 1e-10, 0.8, 0.8, 0.8 - 2e-10], one)])
    assert (found.tasks, found.kept.tolist()) == ([7, 9], [True, False])


def test_a_mass_that_meets_top_p_exactly_is_enough(read_only: db.Connection) -> None:
    (found,) = in_sql(read_only, [([1] * 5 + [2] * 4 + [3], [0.5] * 10, Settings(routing_top_p=0.9))])
    assert found.kept.tolist() == [True, True, False]


def test_a_share_that_falls_short_goes_to_the_others(read_only: db.Connection) -> None:
    (found,) = in_sql(read_only, [([1] * 5 + [2] * 4 + [3], [0.5] * 10, Settings(routing_top_p=1.0, min_share=0.2))])
    assert found.kept.tolist() == [True, True, False]
    np.testing.assert_allclose(found.weights, [5 / 9, 4 / 9, 0])
    (alone,) = in_sql(read_only, [([1, 2, 3], [0.5] * 3, Settings(routing_top_p=1.0, min_share=1.0))])
    assert alone.kept.tolist() == [True, False, False], "the most probable stays, whatever its share"


def test_order_of_examples_does_not_matter(read_only: db.Connection) -> None:
    tasks, similarities, settings = [1, 2, 3, 2, 1], [0.9, 0.7, 0.6, 0.5, 0.1], Settings(routing_top_p=0.8)
    forward, backward = in_sql(
        read_only, [(tasks, similarities, settings), (tasks[::-1], similarities[::-1], settings)]
    )
    assert (forward.tasks, forward.kept.tolist()) == ([1, 2, 3], [True, False, False])
    assert_same(backward, forward)


def test_no_examples_give_no_tasks(read_only: db.Connection) -> None:
    assert read_only.execute("SELECT * FROM loracomp.task_weights('{}', '{}', loracomp.policy_with())").fetchall() == []


@pytest.mark.parametrize(
    ("tasks", "similarities", "message"),
    [
        ([1, 2], [0.5], "must have the same length, not 2 and 1"),
        ([1], [math.nan], "neither null nor NaN"),
        ([1], [None], "neither null nor NaN"),
        ([None], [0.5], "must not hold null"),
    ],
)
def test_examples_that_are_none_are_refused(
    read_only: db.Connection, tasks: list[Any], similarities: list[Any], message: str
) -> None:
    with pytest.raises(psycopg.DataError, match=message):
        read_only.execute(
            "SELECT * FROM loracomp.task_weights(%s::int[], %s::float8[], loracomp.policy_with())",
            [tasks, similarities],
        )


BOUNDS = {
    "k": [0, 1, 200, 201, None],
    "routing_temperature": [0.00009, 0.0001, 100, 100.1, math.nan, math.inf, -math.inf, None],
    "routing_top_p": [0, 0.0001, 1, 1.0001, math.nan, math.inf, None],
    "max_adapters": [0, 1, 64, 65, None],
    "min_share": [-0.1, 0, 1, 1.1, math.nan, None],
    "weighting": ["similarity", "uniform", "measured", "equal", None],
    "gain_prior": [-0.1, 0, 1000, 1000.1, math.nan, math.inf, None],
    "gain_margin": [-1000.1, -1000, 1000, math.nan, -math.inf, None],
    "min_similarity": [-1.001, -1, 1, 1.001, math.nan, None],
}
CHECK = "SELECT loracomp.policy_with('default', jsonb_build_object(%(field)s::text, %(value)s::text))"


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in BOUNDS.items() for value in values])
def test_functions_refuse_what_a_policy_refuses(read_only: db.Connection, field: str, value: Any) -> None:
    by_policy = refusal(
        read_only, f"UPDATE loracomp.policy SET {field} = %(value)s WHERE name = 'default'", field, value
    )
    by_function = refusal(read_only, CHECK, field, value)
    assert (by_policy is None) == (by_function is None)
    assert by_function is None or by_function.startswith(f"{field} must ")


def refusal(connection: db.Connection, statement: str, field: str, value: Any) -> str | None:
    try:
        with connection.transaction(force_rollback=True):
            connection.execute(statement, {"field": field, "value": value})
    except psycopg.Error as error:
        return str(error)
    return None
