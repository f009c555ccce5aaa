"""Evaluations: what is asked, that people come first, and numbers that were worked out by hand or by scipy."""

import math
from collections.abc import Iterator
from itertools import product
from threading import Thread
from typing import Any

import pytest
from psycopg.types.json import Jsonb
from scipy.stats import binomtest

from conftest import create_database, drop_database
from evaluation_data import add_rows, answer_all, claim, right_on, start
from loracomp.database import connections as db
from loracomp.errors import LoracompError, NotFoundError, RefusedError, UsageError
from loracomp_lab.accuracy import Outcome, accuracies, differences, mcnemar_p, wilson_interval
from loracomp_lab.evaluation import REFERENCES, lacking_rows, read_results, show_evaluation
from people_data import one, submit
from routing_data import add_adapter, add_base_model

JOBS = """
SELECT j.*, e.source_ref, e.prompt AS text FROM loracomp.job AS j LEFT JOIN loracomp.example AS e ON e.id = j.example_id
ORDER BY j.id
"""


@pytest.fixture(scope="module")
def scene(server: str, template: str) -> Iterator[db.Connection]:
    """A database with tasks tea and tin of family food, ore of family rock, 10 validation rows each."""
    name = f"{template}_evaluation"
    with db.connect(create_database(server, name, template)) as connection:
        add_base_model(connection)
        add_rows(connection, "tea", 10, family="food")
        add_rows(connection, "tin", 10, family="food")
        add_rows(connection, "ore", 10, family="rock")
        yield connection
    drop_database(server, name)


@pytest.fixture
def connection(scene: db.Connection) -> Iterator[db.Connection]:
    with scene.transaction(force_rollback=True):
        yield scene


def jobs(connection: db.Connection) -> list[dict[str, Any]]:
    return connection.execute(JOBS).fetchall()


def where(rows: list[dict[str, Any]], **values: Any) -> list[dict[str, Any]]:
    return [row for row in rows if all(row[column] == value for column, value in values.items())]


# What is asked.


def test_every_policy_is_asked_the_same_rows(connection: db.Connection) -> None:
    assert start(connection, "tin tea", "default base", rows_a_task=4) == [
        {"task": task, "policy": policy, "jobs": 4, "added": 4}
        for task, policy in product(("tin", "tea"), ("default", "base"))
    ]
    asked = jobs(connection)
    drawn = {(job["task"], job["policy"]): [] for job in asked}
    for job in asked:
        drawn[job["task"], job["policy"]].append(job["source_ref"])
        assert (job["prompt"], job["choices"], job["expected"]) == (job["text"], ["yes", "no"], "yes")
        assert job["tags"] == {"evaluation": "e", "split": "validation", "exclude_own": False, "seed": 0}
        assert (job["kind"], job["base_model"], job["exclude_tasks"], job["priority"]) == ("predict", "toy", [], -1)
        assert job["source_ref"].startswith(f"{job['task']}/validation#")
    for task in ("tea", "tin"):
        assert drawn[task, "base"] == drawn[task, "default"]
        assert len(set(drawn[task, "base"])) == 4
    assert [(job["task"], job["policy"]) for job in asked] == sorted(
        ((job["task"], job["policy"]) for job in asked), reverse=True
    )


def test_what_is_named_twice_is_asked_once(connection: db.Connection) -> None:
    asked = start(connection, "tea tea", "base base", rows_a_task=2)
    assert asked == [{"task": "tea", "policy": "base", "jobs": 2, "added": 2}]


def test_again_it_adds_what_is_missing_and_fewer_rows_are_among_more(connection: db.Connection) -> None:
    start(connection, "tea", "base", rows_a_task=3)
    before = jobs(connection)
    assert start(connection, "tea", "base", rows_a_task=3) == [{"task": "tea", "policy": "base", "jobs": 3, "added": 0}]
    assert jobs(connection) == before
    assert [
        (row["policy"], row["jobs"], row["added"]) for row in start(connection, "tea", "base cat", rows_a_task=5)
    ] == [
        ("base", 5, 2),
        ("cat", 5, 5),
    ]
    assert start(connection, "tea", "base")[0] == {"task": "tea", "policy": "base", "jobs": 10, "added": 5}
    assert [row["added"] for row in start(connection, "tea ore", "base", rows_a_task=1)] == [0, 1]


