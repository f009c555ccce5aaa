"""Weighting by measured gains: equal to NumPy, in route_jobs and route; scope, words, and secrets."""

import math
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import psycopg
import pytest
from hypothesis import Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from psycopg import sql
from psycopg.types.json import Jsonb

from conftest import create_database, drop_database
from loracomp.database import connections as db
from loracomp.database.script import sql_files
from routing_data import Library, add_adapter, add_jobs, load, queries_near, route_jobs, unit
from routing_reference import Floats, Settings, expect, weigh_by_gain

TASKS = 6
TASK_WEIGHTS = """
SELECT c.n, w.*
FROM jsonb_to_recordset(%s) AS c (n int, tasks int[], gains float8[], settings jsonb)
CROSS JOIN LATERAL loracomp.policy_with('default', c.settings) AS s
CROSS JOIN LATERAL loracomp.task_weights('{1,2,2}', '{0.9,0.8,0.1}', s, c.tasks, c.gains) AS w
"""
Case = tuple[list[int], list[float], Settings]
Shared = tuple[db.Connection, Library, Floats]


@pytest.fixture(scope="module")
def shared(server: str, template: str) -> Iterator[Shared]:
    """Six tasks with 40 examples each, of which two in three are measured under some of the adapters; and t6, measured,
    without an adapter. Gains [examples, tasks], NaN where not measured.
    """
    name = f"{template}_measured"
    with db.connect(create_database(server, name, template)) as connection:
        library = load(connection, 5, [40] * (TASKS + 1))
        connection.execute("UPDATE loracomp.adapter SET status = 'retired' WHERE name = 't6'")
        generator = np.random.default_rng(6)
        gains = generator.normal(0.02, 0.3, (len(library.example_ids), TASKS)).astype(np.float32).astype(float)
        gains[generator.random(gains.shape) < 0.4] = np.nan
        gains[generator.random(len(gains)) < 0.3] = np.nan
        measure(connection, library.example_ids, gains)
        yield connection, library, gains
    drop_database(server, name)


@pytest.fixture
def connection(shared: Shared) -> Iterator[db.Connection]:
    """Rolls back everything that a test changes."""
    with shared[0].transaction(force_rollback=True):
        set_policy(shared[0], k=30)
        yield shared[0]


def measure(connection: db.Connection, example_ids: npt.NDArray[np.int64] | list[int], gains: Floats) -> None:
    """Store gains [examples, tasks] of the active or retired adapters of t0, t1, ..."""
    rows = connection.execute("SELECT name, id FROM loracomp.adapter WHERE version = 1").fetchall()
    ids = {row["name"]: row["id"] for row in rows}
    for example_id, row in zip(example_ids, gains, strict=True):
        known = {ids[f"t{at}"]: gain for at, gain in enumerate(row.tolist()) if not math.isnan(gain)}
        if known:
            connection.execute(
                "INSERT INTO loracomp.measurement (example_id, base_model_id, task_id, choice_normalization,"
                " base_score, base_is_right, adapter_ids, gains, are_right)"
                " SELECT e.id, b.id, e.task_id, 'tokens', -1, true, %s, %s, array_fill(true, ARRAY[%s])"
                " FROM loracomp.example AS e, loracomp.base_model AS b WHERE e.id = %s AND b.is_default",
                [list(known), list(known.values()), len(known), int(example_id)],
            )


def set_policy(connection: db.Connection, **settings: Any) -> None:
    for field, value in settings.items():
        change = sql.SQL("UPDATE loracomp.policy SET {} = %s WHERE name = 'measured'").format(sql.Identifier(field))
        connection.execute(change, [value])


# --- equality with NumPy


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Expected gains of up to nine tasks, with ties and zeros, under any settings."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    tasks = generator.permutation(np.arange(1, 12))[: draw(st.integers(0, 9))]
    gains = np.round(generator.normal(0, 0.3, len(tasks)), draw(st.sampled_from([1, 2, 17])))
    settings = Settings(
        weighting="measured",
        max_adapters=draw(st.integers(1, 9)),
        gain_margin=draw(st.sampled_from([0.0, 0.0, 0.1, -0.2, 1.0]) | st.floats(-1, 1)),
        min_share=draw(st.sampled_from([0.0, 0.0, 0.1, 0.4, 1.0])),
    )
    return tasks.tolist(), gains.tolist(), settings


