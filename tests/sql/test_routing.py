"""What route_jobs and route decide: routers, scope, fallbacks, rights, and what they refuse."""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import psycopg
import pytest
from psycopg import sql
from psycopg.types.json import Jsonb

from conftest import create_database, drop_database
from loracomp.composition.strategies import STRATEGIES
from loracomp.database import connections as db
from loracomp.database.routing import route
from loracomp.errors import SchemaMismatchError
from loracomp.model.encoder import INPUT_FORMAT_VERSION
from loracomp.records import Job, Trace
from routing_data import (
    DIMENSIONS,
    Vectors,
    add_adapter,
    add_base_model,
    add_examples,
    add_jobs,
    add_task,
    route_jobs,
    stored,
    unit,
)
from routing_reference import Settings, weigh

AXES = np.eye(DIMENSIONS, dtype=np.float32)
TASKS = ["near", "middle", "far"]
QUERY = unit(np.array([0.8 * AXES[0] + 0.6 * AXES[1]]))  # cosines .8 to near, .6 to middle, 0 to far


@pytest.fixture(scope="module")
def small(server: str, template: str) -> Iterator[tuple[str, db.Connection]]:
    """Three tasks, two examples each, all of a task's on one axis."""
    name = f"{template}_routing"
    with db.connect(create_database(server, name, template)) as connection:
        add_base_model(connection)
        for axis, task in enumerate(TASKS):
            add_examples(connection, add_task(connection, task), np.repeat(AXES[axis : axis + 1], 2, axis=0))
        yield name, connection
    drop_database(server, name)


@pytest.fixture
def connection(small: tuple[str, db.Connection]) -> Iterator[db.Connection]:
    """Rolls back everything that a test changes."""
    with small[1].transaction(force_rollback=True):
        yield small[1]


def set_policy(connection: db.Connection, name: str = "default", **settings: Any) -> None:
    for field, value in settings.items():
        change = sql.SQL("UPDATE loracomp.policy SET {} = %s WHERE name = %s").format(sql.Identifier(field))
        connection.execute(change, [value, name])


def route_one(
    connection: db.Connection, vector: Vectors = QUERY, policy: str = "default", **job: Any
) -> dict[str, Any]:
    (row,) = route_jobs(connection, add_jobs(connection, 1, policy, **job), vector)
    return row


# What is decided


def test_the_trace_is_whole(connection: db.Connection) -> None:
    row = route_one(connection)
    similarities = np.repeat(stored(QUERY)[0, :3], 2).tolist()
    expected = weigh([0, 0, 1, 1, 2, 2], similarities, Settings())
    assert row["example_tasks"] == ["near", "near", "middle", "middle", "far", "far"]
    np.testing.assert_allclose(row["similarities"], similarities, atol=1e-6)
    assert row["tasks"] == TASKS
    np.testing.assert_allclose(row["probabilities"], expected.probabilities, atol=1e-6)
    np.testing.assert_allclose(row["weights"], expected.weights, atol=1e-6)
    assert row["composed_tasks"] == ["near", "middle"]
    assert row["adapter_weights"] == row["weights"][:2]
    assert row["fallback"] is None


def test_the_trace_is_filled_in_the_order_of_its_type(connection: db.Connection) -> None:
    """Because Postgres assigns a row to a type by position, columns of one type could be swapped unnoticed."""
    (row,) = connection.execute("SELECT prosrc FROM pg_proc WHERE proname = 'route_jobs'")
    _, _, rest = row["prosrc"].partition("-- The columns of loracomp.route_trace, in their order.")
    filled, _, _ = rest.partition(") AS trace")
    depth, items = 0, [""]
    for character in filled:
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            items.append("")
        else:
            items[-1] += character
    names = [item.replace(".", " ").split()[-1] for item in items]
    columns = connection.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = 'loracomp.route_trace'::regclass ORDER BY attnum"
    )
    assert names == [column["attname"] for column in columns]


def test_a_policy_leaves_small_shares_out_and_the_trace_counts_what_was_eligible(connection: db.Connection) -> None:
    set_policy(connection, min_share=0.1, routing_temperature=1, routing_top_p=1)
    row = route_one(connection)
    assert (row["composed_tasks"], row["searched_task_count"]) == (TASKS, 3)
    set_policy(connection, min_share=0.3)
    row = route_one(connection)
    assert (row["composed_tasks"], row["policy_settings"]["min_share"]) == (["near", "middle"], 0.3)
    assert sum(row["adapter_weights"]) == pytest.approx(1)
    assert route_one(connection, exclude_tasks=["far"])["searched_task_count"] == 2