def test_policies_that_lack_rows_of_others_are_found(connection: db.Connection) -> None:
    start(connection, "tea tin", "base", rows_a_task=3)
    assert lacking_rows(connection, "e") == []
    start(connection, "tea", "cat default", rows_a_task=5)
    assert [tuple(row.values()) for row in lacking_rows(connection, "e")] == [
        ("tea", "base", 3, 5),
        ("tin", "cat", 0, 3),
        ("tin", "default", 0, 3),
    ]
    start(connection, "tea tin", "base cat default", rows_a_task=5)
    assert lacking_rows(connection, "e") == []


def test_rows_are_drawn_by_seed(connection: db.Connection) -> None:
    drawn = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1), ("d", 2)):
        start(connection, "tea", "base", name=name, seed=seed, rows_a_task=5)
        drawn.append({job["source_ref"] for job in jobs(connection) if job["tags"]["evaluation"] == name})
    assert drawn[0] == drawn[1]
    assert len({frozenset(rows) for rows in drawn}) > 1
    assert drawn[0] != {f"tea/validation#{number}" for number in range(5)}


def test_own_tasks_are_kept_out_but_for_their_own_adapters(connection: db.Connection) -> None:
    start(connection, "tea", "default own_task base", exclude_own=True, rows_a_task=1)
    excluded = {job["policy"]: job["exclude_tasks"] for job in jobs(connection)}
    assert excluded == {"default": ["tea"], "base": ["tea"], "own_task": []}


def test_adapters_that_have_seen_the_own_tasks_rows_are_kept_out_too(connection: db.Connection) -> None:
    add_base_model(connection, "another", is_default=False)
    retired = add_adapter(connection, "ore", version=2, status="retired")
    rows = connection.execute("SELECT id, name FROM loracomp.adapter WHERE status = 'active'").fetchall()
    active = {row["name"]: row["id"] for row in rows}
    others = add_adapter(connection, "ore", base_model="another")
    for adapter, seen in (
        (active["tin"], ["tea", "tin"]),
        (active["ore"], ["tin", "ore"]),
        (retired, ["tea", "ore"]),
        (others, ["tea", "ore"]),
    ):
        training = Jsonb({"tasks_seen": seen})
        connection.execute("UPDATE loracomp.adapter SET training = %s WHERE id = %s", [training, adapter])
    start(connection, "tea tin ore", "default own_task", exclude_own=True, rows_a_task=1)
    excluded = {(job["task"], job["policy"]): job["exclude_tasks"] for job in jobs(connection)}
    assert excluded == {
        ("tea", "default"): ["tea", "tin"],
        ("tin", "default"): ["ore", "tin"],
        ("ore", "default"): ["ore"],
        **{(task, "own_task"): [] for task in ("tea", "tin", "ore")},
    }


def test_rows_that_would_retrieve_themselves_are_not_asked(connection: db.Connection) -> None:
    add_rows(connection, "tea", 3, split="train")
    connection.execute(
        "INSERT INTO loracomp.example_embedding SELECT id, task_id, array_fill(0.1, '{832}')::vector "
        "FROM loracomp.example WHERE source_ref IN ('tea/train#0', 'tea/train#2')"
    )
    assert start(connection, "tea", "base", split="train") == [{"task": "tea", "policy": "base", "jobs": 1, "added": 1}]
    assert [job["source_ref"] for job in jobs(connection)] == ["tea/train#1"]


def test_rows_without_text_or_label_are_not_asked(connection: db.Connection) -> None:
    connection.execute("UPDATE loracomp.example SET prompt = NULL WHERE source_ref = 'tea/validation#4'")
    connection.execute("UPDATE loracomp.example SET label = NULL WHERE source_ref = 'tea/validation#5'")
    start(connection, "tea", "base")
    assert len(jobs(connection)) == 8