def in_sql(connection: db.Connection, batch: list[Case]) -> list[dict[int, dict[str, Any]]]:
    rows = [
        {"n": n, "tasks": tasks, "gains": gains, "settings": settings.as_dict()}
        for n, (tasks, gains, settings) in enumerate(batch)
    ]
    answered = connection.execute(TASK_WEIGHTS, [Jsonb(rows)]).fetchall()
    grouped = {n: list(found) for n, found in groupby(answered, key=lambda row: row["n"])}
    return [{row["task_id"]: row for row in grouped[n]} for n in range(len(batch))]


def check_weights(connection: db.Connection, batch: list[Case]) -> None:
    for (tasks, gains, settings), found in zip(batch, in_sql(connection, batch), strict=True):
        expected = weigh_by_gain(np.array(gains), settings)
        weights = np.array([found[task]["weight"] for task in tasks], float)
        np.testing.assert_allclose(weights, expected, rtol=0, atol=1e-9)
        assert [found[task]["in_nucleus"] for task in tasks] == (expected > 0).tolist()
        assert [found[task]["expected_gain"] for task in tasks] == gains
        assert set(found) == {1, 2, *tasks}
        assert sum(row["probability"] for row in found.values()) == pytest.approx(1)
        assert all(found[task]["weight"] == 0 for task in {1, 2} - set(tasks))


@given(batch=st.lists(cases(), min_size=40, max_size=40))
@hypothesis_settings(max_examples=20, deadline=None, derandomize=True, phases=[Phase.generate])
def test_weights_are_those_of_numpy(shared: Shared, batch: list[Case]) -> None:
    check_weights(shared[0], batch)


SETTINGS: list[dict[str, float]] = [
    {},
    {"gain_prior": 1.0, "gain_margin": 0.03},
    {"gain_prior": 0.0, "routing_temperature": 0.02, "max_adapters": 1},
    {"gain_margin": -0.1, "max_adapters": 6, "k": 60},
    {"routing_temperature": 100.0, "min_share": 0.35},
]


def check_routes(connection: db.Connection, library: Library, gains: Floats, settings: dict[str, float]) -> None:
    set_policy(connection, **settings)
    used = Settings(**{"weighting": "measured", "max_adapters": 3} | {k: v for k, v in settings.items() if k != "k"})
    vectors = queries_near(np.random.default_rng(7), library, 12)
    helped = 0
    for query, row in zip(vectors, route_jobs(connection, add_jobs(connection, 12, "measured"), vectors), strict=True):
        similarities = library.vectors.astype(float) @ query.astype(float)
        nearest = np.argsort(-similarities)[: int(settings.get("k", 30))]
        expected = expect(similarities[nearest].tolist(), gains[nearest], used)
        weights = weigh_by_gain(expected, used)
        found = dict(zip(row["tasks"], row["expected_gains"], strict=True))
        in_trace = [math.nan if (gain := found.get(f"t{at}")) is None else gain for at in range(TASKS)]
        np.testing.assert_allclose(in_trace, expected, rtol=0, atol=1e-4)
        composed = dict(zip(row["composed_tasks"], row["adapter_weights"], strict=True))
        np.testing.assert_allclose([composed.get(f"t{at}", 0) for at in range(TASKS)], weights, rtol=0, atol=1e-3)
        assert row["fallback"] == (None if composed else "no adapter is expected to help")
        assert row["searched_task_count"] == TASKS + 1, "t6 has measured examples and no adapter"
        helped += bool(composed)
    assert helped


@pytest.mark.parametrize("settings", SETTINGS)
def test_routed_jobs_have_the_gains_and_weights_of_numpy(
    connection: db.Connection, shared: Shared, settings: dict[str, float]
) -> None:
    check_routes(connection, *shared[1:], settings)


MUTANTS = [
    ("sum(s.e * g.gain)", "sum(g.gain)"),
    ("sum(s.e * g.gain)", "avg(s.e * g.gain)"),
    ("(sum(s.e) + (settings).gain_prior)", "(1 + (settings).gain_prior)"),
    ("(sum(s.e) + (settings).gain_prior)", "sum(s.e)"),
    ("x.e / sum(x.e) OVER ()", "x.e"),
    ("(similarity - highest) / greatest", "(similarity - highest) * greatest"),
    ("SELECT adapter_tasks[p.ordinal] AS", "SELECT adapter_tasks[1] AS"),
    ("m.example_id = s.example_id", "m.example_id >= s.example_id"),
    ("r.gain > (settings).gain_margin", "r.gain > 0"),
    ("r.gain > (settings).gain_margin", "r.gain > -(settings).gain_margin"),
    ("AND r.rank <= (settings).max_adapters", ""),
    ("u.gain - least((settings).gain_margin, 0)", "u.gain"),
    ("u.gain - least((settings).gain_margin, 0)", "1"),
    ("ORDER BY u.gain DESC, u.ordinal", "ORDER BY u.gain, u.ordinal"),
    ("e.rank = 1 OR e.worth", "e.worth"),
]