def test_policies_may_have_the_strategies_that_the_engine_knows(connection: db.Connection) -> None:
    (row,) = connection.execute(
        "SELECT pg_get_constraintdef(oid) AS text FROM pg_constraint WHERE conname = 'strategy_must_be_a_known_one'"
    )
    assert set(re.findall(r"'(\w+)'", row["text"])) == set(STRATEGIES)


def test_the_policy_is_kept_as_it_was(connection: db.Connection) -> None:
    policy = route_one(connection, policy="ties")["policy_settings"]
    assert (policy["name"], policy["strategy"], policy["k"], policy["routing_top_p"]) == ("ties", "ties", 30, 0.95)
    assert not policy.keys() & {"description", "created_at", "updated_at"}


def test_the_active_adapter_of_the_jobs_base_model_is_taken(connection: db.Connection) -> None:
    add_base_model(connection, "other", is_default=False)
    add_adapter(connection, "near", base_model="other")
    add_adapter(connection, "near", version=2, status="staged")
    connection.execute("UPDATE loracomp.adapter SET status = 'retired' WHERE version = 1 AND name = 'middle'")
    version_2 = add_adapter(connection, "middle", version=2)
    row = route_one(connection)
    found = connection.execute(
        "SELECT a.name, a.version, a.sha256, b.name AS base_model FROM unnest(%s::int[]) WITH ORDINALITY AS u (id, n)"
        " JOIN loracomp.adapter AS a USING (id) JOIN loracomp.base_model AS b ON b.id = a.base_model_id ORDER BY n",
        [row["adapter_ids"]],
    ).fetchall()
    assert [(a["name"], a["version"], a["base_model"]) for a in found] == [("near", 1, "toy"), ("middle", 2, "toy")]
    assert row["adapter_ids"][1] == version_2
    assert row["adapter_sha256"] == [a["sha256"] for a in found]


@pytest.mark.parametrize("status", ["staged", "retired"])
def test_a_task_without_an_active_adapter_is_not_retrieved(connection: db.Connection, status: str) -> None:
    connection.execute("UPDATE loracomp.adapter SET status = %s WHERE name = 'near'", [status])
    assert set(route_one(connection)["example_tasks"]) == {"middle", "far"}


def test_a_task_whose_adapter_is_for_another_base_model_is_not_retrieved(connection: db.Connection) -> None:
    add_base_model(connection, "other", is_default=False)
    connection.execute(
        "UPDATE loracomp.adapter SET base_model_id = (SELECT id FROM loracomp.base_model WHERE name = 'other')"
        " WHERE name = 'near'"
    )
    assert set(route_one(connection)["example_tasks"]) == {"middle", "far"}


def test_excluded_tasks_are_not_retrieved(connection: db.Connection) -> None:
    row = route_one(connection, exclude_tasks=["near"])
    assert (set(row["example_tasks"]), row["composed_tasks"]) == ({"middle", "far"}, ["middle"])


def test_uniform_weights(connection: db.Connection) -> None:
    assert route_one(connection, policy="uniform")["adapter_weights"] == [0.5, 0.5]


def test_a_batch_of_many_policies_and_scopes_is_each_alone(connection: db.Connection) -> None:
    jobs = [
        job
        for excluded in ([], ["near"], ["far"])
        for job in add_jobs(connection, 3, "default", "nearest", "uniform", exclude_tasks=excluded)
    ]
    together = route_jobs(connection, jobs, np.repeat(QUERY, len(jobs), axis=0))
    assert together == [row for job in jobs for row in route_jobs(connection, [job], QUERY)]


def test_the_order_of_the_call_is_kept_and_an_unknown_job_has_no_row(connection: db.Connection) -> None:
    jobs = add_jobs(connection, 40)[::-1]
    found = route_jobs(connection, [*jobs, jobs[0] + 1], np.repeat(QUERY, len(jobs) + 1, axis=0))
    assert [row["job_id"] for row in found] == jobs


# Routers


def test_own_task_is_composed_alone_whatever_is_retrieved(connection: db.Connection) -> None:
    set_policy(connection, "own_task", k=2)
    row = route_one(connection, policy="own_task", task="far")
    assert (row["composed_tasks"], row["adapter_weights"], row["fallback"]) == (["far"], [1], None)
    assert (row["tasks"], row["probabilities"], row["weights"]) == (["near", "far"], [1, 0], [0, 1])