def test_free_text_is_asked_for_by_length(connection: db.Connection) -> None:
    connection.execute("UPDATE loracomp.example SET choices = NULL")
    start(connection, "tea", "base", rows_a_task=1)
    (job,) = jobs(connection)
    assert (job["choices"], job["max_new_tokens"], job["expected"]) == (None, 64, "yes")


@pytest.mark.parametrize(
    ("tasks", "policies", "changes", "error", "message"),
    [
        ("tea nix", "base", {}, NotFoundError, "no validation rows with text and label of: nix"),
        ("tea", "base nix", {}, RefusedError, "policy nix does not exist"),
        ("tea ore", "base", {"split": "test"}, NotFoundError, "no test rows .*: tea, ore: .*TASK --split test"),
        ("", "base", {}, UsageError, "name at least one task and one policy"),
        ("tea", "", {}, UsageError, "name at least one task and one policy"),
        ("tea", "base", {"base_model": "nix"}, NotFoundError, "base model nix is not registered"),
        ("tea", "base", {"name": " "}, UsageError, "1 to 100 characters"),
        ("tea", "base", {"name": "n" * 101}, UsageError, "1 to 100 characters"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    connection: db.Connection,
    tasks: str,
    policies: str,
    changes: dict[str, Any],
    error: type[LoracompError],
    message: str,
) -> None:
    with pytest.raises(error, match=message), connection.transaction():
        start(connection, tasks, policies, **changes)
    assert jobs(connection) == []


@pytest.mark.parametrize("change", [{"split": "train"}, {"exclude_own": True}, {"seed": 1}, {"kind": "route"}])
def test_an_evaluation_has_one_split_kind_and_seed(connection: db.Connection, change: dict[str, Any]) -> None:
    start(connection, "tea", "base")
    with pytest.raises(UsageError, match=r"evaluation e was started with other settings \(split validation"):
        start(connection, "tea", "base", **change)


def test_two_calls_at_once_ask_each_row_once(database: str) -> None:
    with db.connect(database) as connection:
        add_base_model(connection)
        add_rows(connection, "tea", 300)
        added: list[int] = []

        def call() -> None:
            with db.connect(database) as own:
                added.append(start(own, "tea", "base")[0]["added"])

        threads = [Thread(target=call) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(added) == len(jobs(connection)) == 300


# People come first.


def test_everyday_jobs_are_claimed_before_evaluations_and_alone(connection: db.Connection) -> None:
    start(connection, "tea", "base", rows_a_task=3)
    later = submit(connection, "a person's, later")
    assert [job["id"] for job in claim(connection)] == [later]
    assert len(claim(connection, 2)) == 2
    another = submit(connection, "another person's")
    assert [job["id"] for job in claim(connection)] == [another]
    assert len(claim(connection)) == 1
    assert claim(connection) == []


def test_an_evaluation_keeps_a_draining_worker(connection: db.Connection) -> None:
    start(connection, "tea", "base", rows_a_task=1)
    assert not one(connection, "SELECT loracomp.queue_is_empty('toy') AS empty")["empty"]
    claim(connection)
    assert one(connection, "SELECT loracomp.queue_is_empty('toy') AS empty")["empty"]


# Accuracy.

ROWS = {
    ("base", "tea"): range(5),
    ("base", "tin"): range(7),
    ("base", "ore"): range(10),
    ("default", "tea"): [0, 1, 2, 5, 6, 7, 8],
    ("default", "tin"): range(6),
    ("default", "ore"): range(10),
}


OUTCOMES = [
    Outcome(task, "rock" if task == "ore" else "food", policy, number, number in right)
    for (policy, task), right in ROWS.items()
    for number in range(10)
]


def wilson(hits: int, n: int) -> tuple[float, float]:
    interval = binomtest(hits, n).proportion_ci(method="wilson")
    return interval.low, interval.high


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (1, 1), (0, 50), (50, 50), (7, 10), (7095, 10000)])
def test_wilson_interval_against_scipy(hits: int, n: int) -> None:
    assert wilson_interval(hits, n) == pytest.approx(wilson(hits, n), abs=1e-6)


def test_accuracy_of_a_task_has_wilsons_interval() -> None:
    (row,) = where(accuracies(OUTCOMES), own_task="tea", policy="default")
    assert (row["scope"], row["family"], row["tasks"]) == ("task", "food", 1)
    assert (row["asked"], row["n"], row["correct"], row["accuracy"]) == (10, 10, 7, 0.7)
    assert (row["accuracy_low"], row["accuracy_high"]) == pytest.approx(wilson(7, 10), abs=1e-6)


def test_means_count_every_task_alike() -> None:
    found = {
        (row["scope"], row["family"], row["policy"]): (row["tasks"], row["correct"], row["accuracy"])
        for row in where(accuracies(OUTCOMES), own_task=None)
    }
    assert {key: (tasks, correct, round(accuracy, 9)) for key, (tasks, correct, accuracy) in found.items()} == {
        ("family", "food", "base"): (2, 12, 0.6),
        ("family", "food", "default"): (2, 13, 0.65),
        ("family", "rock", "base"): (1, 10, 1),
        ("family", "rock", "default"): (1, 10, 1),
        ("all", None, "base"): (3, 22, round(22 / 30, 9)),
        ("all", None, "default"): (3, 23, round(23 / 30, 9)),
    }


def test_tasks_come_before_families_and_these_before_all() -> None:
    assert [row["scope"] for row in accuracies(OUTCOMES)] == ["task"] * 6 + ["family"] * 4 + ["all"] * 2
    assert [row["policy_b"] for row in differences(OUTCOMES, ("base", "default"))] == ["base"] * 6 + ["default"] * 6


def test_interval_of_a_mean_adds_the_tasks_distances_squared() -> None:
    (row,) = where(accuracies(OUTCOMES), scope="all", policy="base")
    tasks = [(hits / 10, *wilson(hits, 10)) for hits in (5, 7, 10)]
    below = math.sqrt(sum((p - low) ** 2 for p, low, _ in tasks)) / 3
    above = math.sqrt(sum((high - p) ** 2 for p, _, high in tasks)) / 3
    assert (row["accuracy_low"], row["accuracy_high"]) == pytest.approx((22 / 30 - below, 22 / 30 + above), abs=1e-6)


def test_failed_jobs_count_as_asked_and_not_as_wrong() -> None:
    found = accuracies(
        Outcome(task, "food", "base", number, None if task == "ore" or number == 3 else True)
        for task in ("tea", "ore")
        for number in range(10)
    )
    (tea,) = where(found, own_task="tea")
    assert (tea["asked"], tea["n"], tea["accuracy"]) == (10, 9, 1)
    (every,) = where(found, scope="all")
    assert (every["tasks"], every["asked"], every["n"], every["accuracy"]) == (1, 20, 9, 1)
    (ore,) = where(found, own_task="ore")
    assert (ore["asked"], ore["n"], ore["accuracy"]) == (10, 0, None)
    assert (ore["accuracy_low"], ore["accuracy_high"]) == (0, 1)


# Pairs.


def test_pairs_of_a_task() -> None:
    (row,) = where(differences(OUTCOMES, REFERENCES), own_task="tea", policy_a="default")
    assert (row["policy_b"], row["n"], row["only_a"], row["only_b"]) == ("base", 10, 4, 2)
    assert (row["accuracy_a"], row["accuracy_b"], row["difference"]) == pytest.approx((0.7, 0.5, 0.2))
    assert row["p"] == pytest.approx(binomtest(2, 6).pvalue)
    # Agresti and Min: 4.5 and 2.5 of 12 rows.
    error = math.sqrt((7 - 2**2 / 12) / 12**2)
    assert (row["difference_low"], row["difference_high"]) == pytest.approx(
        (2 / 12 - 1.959964 * error, 2 / 12 + 1.959964 * error)
    )


def test_pairs_of_all_tasks() -> None:
    (row,) = where(differences(OUTCOMES, REFERENCES), scope="all", policy_a="default")
    assert (row["tasks"], row["tasks_ahead"], row["tasks_behind"]) == (3, 1, 1)
    assert (row["n"], row["only_a"], row["only_b"]) == (30, 4, 3)
    assert row["difference"] == pytest.approx(1 / 30)
    assert row["p"] == pytest.approx(binomtest(3, 7).pvalue)
    variances = [(7 - 2**2 / 12) / 12**2, (2 - 1 / 12) / 12**2, 1 / 12**2]
    centre, error = (2 / 12 - 1 / 12) / 3, math.sqrt(sum(variances)) / 3
    assert (row["difference_low"], row["difference_high"]) == pytest.approx(
        (centre - 1.959964 * error, centre + 1.959964 * error)
    )


def test_the_other_way_round_signs_change() -> None:
    found = differences(OUTCOMES, ("base", "default"))
    for row in where(found, policy_a="base"):
        same = {name: row[name] for name in ("scope", "family", "own_task")}
        (other,) = where(found, policy_a="default", **same)
        assert (row["only_a"], row["only_b"], row["p"]) == (other["only_b"], other["only_a"], other["p"])
        assert row["difference"] == pytest.approx(-other["difference"])
        assert row["difference_low"] == pytest.approx(-other["difference_high"])


@pytest.mark.parametrize(
    ("only_a", "only_b"), [(0, 0), (1, 0), (0, 6), (5, 5), (4, 2), (30, 50), (700, 801), (0, 1000)]
)
def test_mcnemar_against_scipy(only_a: int, only_b: int) -> None:
    right = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1
    assert mcnemar_p(only_a, only_b) == pytest.approx(right, rel=1e-9, abs=1e-300)


# From jobs to results.


def test_results_are_those_of_an_evaluations_own_jobs(connection: db.Connection) -> None:
    start(connection, "tea tin ore", "base default")
    start(connection, "tea", "base default", name="another")
    answer_all(connection, right_on(ROWS))
    submit(connection, tags='{"evaluation": "e"}')
    found, another = (read_results(connection, name) for name in ("e", "another"))
    assert found == {"accuracy": accuracies(OUTCOMES), "pairs": differences(OUTCOMES, REFERENCES)}
    of_tea = [each for each in OUTCOMES if each.task == "tea"]
    assert another == {"accuracy": accuracies(of_tea), "pairs": differences(of_tea, REFERENCES)}


def test_rows_that_one_policy_alone_answered_are_no_pairs(connection: db.Connection) -> None:
    start(connection, "tea", "base default")
    failing = ("default", "tea/validation#0")
    answer_all(connection, lambda job: None if (job["policy"], job["source_ref"]) == failing else {"output": "yes"})
    assert {row["n"] for row in read_results(connection, "e")["pairs"]} == {9}


def test_results_outlive_their_examples(connection: db.Connection) -> None:
    start(connection, "tea tin ore", "base default")
    answer_all(connection, right_on(ROWS))
    before = read_results(connection, "e")
    connection.execute("DELETE FROM loracomp.example")
    assert read_results(connection, "e") == before


def test_state_of_an_evaluation(connection: db.Connection) -> None:
    start(connection, "tea", "base", rows_a_task=4)
    (first, *_) = claim(connection, 1)
    found = show_evaluation(connection, "e")
    assert (found["jobs"], found["queued"], found["running"], found["succeeded"]) == (4, 3, 1, 0)
    assert (found["split"], found["kind"], found["base_model"], found["exclude_own"]) == (
        "validation",
        "predict",
        "toy",
        False,
    )
    connection.execute("SELECT loracomp.cancel_job(%s)", [first["id"]])
    answer_all(connection, lambda job: {"output": "yes"})
    found = show_evaluation(connection, "e")
    assert (found["queued"], found["running"], found["succeeded"], found["cancelled"]) == (0, 0, 3, 1)


def test_an_administrator_may_evaluate(scene: db.Connection) -> None:
    with scene.transaction(force_rollback=True):
        scene.execute("SET LOCAL ROLE loracomp_admin")
        assert start(scene, "tea", "base", rows_a_task=2)[0]["added"] == 2
        assert show_evaluation(scene, "e")["queued"] == 2
        assert read_results(scene, "e") == {"accuracy": [], "pairs": []}