@pytest.mark.parametrize(("right", "wrong"), MUTANTS)
def test_a_wrong_formula_is_found(connection: db.Connection, shared: Shared, right: str, wrong: str) -> None:
    source = "".join(file.source for file in sql_files() if file.path.startswith("40_routing/1"))
    changed = 0
    for name in ("relative_share", "expected_gains", "measured_weights"):
        start = source.index(f"CREATE FUNCTION loracomp.{name}(")
        made = source[start : source.index("\nCOMMENT", start)]
        if right in made:
            mutant = made.replace(right, wrong).replace("CREATE", "CREATE OR REPLACE", 1)
            connection.execute(mutant.encode())
            changed += 1
    assert changed == 1
    generator = np.random.default_rng(8)
    batch: list[Case] = [
        (
            list(range(1, 7)),
            generator.normal(0, 0.3, 6).tolist(),
            Settings(weighting="measured", max_adapters=2, gain_margin=margin, min_share=share),
        )
        for margin in (0.0, 0.1, -0.2)
        for share in (0.0, 0.4, 1.0)
        for _ in range(5)
    ]
    with pytest.raises((AssertionError, psycopg.Error)):
        check_weights(connection, batch)
        for settings in SETTINGS:
            with connection.transaction(force_rollback=True):
                check_routes(connection, *shared[1:], settings)


# --- what is decided


def only(connection: db.Connection, example_ids: list[int], gains: list[list[float]]) -> None:
    """No measurements but these."""
    connection.execute("DELETE FROM loracomp.measurement")
    measure(connection, example_ids, np.array(gains))


def nearest(shared: Shared, at: int, count: int = 30) -> list[int]:
    """The examples nearest to an example."""
    library = shared[1]
    return library.example_ids[np.argsort(-(library.vectors @ library.vectors[at]))[:count]].tolist()


def route_at(connection: db.Connection, shared: Shared, at: int, **job: Any) -> dict[str, Any]:
    """The route of a job that is like an example."""
    (row,) = route_jobs(connection, add_jobs(connection, 1, "measured", **job), shared[1].vectors[at : at + 1])
    return row


NAN = math.nan


def test_a_task_without_an_adapter_routes_by_its_measured_examples(connection: db.Connection, shared: Shared) -> None:
    at = TASKS * 40
    only(connection, nearest(shared, at), [[-0.5, 0.4, NAN, 0.2, NAN, 0.0]] * 30)
    row = route_at(connection, shared, at)
    assert (row["example_tasks"][0], row["tasks"][0], row["weights"][0]) == ("t6", "t6", 0)
    assert row["composed_tasks"] == ["t1", "t3"]
    np.testing.assert_allclose(row["adapter_weights"], [2 / 3, 1 / 3], atol=1e-6)
    expected = dict(zip(row["tasks"], row["expected_gains"], strict=True))
    assert expected["t1"] == pytest.approx(0.4 / 1.1)
    assert expected["t6"] is None
    (other,) = route_jobs(connection, add_jobs(connection, 1, "default"), shared[1].vectors[at : at + 1])
    assert "t6" not in other["example_tasks"], "for other weightings it has nothing to compose"
    assert (other["expected_gains"], other["searched_task_count"]) == (None, TASKS)


def test_where_none_is_expected_to_help_the_base_model_answers_and_says_so(
    connection: db.Connection, shared: Shared
) -> None:
    only_t6 = add_jobs(connection, 1, "measured", exclude_tasks=[f"t{number}" for number in range(TASKS)])
    (row,) = route_jobs(connection, only_t6, shared[1].vectors[-1:])
    assert (row["adapter_ids"], row["fallback"]) == ([], "no eligible task has an adapter")
    only(connection, nearest(shared, 0), [[-0.5, 0.0, -0.1, NAN, NAN, NAN]] * 30)
    row = route_at(connection, shared, 0)
    assert (row["adapter_ids"], row["fallback"]) == ([], "no adapter is expected to help")
    connection.execute("DELETE FROM loracomp.measurement")
    not_measured = "no retrieved example is measured with the policy's choice_normalization and chat_template"
    assert route_at(connection, shared, 0)["fallback"] == not_measured
    set_policy(connection, min_similarity=1)
    only(connection, nearest(shared, 0), [[0.5] * 6] * 30)
    (far,) = route_jobs(
        connection, add_jobs(connection, 1, "measured"), unit(shared[1].vectors[:1] + shared[1].vectors[50:51])
    )
    assert (far["adapter_ids"], far["fallback"]) == ([], "below min_similarity")