# The base model alone

FALLBACKS = {
    "router is base": {"policy": "base"},
    "no eligible task": {"exclude_tasks": TASKS},
    "job names no task": {"policy": "own_task"},
    "own task is not eligible": {"policy": "own_task", "task": "near", "exclude_tasks": ["near"]},
    "embedding is zero": {"vector": 0 * QUERY},
    "no example of an eligible task": {"exclude_tasks": TASKS, "setup": "empty task"},
    "below min_similarity": {"setup": "min_similarity"},
}


@pytest.mark.parametrize("reason", FALLBACKS)
def test_where_nothing_is_composed_the_trace_says_why(connection: db.Connection, reason: str) -> None:
    given = dict(FALLBACKS[reason])
    match given.pop("setup", None):
        case "empty task":
            add_task(connection, "empty")
        case "min_similarity":
            set_policy(connection, min_similarity=0.9)
    row = route_one(connection, **given)
    assert row["fallback"] == reason
    composed = ("composed_tasks", "adapter_ids", "adapter_sha256", "adapter_weights")
    assert [row[column] for column in composed] == [[]] * 4
    assert row["weights"] == [0] * len(row["tasks"])
    retrieves = reason in ("router is base", "job names no task", "own task is not eligible", "below min_similarity")
    assert bool(row["example_ids"]) == bool(row["tasks"]) == retrieves


def test_min_similarity_is_met_by_an_equal_one(connection: db.Connection) -> None:
    set_policy(connection, min_similarity=1)
    assert route_one(connection, AXES[:1])["fallback"] is None


def test_an_example_without_direction_is_never_retrieved(connection: db.Connection) -> None:
    add_examples(connection, add_task(connection, "zero"), 0 * AXES[:1])
    assert route_one(connection)["example_tasks"] == ["near", "near", "middle", "middle", "far", "far"]


# Jobs that ask for text

NOTHING_WRITES = "no eligible adapter has learnt to write"


def add_text(connection: db.Connection, task: str, split: str = "train", choices: list[str] | None = None) -> None:
    """Give a task an example with a text, which has no embedding."""
    outcome = connection.execute(
        "SELECT loracomp.add_example(%s, 'Sum up: rain.', 'Rain.', %s, %s) AS outcome", [task, choices, split]
    ).fetchone()
    assert outcome == {"outcome": "added"}


def test_a_text_is_written_with_adapters_of_tasks_whose_examples_have_no_choices(connection: db.Connection) -> None:
    add_text(connection, "near", choices=["Rain.", "Snow."])
    add_text(connection, "far", split="validation")
    row = route_one(connection, choices=None)
    assert (row["composed_tasks"], row["example_ids"], row["fallback"]) == ([], [], NOTHING_WRITES)
    add_text(connection, "middle")
    text, choice = route_jobs(
        connection,
        [*add_jobs(connection, 1, "default", choices=None), *add_jobs(connection, 1, "default")],
        np.repeat(QUERY, 2, axis=0),
    )
    assert (text["composed_tasks"], text["example_tasks"]) == (["middle"], ["middle", "middle"])
    assert (text["searched_task_count"], text["fallback"]) == (1, None)
    assert choice["composed_tasks"] == ["near", "middle"]  # which may use adapters of either kind


def test_examples_that_a_library_brought_without_text_say_nothing_until_their_text_is_imported(
    connection: db.Connection,
) -> None:
    row = {"split": "train", "source_ref": "sums#1", "content_hash": "ab" * 32}
    add = "SELECT outcome FROM loracomp.add_examples('near', %s)"
    connection.execute(add, [Jsonb([row])])
    assert route_one(connection, choices=None)["fallback"] == NOTHING_WRITES
    connection.execute(add, [Jsonb([row | {"prompt": "Sum up: rain.", "label": "Rain."}])])
    assert route_one(connection, choices=None)["composed_tasks"] == ["near"]


def test_a_text_may_be_written_with_whatever_is_asked_for(connection: db.Connection) -> None:
    """A job may name the tasks, or their weights, or a policy that uses all adapters, as the paper does."""
    given = ({"tasks": ["far"]}, {"tasks": ["far"], "weights": [0.5]})
    named = [submit_pinned(connection, **arguments) for arguments in given]
    policies = add_jobs(connection, 2, "linear", "nearest", choices=None)
    rows = route_jobs(connection, [*named, *policies], np.repeat(QUERY, 4, axis=0))
    assert [row["composed_tasks"] for row in rows] == [["far"], ["far"], ["near", "middle"], ["near"]]
    assert route_one(connection, policy="own_task", task="far", choices=None)["composed_tasks"] == ["far"]
    set_policy(connection, text_adapters="all")
    assert route_one(connection, choices=None)["composed_tasks"] == ["near", "middle"]