@pytest.mark.parametrize("has_chat_template", [False, True])
@pytest.mark.parametrize("chat_template", ["never", "generation", "always"])
@pytest.mark.parametrize("normalization", ["none", "characters", "tokens"])
def test_only_gains_that_were_measured_as_the_policy_scores_are_used(
    connection: db.Connection, shared: Shared, normalization: str, chat_template: str, has_chat_template: bool
) -> None:
    _, library, gains = shared
    connection.execute("UPDATE loracomp.base_model SET has_chat_template = %s", [has_chat_template])
    connection.execute(
        "UPDATE loracomp.measurement AS m SET chat_template = m.example_id % 2 = 0,"
        " choice_normalization = ('{none,characters,tokens}'::text[])[1 + m.example_id % 3],"
        " base_is_right = CASE WHEN m.example_id % 5 < 2 THEN m.base_is_right END"
    )
    templated = {"never": (False, False), "generation": (False, True), "always": (True, True)}[chat_template]
    expected = [
        ["none", "characters", "tokens"][number % 3] == normalization
        and (number % 2 == 0) == (has_chat_template and templated[number % 5 >= 2])
        for number in library.example_ids.tolist()
    ]
    used = np.where(np.array(expected)[:, None], gains, math.nan)
    settings = {"choice_normalization": normalization, "chat_template": chat_template}
    set_policy(connection, k=60, **settings)
    vectors = queries_near(np.random.default_rng(9), library, 12)
    seen = 0
    for query, row in zip(vectors, route_jobs(connection, add_jobs(connection, 12, "measured"), vectors), strict=True):
        similarities = library.vectors.astype(float) @ query.astype(float)
        places = np.argsort(-similarities)[:60]
        found = dict(zip(row["tasks"], row["expected_gains"], strict=True))
        in_trace = [math.nan if (gain := found.get(f"t{at}")) is None else gain for at in range(TASKS)]
        only_these = expect(similarities[places].tolist(), used[places], Settings(weighting="measured"))
        np.testing.assert_allclose(in_trace, only_these, rtol=0, atol=1e-4)
        seen += np.isfinite(only_these).sum()
    assert seen


def test_gains_of_adapters_that_a_job_may_not_use_are_neither_used_nor_shown(
    connection: db.Connection, shared: Shared
) -> None:
    only(connection, nearest(shared, 0), [[0.1, 0.9, 0.2, NAN, NAN, NAN]] * 30)
    connection.execute("CREATE ROLE readers_of_t1")
    connection.execute("CREATE ROLE submits_t0 IN ROLE loracomp_submitter")
    connection.execute("UPDATE loracomp.task SET reader_role = 'readers_of_t1' WHERE name = 't1'")
    row = route_at(connection, shared, 0, submitted_by="submits_t0", exclude_tasks=["t2"])
    assert row["composed_tasks"] == ["t0"]
    assert not {"t1", "t2"} & {*row["tasks"], *row["example_tasks"]}
    without = dict(zip(row["tasks"], row["expected_gains"], strict=True))
    connection.execute("GRANT readers_of_t1 TO submits_t0")
    row = route_at(connection, shared, 0, submitted_by="submits_t0", exclude_tasks=["t2"])
    assert row["composed_tasks"] == ["t1", "t0"]
    assert dict(zip(row["tasks"], row["expected_gains"], strict=True))["t0"] == pytest.approx(without["t0"], rel=0.5)


def test_what_is_hidden_changes_nothing_of_a_trace(connection: db.Connection, shared: Shared) -> None:
    """Measured or not: the same examples, probabilities, gains, weights, numbers and words."""
    connection.execute("CREATE ROLE readers_of_hidden")
    connection.execute("CREATE ROLE submits IN ROLE loracomp_submitter")
    # With t1 its adapter is hidden; with t6, which has none, its measured examples.
    connection.execute("UPDATE loracomp.task SET reader_role = 'readers_of_hidden' WHERE name IN ('t1', 't6')")
    places = [0, 41, TASKS * 40, TASKS * 40 + 3, 170]

    def traces() -> list[dict[str, Any]]:
        jobs = add_jobs(connection, len(places), "measured", submitted_by="submits")
        rows = route_jobs(connection, jobs, shared[1].vectors[places])
        return [{name: value for name, value in row.items() if name != "job_id"} for row in rows]

    seen = traces()
    assert any(gain for row in seen for gain in row["expected_gains"] if gain is not None)
    assert not {"t1", "t6"} & {task for row in seen for task in (*row["tasks"], *row["example_tasks"])}
    hidden = "(SELECT t.id FROM loracomp.task AS t WHERE t.reader_role IS NOT NULL)"
    connection.execute(f"DELETE FROM loracomp.measurement WHERE task_id IN {hidden}")
    connection.execute(
        "UPDATE loracomp.measurement AS m SET (adapter_ids, gains, are_right) = ("
        "SELECT coalesce(array_agg(u.id), '{}'), coalesce(array_agg(u.gain), '{}'),"
        " coalesce(array_agg(u.is_right), '{}')"
        " FROM unnest(m.adapter_ids, m.gains, m.are_right) AS u (id, gain, is_right)"
        f" JOIN loracomp.adapter AS a ON a.id = u.id WHERE a.task_id NOT IN {hidden})"
    )
    assert traces() == seen
    connection.execute("GRANT readers_of_hidden TO submits")
    assert traces() != seen, "a reader's would be others"


def test_a_new_version_is_not_used_by_its_predecessors_gains(connection: db.Connection, shared: Shared) -> None:
    only(connection, nearest(shared, 0), [[0.5, 0.1, NAN, NAN, NAN, NAN]] * 30)
    connection.execute("UPDATE loracomp.adapter SET status = 'retired' WHERE name = 't0'")
    add_adapter(connection, "t0", version=2)
    assert route_at(connection, shared, 0)["composed_tasks"] == ["t1"]


CHOICES = ["spam", "ham"]


def calibrated(connection: db.Connection, shared: Shared, count: int = 4, **changes: Any) -> tuple[list[int], int]:
    """Measured examples of t6, which has no adapter, with text and choices; and the place of the first of them."""
    at = TASKS * 40
    ids = nearest(shared, at)
    only(connection, ids, [[-0.5, 0.4, NAN, 0.2, NAN, 0.0]] * 30)
    columns = {"prompt": "Free!", "choices": CHOICES, "label": "spam", "split": "train", **changes}
    connection.execute(
        "UPDATE loracomp.example SET prompt = %(prompt)s, choices = %(choices)s, label = %(label)s,"
        " split = %(split)s WHERE id = ANY (%(ids)s)",
        {**columns, "ids": ids[:count]},
    )
    return sorted(ids[:count]), at


def ask(
    connection: db.Connection,
    shared: Shared,
    at: int,
    choices: list[str] | None = None,
    labelled_task: int | None = None,
    **job: Any,
) -> Any:
    (job_id,) = add_jobs(connection, 1, "measured", **job)
    connection.execute(
        "UPDATE loracomp.job SET choices = %s, max_new_tokens = NULL, labelled_task = %s WHERE id = %s",
        [choices or CHOICES, labelled_task, job_id],
    )
    (row,) = route_jobs(connection, [job_id], shared[1].vectors[at : at + 1])
    return row


def test_choices_of_a_task_without_an_adapter_are_calibrated_under_all_measured_adapters(
    connection: db.Connection, shared: Shared
) -> None:
    ids, at = calibrated(connection, shared)
    row = ask(connection, shared, at, ["ham", "spam"])
    assert row["calibration_examples"] == ids, "whatever the order of the choices"
    assert dict(zip(row["composed_tasks"], row["adapter_weights"], strict=True)) == dict.fromkeys(
        ["t0", "t1", "t3", "t5"], 0.25
    )
    set_policy(connection, max_adapters=1, min_share=0.5, gain_margin=1)
    assert len(ask(connection, shared, at)["composed_tasks"]) == 4, "equal weights choose nothing"
    shown = connection.execute(
        "SELECT task, weight FROM loracomp.route(%s, 'measured', choices => %s) WHERE weight > 0",
        [shared[1].vectors[at], CHOICES],
    ).fetchall()
    assert {each["task"]: each["weight"] for each in shown} == dict.fromkeys(["t0", "t1", "t3", "t5"], 0.25)
    only(connection, ids, [[-0.5, 0.4, NAN, 0.2, NAN, 0.0]] * 4)
    assert len(ask(connection, shared, at)["composed_tasks"]) == 4, "by these rows alone, wherever they are retrieved"
    vector = shared[1].vectors[at : at + 1]
    (old,) = connection.execute(
        "SELECT calibration_examples FROM loracomp.route_jobs(%s::bigint[], %b::vector[])",
        [add_jobs(connection, 1, "measured"), list(vector)],
    ).fetchall()
    assert old["calibration_examples"] is None, "a worker of an earlier release fits no biases"
    with pytest.raises(psycopg.errors.CheckViolation), connection.transaction():
        set_policy(connection, calibration_rows=3)