def test_a_job_that_asks_for_weights_alone_sees_all_tasks(connection: db.Connection) -> None:
    job_id = submit_pinned(connection, kind="route")
    (row,) = route_jobs(connection, [job_id], QUERY)
    assert row["composed_tasks"] == ["near", "middle"]


# Whose job may retrieve what


@pytest.mark.parametrize(
    ("member_of", "reader_role", "sees"),
    [
        ("Their own", "Their own", True),
        ("another", "Their own", False),
        ("Their own", "vanished", False),
        ("loracomp_admin", "Their own", True),
    ],
)
def test_a_job_retrieves_what_its_submitter_may_read(
    connection: db.Connection, member_of: str, reader_role: str, sees: bool
) -> None:
    """Administrators may read every task."""
    connection.execute('CREATE ROLE "Their own"; CREATE ROLE another')
    connection.execute(f'CREATE ROLE "Su-bmitter" IN ROLE "{member_of}"'.encode())
    add_examples(connection, add_task(connection, "hidden", reader_role=reader_role), QUERY)
    row = route_one(connection, submitted_by="Su-bmitter")
    assert ("hidden" in row["example_tasks"]) == ("hidden" in row["composed_tasks"]) == sees


def test_one_vanished_submitter_reads_nothing_and_costs_the_batch_nothing(connection: db.Connection) -> None:
    jobs = add_jobs(connection, 1) + add_jobs(connection, 1, submitted_by="vanished")
    here, gone = route_jobs(connection, jobs, np.repeat(QUERY, 2, axis=0))
    assert (here["fallback"], gone["fallback"], gone["example_ids"]) == (None, "no eligible task", [])


# The worker's step


@pytest.fixture
def encoder(connection: db.Connection) -> str:
    """Identity of the database's encoder."""
    values = (DIMENSIONS, INPUT_FORMAT_VERSION)
    connection.execute(
        "INSERT INTO loracomp.encoder VALUES (1, 'toy', 'made up', NULL, 'weights', repeat('e', 64), %s, %s)", values
    )
    return "e" * 64


def test_the_step_returns_records_in_order(connection: db.Connection, encoder: str) -> None:
    jobs = [a_job(id_) for id_ in add_jobs(connection, 1, "default") + add_jobs(connection, 1, "base")]
    routed, alone = route(connection, jobs, np.repeat(QUERY, 2, axis=0), encoder, INPUT_FORMAT_VERSION)
    assert (routed.job_id, alone.job_id) == (jobs[0].id, jobs[1].id)
    assert routed.normalization == "tokens"
    composition = routed.composition
    assert (composition.strategy, composition.density) == ("cat", 0.5)
    traced, alone_traced = unfolded(connection, routed.trace), unfolded(connection, alone.trace)
    assert traced["example_tasks"] == ["near", "near", "middle", "middle", "far", "far"]
    assert (traced["tasks"], traced["composed_tasks"]) == (TASKS, ["near", "middle"])
    assert list(composition.weights) == traced["weights"][:2] == traced["adapter_weights"]
    assert list(composition.adapter_ids) == traced["adapter_ids"]
    assert len(composition.adapter_ids) == len(composition.adapter_sha256) == 2
    assert (alone.composition.adapter_ids, alone_traced["fallback"]) == ((), "router is base")


def unfolded(connection: db.Connection, trace: Trace) -> dict[str, Any]:
    """What stands in a trace that came back from Python."""
    row = connection.execute("SELECT t.* FROM unnest(%b::loracomp.route_trace[]) AS t", [[trace]]).fetchone()
    assert row
    return row


def test_the_step_refuses_vectors_of_another_length(connection: db.Connection, encoder: str) -> None:
    jobs = [a_job(*add_jobs(connection, 1))]
    with pytest.raises(psycopg.DataError, match="embedding has 3 dimensions; this database holds vectors of 832"):
        route(connection, jobs, np.ones((1, 3), dtype=np.float32), encoder, INPUT_FORMAT_VERSION)


CHANGES = [
    "UPDATE loracomp.encoder SET identity = repeat('f', 64)",
    "UPDATE loracomp.encoder SET input_version = 99",
]