@pytest.mark.parametrize(
    ("changes", "asked"),
    [
        ({"count": 3}, {}),
        ({"choices": ["spam", "ham", "neither"]}, {}),
        ({"choices": ["spam"]}, {}),
        ({"split": "validation"}, {}),
        ({"prompt": None}, {}),
        ({"label": None}, {}),
        ({}, {"exclude_tasks": ["t6"]}),
        ({}, {"calibration_rows": 0}),
        ({}, {"weighting": "similarity"}),
        ({}, {"router": "base"}),
        ({}, {"min_similarity": 1}),
    ],
)
def test_choices_are_not_calibrated(
    connection: db.Connection, shared: Shared, changes: dict[str, Any], asked: dict[str, Any]
) -> None:
    _, at = calibrated(connection, shared, **changes)
    set_policy(connection, **{name: value for name, value in asked.items() if name != "exclude_tasks"})
    if "min_similarity" in asked:
        vector = unit(shared[1].vectors[at : at + 1] + shared[1].vectors[50:51])
        (job_id,) = add_jobs(connection, 1, "measured")
        connection.execute(
            "UPDATE loracomp.job SET choices = %s, max_new_tokens = NULL WHERE id = %s", [CHOICES, job_id]
        )
        (row,) = route_jobs(connection, [job_id], vector)
    else:
        row = ask(connection, shared, at, exclude_tasks=asked.get("exclude_tasks", ()))
    assert row["calibration_examples"] is None
    weights = row["adapter_weights"]
    assert len({*weights}) == len(weights), "not equal"


def test_what_has_an_adapter_or_is_hidden_or_not_measured_calibrates_nothing(
    connection: db.Connection, shared: Shared
) -> None:
    ids, at = calibrated(connection, shared)
    connection.execute("CREATE ROLE readers_of_t6")
    connection.execute("CREATE ROLE submits_t6 IN ROLE loracomp_submitter")
    connection.execute("UPDATE loracomp.task SET reader_role = 'readers_of_t6' WHERE name = 't6'")
    assert ask(connection, shared, at, submitted_by="submits_t6")["calibration_examples"] is None
    connection.execute("GRANT readers_of_t6 TO submits_t6")
    assert ask(connection, shared, at, submitted_by="submits_t6")["calibration_examples"] == ids
    connection.execute("UPDATE loracomp.base_model SET has_chat_template = true")
    (job_id,) = add_jobs(connection, 1, "measured")
    connection.execute(
        "UPDATE loracomp.job SET choices = %s, max_new_tokens = NULL, system_text = 'Be brief.' WHERE id = %s",
        [CHOICES, job_id],
    )
    (row,) = route_jobs(connection, [job_id], shared[1].vectors[at : at + 1])
    assert row["calibration_examples"] is None, "a system text would make each job score the rows again"
    connection.execute("DELETE FROM loracomp.measurement WHERE example_id = %s", [ids[0]])
    assert ask(connection, shared, at)["calibration_examples"] is None, "three are measured"
    calibrated(connection, shared)
    connection.execute("UPDATE loracomp.adapter SET status = 'active' WHERE name = 't6'")
    assert ask(connection, shared, at)["calibration_examples"] is None