@pytest.mark.parametrize("change", [*CHANGES, "DELETE FROM loracomp.encoder"])
def test_the_step_notices_that_the_encoder_was_changed(connection: db.Connection, encoder: str, change: str) -> None:
    jobs = [a_job(*add_jobs(connection, 1))]
    assert len(route(connection, jobs, QUERY, encoder, INPUT_FORMAT_VERSION)) == 1
    connection.execute(change.encode())
    with pytest.raises(SchemaMismatchError, match=r"encoder is no longer the one .*: start the worker again"):
        route(connection, jobs, QUERY, encoder, INPUT_FORMAT_VERSION)


def test_nothing_is_claimed_or_routed_until_all_examples_are_embedded(connection: db.Connection, encoder: str) -> None:
    jobs = add_jobs(connection, 1)
    connection.execute("UPDATE loracomp.encoder SET is_ready = false")
    with (
        pytest.raises(SchemaMismatchError, match="wait until loracomp encoder set has ended"),
        connection.transaction(),
    ):
        route(connection, [a_job(*jobs)], QUERY, encoder, INPUT_FORMAT_VERSION)
    with pytest.raises(psycopg.OperationalError, match="embedded by another encoder"), connection.transaction():
        connection.execute("SELECT loracomp.route(%s::vector)", [str(QUERY[0].tolist())])
    claimed = "SELECT id FROM loracomp.claim_jobs('w', 'toy', 10, '1 minute')"
    assert connection.execute(claimed).fetchall() == []
    connection.execute("SELECT loracomp.start_routing(%s, %s::smallint)", [encoder, INPUT_FORMAT_VERSION])
    assert connection.execute(claimed).fetchall() == [{"id": job} for job in jobs]


@pytest.mark.parametrize("number", ["nan", "inf"])
def test_a_vector_that_is_none_is_refused(connection: db.Connection, encoder: str, number: str) -> None:
    jobs = [a_job(*add_jobs(connection, 1))]
    vector = np.full((1, DIMENSIONS), float(number), dtype=np.float32)
    with pytest.raises(psycopg.DataError, match="not allowed in vector"):
        route(connection, jobs, vector, encoder, INPUT_FORMAT_VERSION)


def test_a_missing_vector_is_refused(connection: db.Connection) -> None:
    with pytest.raises(psycopg.DataError, match="embedding must not be null"):
        route_jobs(connection, add_jobs(connection, 2), QUERY)


def a_job(number: int) -> Job:
    return Job(id=number, lease_token=1, kind="predict", prompt="x", choices=None, max_new_tokens=None)


# A job's own tasks and weights


def submit_pinned(connection: db.Connection, **arguments: Any) -> int:
    named = sql.SQL(", ").join(
        sql.SQL("{} => {}").format(sql.Identifier(name), sql.Placeholder(name)) for name in arguments
    )
    call = sql.SQL("SELECT loracomp.submit_job('x', {}) AS id").format(named)
    row = connection.execute(call, arguments).fetchone()
    assert row is not None
    return int(row["id"])


def test_only_the_tasks_that_a_job_names_are_retrieved_and_composed(connection: db.Connection) -> None:
    (row,) = route_jobs(connection, [submit_pinned(connection, tasks=["far", "middle"])], QUERY)
    assert (set(row["example_tasks"]), row["tasks"][0]) == ({"middle", "far"}, "middle")
    assert row["searched_task_count"] == 2
    job_id = submit_pinned(connection, tasks=["far"])
    connection.execute("UPDATE loracomp.job SET exclude_tasks = tasks WHERE id = %s", [job_id])
    (row,) = route_jobs(connection, [job_id], QUERY)
    assert (row["composed_tasks"], row["fallback"]) == ([], "no eligible task")


def test_weights_of_a_job_are_composed_without_retrieval(connection: db.Connection) -> None:
    job_id = submit_pinned(connection, tasks=["middle", "far"], weights=[0.25, 0.5])
    (row, free) = route_jobs(connection, [job_id, *add_jobs(connection, 1, "default")], np.repeat(QUERY, 2, axis=0))
    assert (row["composed_tasks"], row["adapter_weights"]) == (["far", "middle"], [0.5, 0.25])
    assert (row["tasks"], row["weights"]) == (["far", "middle"], [0.5, 0.25])
    assert (row["example_ids"], row["similarities"], row["fallback"]) == ([], [], None)
    assert free["composed_tasks"] == ["near", "middle"]
    trace = connection.execute(
        "SELECT given_tasks, given_weights FROM loracomp.job_trace WHERE job_id = %s", [job_id]
    ).fetchone()
    assert trace == {"given_tasks": ["middle", "far"], "given_weights": [0.25, 0.5]}
    explained = connection.execute("SELECT loracomp.explain_job(%s) AS text", [job_id]).fetchone()
    assert explained is not None and "Only tasks: middle, far with weights 0.25, 0.5" in explained["text"]


def test_the_adapters_of_a_job_with_described_choices_count_as_much_as_its_nearest_example_is_similar(
    connection: db.Connection,
) -> None:
    choices = {"choices": ["a", "b"]}
    described = choices | {"descriptions": ["this", "that"]}
    jobs = [
        submit_pinned(connection, **choices),
        submit_pinned(connection, **described),
        submit_pinned(connection, **described, tasks=["far"]),
        submit_pinned(connection, **described, tasks=["near", "far"], weights=[0.25, 0.5]),
        submit_pinned(connection, **described, policy="base"),
    ]
    plain, near, far, given, base = route_jobs(connection, jobs, np.repeat(QUERY, len(jobs), axis=0))
    assert plain["description_weight"] is None and sum(plain["adapter_weights"]) == pytest.approx(1)
    for row in (near, far):
        similarity = max(0.3, row["similarities"][0])
        assert row["description_weight"] == pytest.approx(5 / similarity**2)
        assert sum(row["adapter_weights"]) == pytest.approx(similarity**4)
    assert near["composed_tasks"] == plain["composed_tasks"]
    assert near["adapter_weights"] == pytest.approx(
        [near["similarities"][0] ** 4 * w for w in plain["adapter_weights"]]
    )
    assert far["description_weight"] > near["description_weight"]
    assert (given["adapter_weights"], given["description_weight"]) == ([0.5, 0.25], 5), "as the job says"
    assert (base["adapter_weights"], base["description_weight"]) == ([], near["description_weight"])


def test_weights_are_composed_whole_or_not_at_all(connection: db.Connection) -> None:
    job_id = submit_pinned(connection, tasks=["middle", "far"], weights=[0.25, 0.5])
    connection.execute("UPDATE loracomp.adapter SET status = 'retired' WHERE name = 'far'")
    (row,) = route_jobs(connection, [job_id], QUERY)
    assert (row["composed_tasks"], row["fallback"]) == ([], "a given task has no active adapter, or may not be used")
    connection.execute("UPDATE loracomp.adapter SET status = 'active' WHERE name = 'far'")
    (row,) = route_jobs(connection, [job_id], QUERY)
    assert row["composed_tasks"] == ["far", "middle"]
    connection.execute("UPDATE loracomp.job SET status = 'cancelled', finished_at = now() WHERE id = %s", [job_id])
    connection.execute("SELECT loracomp.delete_task('middle', force => true)")
    (row,) = route_jobs(connection, [job_id], QUERY)
    assert (row["composed_tasks"], row["fallback"]) == ([], "a given task has no active adapter, or may not be used")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"tasks": ["nobodys"]}, "tasks names tasks that do not exist: nobodys"),
        ({"tasks": []}, "tasks_must_be_a_list_of_1_to_64"),
        ({"tasks": ["far", "far"]}, "tasks_must_be_distinct_and_none_null"),
        ({"weights": [1.0]}, "weights_must_be_one_for_each_of_the_tasks"),
        ({"tasks": ["far", "near"], "weights": [1.0]}, "weights_must_be_one_for_each_of_the_tasks"),
        ({"tasks": ["far"], "weights": [float("nan")]}, "weights_must_be_between_0.000001_and_1"),
        ({"tasks": ["far"], "weights": [0.0]}, "weights_must_be_between_0.000001_and_1"),
        ({"tasks": ["far"], "weights": [None]}, "weights_must_be_between_0.000001_and_1"),
        ({"tasks": [["far"], ["near"]]}, "tasks_must_be_a_list_of_1_to_64"),
        ({"tasks": ["far", "near"], "weights": [[0.5], [0.5]]}, "weights_must_be_one_for_each_of_the_tasks"),
        ({"exclude_tasks": [["far"], ["near"]]}, "exclude_tasks_must_be_a_list"),
    ],
)
def test_tasks_and_weights_that_are_none_are_refused_by_name(
    connection: db.Connection, arguments: dict[str, Any], says: str
) -> None:
    with pytest.raises(psycopg.IntegrityError, match=says):
        submit_pinned(connection, **arguments)