def test_only_rows_of_its_labelled_task_calibrate_a_job(connection: db.Connection, shared: Shared) -> None:
    ids, at = calibrated(connection, shared)
    numbers = {row["name"]: row["id"] for row in connection.execute("SELECT name, id FROM loracomp.task")}
    elsewhere = 2 * 40
    near = ask(connection, shared, elsewhere)
    assert (near["example_tasks"][0], near["calibration_examples"]) == ("t2", None), "t2 has an adapter"
    row = ask(connection, shared, elsewhere, labelled_task=numbers["t6"])
    assert (row["example_tasks"][0], row["calibration_examples"]) == ("t2", ids)
    assert row["composed_tasks"] == ask(connection, shared, at)["composed_tasks"]
    assert ask(connection, shared, at, labelled_task=numbers["t2"])["calibration_examples"] is None
    assert ask(connection, shared, at, labelled_task=-1)["calibration_examples"] is None, "a deleted task"
    connection.execute("CREATE ROLE readers_of_labels")
    connection.execute("CREATE ROLE submits_elsewhere IN ROLE loracomp_submitter")
    connection.execute("UPDATE loracomp.task SET reader_role = 'readers_of_labels' WHERE name = 't6'")
    hidden = ask(connection, shared, elsewhere, labelled_task=numbers["t6"], submitted_by="submits_elsewhere")
    assert hidden["calibration_examples"] is None, "the submitter may not read the task"


def test_adapters_are_weighed_by_how_likely_they_make_the_labelled_examples(
    connection: db.Connection, shared: Shared
) -> None:
    ids, at = calibrated(connection, shared)
    known = {
        row["task"]: row["id"]
        for row in connection.execute(
            "SELECT a.id, t.name AS task FROM loracomp.adapter AS a JOIN loracomp.task AS t ON t.id = a.task_id"
            " WHERE a.status = 'active'"
        )
    }
    found = {"t0": -40.0, "t1": -36.0, "t3": -60.0, "t2": -1.0}

    def note(choices: list[str], tasks: dict[str, float], read: str = "now") -> None:
        connection.execute(
            "SELECT loracomp.record_evidence(t.id, b.id, %s, %s::integer[], %s::double precision[], %s)"
            " FROM loracomp.task AS t, loracomp.base_model AS b WHERE t.name = 't6' AND b.is_default",
            [choices, [known[task] for task in tasks], [*tasks.values()], read],
        )

    note(["ham", "spam"], found)
    row = ask(connection, shared, at)
    weights = dict(zip(row["composed_tasks"], row["adapter_weights"], strict=True))
    # By the square root of the likelihood. t3's is too small, t5's is not known, and t2 was measured on no row.
    total = 1 + np.exp(-2)
    assert weights == pytest.approx({"t1": 1 / total, "t0": np.exp(-2) / total})
    job_id = stored(connection, shared, at, choices=CHOICES)
    assert "weights from labelled rows" in explained(connection, job_id)
    note(["ham", "neither", "spam"], found, read="yesterday")
    assert len({*ask(connection, shared, at)["adapter_weights"]}) == 2, "a slower worker's fit of earlier scores"
    note(["ham", "neither", "spam"], found)
    assert len({*ask(connection, shared, at)["adapter_weights"]}) == 1, "of other choices"
    note(["ham", "spam"], {"t0": -40.0, "t2": -1.0})
    assert len({*ask(connection, shared, at)["adapter_weights"]}) == 1, "of one in four that were measured here"
    with pytest.raises(psycopg.errors.CheckViolation), connection.transaction():
        note(["ham", "spam"], {"t0": NAN})
    note(["ham", "spam"], found)
    kept = connection.execute("SELECT count(*) FROM loracomp.task_evidence").fetchone()
    connection.execute("DELETE FROM loracomp.measurement WHERE example_id = %s", [ids[0]])
    assert connection.execute("SELECT count(*) FROM loracomp.task_evidence").fetchone() == kept == {"count": 1}
    connection.execute("DELETE FROM loracomp.measurement WHERE example_id = ANY (%s)", [ids])
    left = connection.execute("SELECT count(*) FROM loracomp.task_evidence").fetchone()
    assert left == {"count": 0}, "the choices are gone with the last example that has them"


def test_only_who_holds_a_job_with_the_same_choices_reads_rows_for_calibration(
    connection: db.Connection, shared: Shared
) -> None:
    ids, _ = calibrated(connection, shared)
    (job_id,) = add_jobs(connection, 1, "measured", submitted_by="postgres")
    connection.execute(
        "UPDATE loracomp.job SET choices = %s, max_new_tokens = NULL, status = 'running', lease_token = 7,"
        " lease_expires_at = now() + interval '1 hour', claimed_at = now(), worker = 'w', attempts = 1 WHERE id = %s",
        [CHOICES[::-1], job_id],
    )

    def read(token: int = 7) -> list[int]:
        with connection.transaction():
            connection.execute("SET LOCAL ROLE loracomp_worker")
            rows = connection.execute(
                "SELECT * FROM loracomp.read_labelled(%s, %s::bigint[], %s)", [[job_id], [token], ids]
            ).fetchall()
            connection.execute("RESET ROLE")
        assert {(row["prompt"], row["label"]) for row in rows} <= {("Free!", "spam")}
        return sorted(row["example_id"] for row in rows)

    assert read() == ids
    assert read(token=8) == []
    connection.execute("DELETE FROM loracomp.measurement WHERE example_id = %s", [ids[0]])
    assert read() == ids[1:]
    connection.execute("UPDATE loracomp.example SET choices = '{spam,ham,eggs}' WHERE id = %s", [ids[1]])
    assert read() == ids[2:]
    connection.execute("CREATE ROLE reads_t6")
    connection.execute("UPDATE loracomp.job SET submitted_by = 'reads_t6' WHERE id = %s", [job_id])
    connection.execute("CREATE ROLE readers_of_t6")
    connection.execute("UPDATE loracomp.task SET reader_role = 'readers_of_t6' WHERE name = 't6'")
    assert read() == []
    connection.execute("UPDATE loracomp.job SET submitted_by = 'nobody any more' WHERE id = %s", [job_id])
    assert read() == [], "and the call of a worker does not raise"


# --- for people


def stored(
    connection: db.Connection, shared: Shared, at: int, policy: str = "measured", choices: list[str] | None = None
) -> int:
    """A job with its prediction, routed like an example."""
    (job_id,) = add_jobs(connection, 1, policy)
    if choices:
        connection.execute(
            "UPDATE loracomp.job SET choices = %s, max_new_tokens = NULL WHERE id = %s", [choices, job_id]
        )
    connection.execute(
        "INSERT INTO loracomp.prediction (job_id, example_ids, example_tasks, similarities, tasks,"
        " probabilities, weights, composed_tasks, adapter_ids, adapter_sha256, adapter_weights, policy_settings,"
        " fallback, searched_task_count, expected_gains, chat_template, calibration_examples, base_model,"
        " base_fingerprint, encoder, code_version, submitted_by)"
        " SELECT %s, (r.trace).*, 'toy', '', 'e/3', '', current_user"
        " FROM loracomp.route_jobs(ARRAY[%s]::bigint[], %b::vector[]) AS r",
        [job_id, job_id, [shared[1].vectors[at]]],
    )
    connection.execute("UPDATE loracomp.job SET status = 'succeeded', finished_at = now() WHERE id = %s", [job_id])
    return job_id


def test_route_and_explain_job_show_what_is_expected(connection: db.Connection, shared: Shared) -> None:
    only(connection, nearest(shared, 0), [[0.11, 0.33, NAN, -0.11, NAN, NAN]] * 30)
    vector = shared[1].vectors[0]
    rows = connection.execute("SELECT * FROM loracomp.route(%s, 'measured')", [vector]).fetchall()
    found = {row["task"]: row for row in rows}
    assert found["t1"]["expected_gain"] == pytest.approx(0.3)
    assert found["t1"]["weight"] == pytest.approx(0.75)
    assert found["t3"]["weight"] == 0
    text = explained(connection, stored(connection, shared, 0))
    assert "weight 0.750  expected gain +0.300 nats" in text
    assert "not composed  expected gain -0.100 nats" in text
    set_policy(connection, gain_margin=1)
    text = explained(connection, stored(connection, shared, 0))
    assert "Composition: none. The base model answered alone: no adapter is expected to help" in text


def explained(connection: db.Connection, job_id: int) -> str:
    row = connection.execute("SELECT loracomp.explain_job(%s) AS text", [job_id]).fetchone()
    assert row
    return str(row["text"])


@pytest.mark.parametrize(
    ("tasks", "gains"), [([1], [math.nan]), ([1], [math.inf]), ([1], [None]), ([1, 2], [0.5]), ([None], [0.5, 0.1])]
)
def test_gains_that_are_none_are_refused(connection: db.Connection, tasks: list[Any], gains: list[Any]) -> None:
    with pytest.raises(psycopg.DataError, match="one task and one finite number"):
        connection.execute(
            "SELECT * FROM loracomp.task_weights('{1}', '{0.5}', loracomp.policy_with(), %s::int[], %s::float8[])",
            [tasks, gains],
        )


def test_at_temperature_0_the_most_similar_example_decides(connection: db.Connection) -> None:
    query = "SELECT loracomp.relative_share(0.9, 0.9, 0) AS nearest, loracomp.relative_share(0.8, 0.9, 0) AS other"
    (row,) = connection.execute(query)
    assert row["nearest"] == 1 and row["other"] < 1e-100
