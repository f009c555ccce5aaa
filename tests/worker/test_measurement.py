"""Measurements: what is asked, scored (against a direct computation) and recorded; fenced, and safe to kill."""

import json
import re
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from peft import PeftModel
from psycopg.types.json import Jsonb
from rich.console import Console
from typer.testing import CliRunner

from conftest import create_database, drop_database
from job_data import add_jobs, claim, expire_leases, job, statuses
from job_fixtures import cleared_connection, database_of_a_module, gate_of_a_test  # noqa: F401
from loracomp import cli
from loracomp.cli import common
from loracomp.config import Settings
from loracomp.database.connections import Connection
from loracomp.database.queries import QUERIES
from loracomp.engine.calibration import Calibration, Calibrator
from loracomp.engine.engine import Engine
from loracomp.engine.inflight import InFlight
from loracomp.engine.measuring import Measurement, record_measurements
from loracomp.errors import LoracompError, RefusedError
from loracomp.model.tokens import encode_choices
from loracomp.records import MIX_ALONE, Composition, Failure, Job, Prediction, Request
from loracomp.registry.adapter_store import stage_adapter
from loracomp.registry.adapters import activate_adapter, compare_adapter
from loracomp.registry.encoder_change import set_encoder
from loracomp.registry.measurements import list_measurements, measure_task
from loracomp.replay import replay
from loracomp.worker import start
from loracomp.worker.recorder import record
from loracomp.worker.worker import Worker
from model_fixtures import as_base, direct, tiny_llama
from registry_data import quiet_peft, registered, write_adapter
from routing_data import BASE_MODEL, load
from worker_helpers import Crowded, claims, drain, running, wait_until, working

CHOICES = ["yes", "no", "can not be told"]
TRAINED = {"tasks_seen": ["tea"]}


def add_task(connection: Connection, name: str, *, training: dict[str, Any] | None = None, adapter: bool = True) -> int:
    """Add a task and, unless `adapter` is false, an active adapter of it; returns the adapter's id or 0."""
    connection.execute("SELECT loracomp.add_task(%s)", [name])
    return add_adapter(connection, name, training or {}) if adapter else 0


def add_adapter(
    connection: Connection, task: str, training: dict[str, Any], *, version: int = 1, status: str = "active"
):
    row = connection.execute(
        "INSERT INTO loracomp.adapter (task_id, base_model_id, name, version, status, rank, alpha, use_rslora, scaling,"
        " target_modules, parameter_count, byte_count, sha256, digest, config, training)"
        " SELECT t.id, b.id, t.name, %s, %s, 8, 16, false, 2, '{q}', 1, 1, h, h, '{}', %s"
        " FROM loracomp.task AS t, loracomp.base_model AS b, encode(sha256(%s), 'hex') AS h"
        " WHERE t.name = %s AND b.is_default RETURNING id",
        [version, status, json.dumps(training), f"{task} {version}".encode(), task],
    ).fetchone()
    assert row
    return int(row["id"])


def add_examples(
    connection: Connection, task: str, *prompts: str, split: str = "train", choices: list[str] | None = CHOICES
) -> list[int]:
    """Add examples whose first choice is right; train examples are in the index."""
    ids = []
    for prompt in prompts:
        row = connection.execute(
            "INSERT INTO loracomp.example (task_id, split, prompt, choices, label, content_hash)"
            " SELECT id, %(split)s, %(prompt)s, %(choices)s, %(label)s, sha256(convert_to(%(prompt)s, 'UTF8'))"
            " FROM loracomp.task WHERE name = %(task)s RETURNING id",
            {
                "split": split,
                "prompt": prompt,
                "choices": choices,
                "label": (choices or ["as it was"])[0],
                "task": task,
            },
        ).fetchone()
        assert row
        if split == "train":
            embed(connection, row["id"])
        ids.append(int(row["id"]))
    return ids


def embed(connection: Connection, example: int) -> None:
    connection.execute(
        "INSERT INTO loracomp.example_embedding (example_id, task_id, embedding)"
        " SELECT id, task_id, (ARRAY[1] || array_fill(0, ARRAY[831]))::real[]::vector"
        " FROM loracomp.example WHERE id = %s",
        [example],
    )


def measurements(connection: Connection) -> dict[int, dict[str, Any]]:
    return {row["example_id"]: row for row in connection.execute("SELECT * FROM loracomp.measurement")}


def waiting(connection: Connection) -> dict[int, list[int]]:
    """Return the adapters that are to be measured on each example."""
    rows = connection.execute("SELECT * FROM loracomp.job WHERE kind = 'measure' AND status = 'queued' ORDER BY id")
    return {row["example_id"]: row["adapter_ids"] for row in rows}


def measured(job: Job, adapter_ids: list[int], gains: list[float]) -> Measurement:
    are_right = (True,) * len(gains)
    return Measurement(job.id, "tokens", -1.0, False, tuple(adapter_ids), tuple(gains), are_right)


def answer_all(connection: Connection, gain: float = 0.5) -> None:
    """Record a gain for every waiting measurement."""
    while jobs := claim(connection):
        plans = {
            row["id"]: row["adapter_ids"] for row in connection.execute("SELECT id, adapter_ids FROM loracomp.job")
        }
        found = [measured(each, plans[each.id], [gain] * len(plans[each.id])) for each in jobs]
        assert record_measurements(connection, jobs, found) == {each.id for each in jobs}


# --- what is asked


def test_each_example_is_asked_once_under_each_adapter_that_has_not_learnt_from_it(connection: Connection) -> None:
    tea = add_task(connection, "tea", training=TRAINED)
    milk = add_task(connection, "milk", training={"tasks_seen": ["tea", "milk"]})
    foreign = add_task(connection, "foreign")
    learnt, kept_aside = add_examples(connection, "tea", "learnt", "kept aside")
    unlearnt = {**TRAINED, "kept_aside": [hash_of(connection, kept_aside)]}
    connection.execute("UPDATE loracomp.adapter SET training = %s WHERE id = %s", [json.dumps(unlearnt), tea])
    (validation,) = add_examples(connection, "tea", "never learnt", split="validation")

    found = measure_task(connection, "tea")
    assert found == {"examples": 1, "learnt": 1, "adapters_measured": 3, "added": 1}
    assert waiting(connection) == {kept_aside: [tea, foreign]}, "milk has seen tea's rows and kept none aside"
    assert measure_task(connection, "tea")["added"] == 0, "they wait already"
    answer_all(connection)
    assert measure_task(connection, "tea")["added"] == 0, "they are measured already"
    assert learnt not in measurements(connection)

    newer = add_task(connection, "newer")
    assert measure_task(connection, "tea")["added"] == 1
    assert waiting(connection) == {kept_aside: [newer]}
    assert measure_task(connection, "tea", split="validation")["added"] == 1
    assert waiting(connection) == {kept_aside: [newer], validation: [tea, milk, foreign, newer]}


def hash_of(connection: Connection, example_id: int) -> str:
    row = connection.execute(
        "SELECT encode(content_hash, 'hex') AS hex FROM loracomp.example WHERE id = %s", [example_id]
    ).fetchone()
    assert row
    return str(row["hex"])


def test_a_task_without_an_adapter_is_measured_and_a_new_version_on_what_is(connection: Connection) -> None:
    tea = add_task(connection, "tea")
    add_task(connection, "new", adapter=False)
    first, second = add_examples(connection, "new", "a", "b")
    with pytest.raises(psycopg.Error, match=r"adapter tea@1 can.t be measured yet"):
        connection.execute("SELECT loracomp.measure_adapter(%s)", [tea])
    assert measure_task(connection, "new", rows=1)["added"] == 1
    (asked,) = waiting(connection)
    answer_all(connection)
    staged = add_adapter(connection, "tea", {}, version=2, status="staged")
    found = connection.execute("SELECT * FROM loracomp.measure_adapter(%s)", [staged]).fetchone()
    assert found == {"examples": 1, "added": 1, "learnt": 0}
    assert waiting(connection) == {asked: [staged]}
    with pytest.raises(psycopg.errors.RaiseException, match="adapter tea@2 has 1 jobs waiting to measure it"):
        connection.execute("SELECT loracomp.delete_adapter('tea@2')")
    assert measure_task(connection, "new")["examples"] == 2
    assert waiting(connection) == {asked: [staged], ({first, second} - {asked}).pop(): [tea]}
    answer_all(connection, 0.25)
    row = measurements(connection)[asked]
    assert (row["adapter_ids"], row["gains"]) == ([tea, staged], [0.5, 0.25])
    (listed,) = list_measurements(connection, "new")
    assert (listed["examples"], listed["adapters"], listed["queued"], listed["failed"]) == (2, 2, 0, 0)


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        ("none such", {}, "task none such does not exist"),
        (
            "tea",
            {},
            "has no train example to measure: it has 1 with a text and a label, and its adapter has learnt",
        ),
        ("tea", {"split": "test"}, "has no test example"),
        ("tea", {"adapters": 0}, "adapters must be between 1 and 1000"),
        ("tea", {"rows": 0}, "rows must be between 1 and"),
    ],
)
def test_what_can_not_be_measured_is_said(
    connection: Connection, task: str, settings: dict[str, Any], message: str
) -> None:
    add_task(connection, "tea")
    add_examples(connection, "tea", "learnt")
    with pytest.raises(LoracompError, match=message):
        measure_task(connection, task, **settings)


@pytest.mark.parametrize(
    "odd",
    [
        ["yes"], ["yes", "yes"], ["yes", " "], ["yes", None], [["yes", "no"], ["no", "yes"]],
        ["yes", *map(str, range(1000))], ["yes", "n" * 1_000_001], None,
    ],
    ids=lambda odd: str(odd)[:20],
)  # fmt: skip
def test_an_example_that_can_not_be_asked_keeps_no_other_from_being_measured(
    connection: Connection, odd: list[Any] | None
) -> None:
    """Without choices it is the right answer that is blank."""
    add_task(connection, "tea", training=TRAINED)
    (askable,) = add_examples(connection, "tea", "Is tea wet?", split="test")
    (other,) = add_examples(connection, "tea", "Is it odd?", split="test")
    label = " " if odd is None else "yes"
    connection.execute("UPDATE loracomp.example SET choices = %s, label = %s WHERE id = %s", [odd, label, other])
    measure_task(connection, "tea", split="test")
    assert [*waiting(connection)] == [askable]


def test_nobody_but_measure_task_makes_such_jobs(connection: Connection) -> None:
    for given in ({}, {"expected": "yes", "choices": ["yes", "no"]}):
        with pytest.raises(psycopg.errors.CheckViolation, match="jobs_of_kind_measure_come_from_measure_task"):
            add_jobs(connection, "x", kind="measure", **given)


def test_everyday_jobs_come_first(connection: Connection) -> None:
    add_task(connection, "tea", adapter=False)
    add_task(connection, "milk")
    add_examples(connection, "tea", "a", "b")
    measure_task(connection, "tea")
    (everyday,) = add_jobs(connection, "now", choices=["a", "b"])
    assert [each.id for each in claim(connection)] == [everyday]
    assert {each.kind for each in claim(connection)} == {"measure"}


@pytest.fixture(scope="module")
def many(server: str, template: str) -> Iterator[Connection]:
    """Forty tasks, each with an adapter and clustered examples with texts."""
    from loracomp.database.connections import connect

    name = f"{template}_many"
    with connect(create_database(server, name, template)) as opened:
        load(opened, 3, [12] * 40)
        opened.execute("UPDATE loracomp.example SET prompt = 'p', choices = '{a,b}', label = 'a'")
        opened.execute("""UPDATE loracomp.adapter SET training = '{"tasks_seen": []}'""")
        yield opened
    drop_database(server, name)


def test_with_many_adapters_those_of_the_nearest_tasks_are_measured(many: Connection) -> None:
    assert measure_task(many, "t7", rows=3, adapters=5, base_model=BASE_MODEL)["adapters_measured"] == 5
    rows = many.execute("SELECT task_id, embedding::real[] AS v FROM loracomp.example_embedding").fetchall()
    tasks, vectors = np.array([r["task_id"] for r in rows]), np.array([r["v"] for r in rows], np.float32)
    own = many.execute("SELECT id FROM loracomp.task WHERE name = 't7'").fetchone()["id"]
    nearest = [
        task
        for query in vectors[tasks == own]
        for task in tasks[tasks != own][np.argsort(-(vectors[tasks != own] @ query), kind="stable")[:200]]
    ]
    names, counts = np.unique(nearest, return_counts=True)
    wanted = {own, *names[np.argsort(-counts, kind="stable")[:4]].tolist()}
    asked = many.execute(
        "SELECT DISTINCT a.task_id FROM loracomp.job AS j JOIN loracomp.adapter AS a ON a.id = ANY (j.adapter_ids)"
    ).fetchall()
    assert {row["task_id"] for row in asked} == wanted
    assert measure_task(many, "t7", rows=3, adapters=40, base_model=BASE_MODEL)["adapters_measured"] == 40


# --- what is recorded


def one_job(connection: Connection) -> tuple[Job, int, int]:
    """Return a claimed measurement job, its example and its adapter."""
    add_task(connection, "tea", adapter=False)
    adapter = add_task(connection, "milk")
    (example,) = add_examples(connection, "tea", "a")
    measure_task(connection, "tea")
    (claimed,) = claim(connection)
    return claimed, example, adapter


def test_a_stale_lease_writes_nothing(connection: Connection) -> None:
    stale, example, adapter = one_job(connection)
    expire_leases(connection)
    (current,) = claim(connection)
    assert record_measurements(connection, [stale], [measured(stale, [adapter], [9.0])]) == set()
    assert measurements(connection) == {}
    assert record_measurements(connection, [current], [measured(current, [adapter], [1.0])]) == {current.id}
    assert record_measurements(connection, [current], [measured(current, [adapter], [2.0])]) == set()
    assert measurements(connection)[example]["gains"] == [1.0]
    assert job(connection, current.id)["status"] == "succeeded"


def test_a_fit_reads_the_train_rows_however_many_others_were_measured_before(connection: Connection) -> None:
    add_task(connection, "tea", adapter=False)
    adapter = add_task(connection, "milk")
    add_examples(connection, "tea", *(f"kept aside {number}" for number in range(260)), split="validation")
    train = add_examples(connection, "tea", "a", "b")
    connection.execute(
        "INSERT INTO loracomp.measurement (example_id, base_model_id, task_id, choice_normalization, base_score,"
        " base_is_right, adapter_ids, gains, are_right, choice_scores, chat_template)"
        " SELECT e.id, b.id, e.task_id, 'tokens', -1, false, ARRAY[%(adapter)s::integer], '{1}', '{t}',"
        " jsonb_build_object(%(adapter)s::text, '[0, -1, -2]'::jsonb), false"
        " FROM loracomp.example AS e, loracomp.base_model AS b WHERE b.is_default",
        {"adapter": adapter},
    )
    (job_id,) = add_jobs(
        connection,
        "a",
        kind="measure",
        choices=CHOICES,
        expected=CHOICES[0],
        example_id=train[0],
        adapter_ids=[adapter],
    )
    found = connection.execute("SELECT * FROM loracomp.labelled_scores(%s)", [[job_id]]).fetchall()
    assert len(found) == len(train)


def test_evidence_is_fitted_though_the_results_were_written_before(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This happens if the connection breaks after the results are written and before the evidence is."""
    claimed, _, adapter = one_job(connection)
    fitted: list[list[int]] = []
    monkeypatch.setattr("loracomp.worker.recorder.record_evidence", lambda _, ids: fitted.append(list(ids)))
    flight = InFlight(claimed, result=measured(claimed, [adapter], [1.0]))
    assert record(connection, [flight]) == {claimed.id}
    assert record(connection, [flight]) == set()
    assert fitted == [[claimed.id]] * 2


def test_a_worker_measures_nothing_but_what_its_job_names(connection: Connection) -> None:
    claimed, example, adapter = one_job(connection)
    other = add_task(connection, "other")
    with connection.transaction():
        connection.execute("SET LOCAL ROLE loracomp_worker")
        forged = measured(claimed, [adapter, other], [1.0, 9.0])
        assert record_measurements(connection, [claimed], [forged]) == {claimed.id}
    assert measurements(connection)[example]["adapter_ids"] == [adapter]
    (everyday,) = add_jobs(connection, "x", choices=["a", "b"])
    (predicting,) = claim(connection)
    assert record_measurements(connection, [predicting], [measured(predicting, [adapter], [1.0])]) == set()
    assert job(connection, everyday)["status"] == "running"


@pytest.mark.parametrize("gain", [float("nan"), float("inf")])
def test_a_gain_that_is_no_number_is_refused(connection: Connection, gain: float) -> None:
    claimed, _, adapter = one_job(connection)
    with pytest.raises(psycopg.IntegrityError, match="gains_must_be_finite"):
        record_measurements(connection, [claimed], [measured(claimed, [adapter], [gain])])


def test_an_example_that_changed_meanwhile_is_not_measured_by_its_old_text(connection: Connection) -> None:
    claimed, example, adapter = one_job(connection)
    connection.execute("UPDATE loracomp.example SET prompt = 'another' WHERE id = %s", [example])
    embed(connection, example)
    assert record_measurements(connection, [claimed], [measured(claimed, [adapter], [1.0])]) == {claimed.id}
    assert measurements(connection) == {}
    assert measure_task(connection, "tea")["added"] == 1
    answer_all(connection)
    again = {"split": "train", "prompt": "a third", "choices": CHOICES, "label": "no"}
    rows = json.dumps([{**again, "content_hash": hash_of(connection, example)}])
    connection.execute("SELECT loracomp.add_examples('tea', %s::jsonb)", [rows])
    assert measurements(connection) == {}, "another text is another example"


def test_two_jobs_of_one_example_in_a_batch_are_one_row(connection: Connection) -> None:
    add_task(connection, "tea", adapter=False)
    first = add_task(connection, "milk")
    (example,) = add_examples(connection, "tea", "a")
    measure_task(connection, "tea")
    second = add_task(connection, "sugar")
    measure_task(connection, "tea")
    jobs = claim(connection)
    found = [measured(jobs[0], [first], [1.0]), measured(jobs[1], [second], [2.0])]
    assert record_measurements(connection, jobs, found) == {each.id for each in jobs}
    row = measurements(connection)[example]
    assert (row["adapter_ids"], row["gains"]) == ([first, second], [1.0, 2.0])


@pytest.fixture
def other_policy(connection: Connection, request: pytest.FixtureRequest) -> Iterator[tuple[str, dict[str, Any]]]:
    """Make a policy with another setting than `measured` has; returns how a worker then scores."""
    settings, scored = request.param
    connection.execute("UPDATE loracomp.base_model SET has_chat_template = true")
    connection.execute("SELECT loracomp.set_policy('mine', %s)", [Jsonb({"weighting": "measured"} | settings)])
    yield "mine", scored
    connection.execute("DELETE FROM loracomp.job")
    connection.execute("DELETE FROM loracomp.policy WHERE name = 'mine'")
    connection.execute("UPDATE loracomp.base_model SET has_chat_template = false")


OTHERWISE = [
    ({"choice_normalization": "none"}, {"choice_normalization": "none"}),
    ({"chat_template": "always"}, {"chat_template": True}),
]


@pytest.mark.parametrize("other_policy", OTHERWISE, indirect=True)
@pytest.mark.parametrize("mine_is_newer", [True, False])
def test_gains_under_two_policies_in_a_batch_are_not_mixed(
    connection: Connection, other_policy: tuple[str, dict[str, Any]], mine_is_newer: bool
) -> None:
    add_task(connection, "tea", adapter=False)
    first, second = add_task(connection, "milk"), add_task(connection, "sugar")
    (example,) = add_examples(connection, "tea", "a")
    name, scored = other_policy
    for policy in ("measured", name) if mine_is_newer else (name, "measured"):
        row = connection.execute("SELECT added FROM loracomp.measure_task('tea', policy => %s)", [policy]).fetchone()
        assert row
        assert row["added"] == 1, "what waits is scored otherwise"
    older, newer = claim(connection)
    found = [measured(older, [first, second], [1.0, 5.0]), measured(newer, [second], [2.0])]
    found[mine_is_newer] = replace(found[mine_is_newer], **scored)
    found[mine_is_newer] = replace(found[mine_is_newer], base_score=-3.0)
    assert record_measurements(connection, [older, newer], found) == {older.id, newer.id}
    row = measurements(connection)[example]
    kept = {name: row[name] for name in ("adapter_ids", "gains", "choice_normalization", "chat_template", "base_score")}
    expected = {"choice_normalization": "tokens", "chat_template": False} | (scored if mine_is_newer else {})
    assert kept == {"adapter_ids": [second], "gains": [2.0], "base_score": -3.0 if mine_is_newer else -1.0} | expected


def test_gains_of_an_older_text_in_the_same_batch_are_left_out(connection: Connection) -> None:
    claimed, example, first = one_job(connection)
    connection.execute("UPDATE loracomp.example SET prompt = 'another' WHERE id = %s", [example])
    embed(connection, example)
    second = add_task(connection, "sugar")
    connection.execute(
        "SELECT loracomp.queue_measurements(%s, %s, b, 'measured', 0) FROM loracomp.base_model AS b WHERE b.is_default",
        [[example], [second]],
    )
    (newer,) = claim(connection)
    found = [measured(claimed, [first], [1.0]), measured(newer, [second], [2.0])]
    assert record_measurements(connection, [claimed, newer], found) == {claimed.id, newer.id}
    row = measurements(connection)[example]
    assert (row["adapter_ids"], row["gains"]) == ([second], [2.0])


@pytest.mark.parametrize(
    ("before", "after", "scored"),
    [
        ({"choice_normalization": "tokens"}, {"choice_normalization": "none"}, {"choice_normalization": "none"}),
        ({"chat_template": "generation"}, {"chat_template": "always"}, {"chat_template": True}),
    ],
)
def test_what_was_scored_otherwise_is_measured_again_whole(
    connection: Connection, before: dict[str, str], after: dict[str, str], scored: dict[str, Any]
) -> None:
    connection.execute("UPDATE loracomp.base_model SET has_chat_template = true")
    claimed, example, adapter = one_job(connection)
    record_measurements(connection, [claimed], [measured(claimed, [adapter], [1.0])])
    later = add_task(connection, "sugar")
    connection.execute("SELECT loracomp.set_policy('measured', %s)", [Jsonb(after)])
    try:
        assert measure_task(connection, "tea")["added"] == 1
        assert waiting(connection) == {example: [adapter, later]}
        (claimed,) = claim(connection)
        record_measurements(connection, [claimed], [replace(measured(claimed, [later], [2.0]), **scored)])
        assert measurements(connection)[example]["gains"] == [2.0], "other scores can't stand beside it"
    finally:
        connection.execute("SELECT loracomp.set_policy('measured', %s)", [Jsonb(before)])
        connection.execute("UPDATE loracomp.base_model SET has_chat_template = false")


def test_an_erased_example_takes_its_measurements_and_jobs_along(connection: Connection) -> None:
    claimed, example, adapter = one_job(connection)
    record_measurements(connection, [claimed], [measured(claimed, [adapter], [1.0])])
    connection.execute("SELECT * FROM loracomp.erase_example(%s)", [example])
    assert (measurements(connection), statuses(connection)) == ({}, {})


def test_killed_half_way_it_goes_on(connection: Connection, database: str, gate: Path) -> None:
    add_task(connection, "tea", adapter=False)
    adapters = [add_task(connection, name) for name in ("milk", "sugar")]
    examples = add_examples(connection, "tea", "a", "b")
    assert measure_task(connection, "tea")["added"] == 2
    examples += add_examples(connection, "tea", *(f"until {gate} {number}" for number in range(6)))
    assert measure_task(connection, "tea")["added"] == 6
    with running(database, BATCH_SIZE=1) as process:
        wait_until(lambda: len(measurements(connection)) >= 2)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    gate.touch()
    done = measurements(connection)
    assert len(done) == 2
    assert measure_task(connection, "tea")["added"] == 0, "what waits, and what the dead worker held, is asked already"
    expire_leases(connection)
    drain(database)
    found = measurements(connection)
    assert set(found) == set(examples)
    assert all(row["adapter_ids"] == adapters for row in found.values())
    assert all(found[example]["measured_at"] == row["measured_at"] for example, row in done.items()), "not done again"
    assert set(statuses(connection).values()) == {"succeeded"}


def test_a_measurement_that_waits_for_its_next_pass_until_its_time_is_over_pays_no_attempt(
    connection: Connection, database: str
) -> None:
    """The measurement pays an attempt if its own passes took half of the time."""
    add_task(connection, "tea", adapter=False)
    add_task(connection, "milk")
    add_examples(connection, "tea", "a")
    assert measure_task(connection, "tea")["added"] == 1
    (job_id,) = statuses(connection)
    connection.execute("UPDATE loracomp.job SET timeout_s = 1, max_attempts = 1")
    engine = Crowded()
    engine.begins, engine.worked_s = True, 0.4
    with working(database, engine):
        wait_until(lambda: claims(connection)[job_id] >= 3)
        engine.worked_s = 0.6
        wait_until(lambda: job(connection, job_id)["status"] == "failed")
    row = job(connection, job_id)
    assert (row["error_code"], row["attempts"], row["expired_leases"]) == ("timed_out", 1, 0)


# --- what is scored


@pytest.fixture
def library(connection: Connection, database: str, minilm, tmp_path: Path) -> dict[str, Path]:
    """Folders with adapters of two tasks for the tiny model, registered and active; a third task has only examples."""
    connection.execute("DELETE FROM loracomp.base_model")
    registered(connection, "tea", "milk", "new")
    connection.execute("UPDATE loracomp.base_model SET fingerprint = repeat('0', 64)")
    set_encoder(database, minilm)
    folders = {task: tmp_path / task for task in ("tea", "milk")}
    for seed, (task, folder) in enumerate(folders.items()):
        write_adapter(folder, seed=seed)
        activate_adapter(connection, stage_adapter(connection, folder, task=task).id)
    return folders


def test_gains_are_those_of_a_direct_computation(
    connection: Connection, database: str, run, library: dict[str, Path], tiny_model, tokenizer, minilm, monkeypatch
) -> None:
    scored = add_examples(connection, "new", "Is tea hot?", "Is milk black?")
    written = add_examples(connection, "new", "Tea is best", choices=None)
    engine = Engine("tiny", as_base(tiny_model, tokenizer), minilm)
    monkeypatch.setattr(start, "load_engine", lambda settings, connection: engine)
    tokenised: list[str] = []

    def noted(tokenizer: Any, prompt: str, *arguments: Any, **options: Any) -> Any:
        tokenised.append(prompt)
        return encode_choices(tokenizer, prompt, *arguments, **options)

    monkeypatch.setattr("loracomp.engine.answering.encode_choices", noted)
    (printed,) = run("task", "measure", "new")
    assert sorted(tokenised) == ["Is milk black?", "Is tea hot?", "Tea is best"], "once, not under each adapter"
    assert (printed["examples"], printed["adapters"], printed["added"], printed["failed"]) == (3, 2, 3, 0)
    (again,) = run("task", "measure", "new")
    assert again["added"] == 0

    ids = {row["name"]: row["id"] for row in connection.execute("SELECT name, id FROM loracomp.adapter")}
    rows = measurements(connection)
    for example in (*scored, *written):
        asked = connection.execute("SELECT * FROM loracomp.example WHERE id = %s", [example]).fetchone()
        base, base_is_right = direct(tiny_llama(), tokenizer, asked)
        row = rows[example]
        assert row["base_score"] == pytest.approx(base, abs=1e-4)
        assert row["base_is_right"] == base_is_right
        for task, folder in library.items():
            with quiet_peft():
                model = PeftModel.from_pretrained(tiny_llama(), folder)
            score, is_right = direct(model, tokenizer, asked)
            at = row["adapter_ids"].index(ids[task])
            assert row["gains"][at] == pytest.approx(score - base, abs=1e-4)
            assert row["are_right"][at] == is_right
            assert abs(score - base) > 0.01, "a difference to be seen"


def measured_rows(connection: Connection, engine: Engine) -> list[int]:
    """Return ids of rows of the task `new` on which the policy `measured` calibrates choices, whatever the prompt."""
    rows = add_examples(connection, "new", *(f"row {number} of tea" for number in range(8)))
    measure_task(connection, "new")
    flights = engine.run(connection, claim(connection, 64))
    assert all(0 < 1000 * each.worked_s <= each.timings["predict"] for each in flights)
    record(connection, flights)
    connection.execute("UPDATE loracomp.policy SET min_similarity = -1 WHERE name = 'measured'")
    return rows


def test_choices_of_a_new_task_are_calibrated_and_replayed(
    connection: Connection, library: dict[str, Path], tiny_model, tokenizer, minilm
) -> None:
    engine = Engine("tiny", as_base(tiny_model, tokenizer), minilm)
    rows = measured_rows(connection, engine)

    asked = [
        add_jobs(connection, "Is tea hot?", choices=order, policy="measured")[0] for order in (CHOICES, CHOICES[::-1])
    ]
    jobs = claim(connection)
    assert record(connection, engine.run(connection, jobs)) == set(asked)
    first, second = (
        connection.execute("SELECT * FROM loracomp.job_trace WHERE job_id = %s", [job_id]).fetchone()
        for job_id in asked
    )
    assert first
    assert second
    assert first["calibration_examples"] == rows
    evidence = connection.execute("SELECT * FROM loracomp.task_evidence").fetchone()
    assert evidence
    assert evidence["choices"] == sorted(CHOICES)
    halves = np.exp(np.array(evidence["log_likelihoods"]) / 2)
    explained_by = dict(zip(evidence["adapter_ids"], halves / halves.sum(), strict=True))
    assert dict(zip(first["adapter_ids"], first["adapter_weights"], strict=True)) == pytest.approx(explained_by)
    assert len({*first["adapter_weights"]}) == 2, "one explains the rows better"
    assert second["choice_biases"] == first["choice_biases"][::-1]
    assert max(first["label_scores"]) == first["label_scores"][0] > 0.1, "the first choice is right for all rows"
    bare = engine.predict(
        connection, [replace(request_of(first), choice_biases=(), label_scores=(), score_weights=MIX_ALONE)]
    )[0]
    assert isinstance(bare, Prediction)
    added = np.add(first["choice_biases"], first["label_scores"])
    mixed = first["score_weights"][0] * np.array(bare.choice_scores)
    np.testing.assert_allclose(first["choice_scores"], mixed + added, atol=1e-5)
    assert (replay(engine, connection, first).outcome, replay(engine, connection, second).outcome) == ("equal",) * 2
    assert re.search(r"\nThe adapter mix favours .* 8 labelled rows favours ", explained(connection, asked[0]))
    merged = replay(engine, connection, first, by_merging=True)
    assert (merged.outcome, merged.norm_ratio, merged.cosine) == ("equal", 1, 1)
    linear = {**first, "policy_settings": {**first["policy_settings"], "strategy": "linear"}}
    apart = replay(engine, connection, linear, by_merging=True)
    assert apart.outcome == "different"
    assert apart.norm_ratio != pytest.approx(1, abs=0.01)
    assert apart.cosine is not None
    assert 0 < apart.cosine < 1
    assert f"norm ratio {apart.norm_ratio:.3f}, cosine {apart.cosine:.3f}" in apart.detail
    broken = replay(engine, connection, {**first, "choice_biases": [0.1]})
    assert (broken.outcome, "choice_biases differ in length" in broken.detail) == ("impossible", True)


def test_rows_of_a_declaration_are_answered_by_its_corrections_whatever_resembles_them(
    connection: Connection, database: str, library: dict[str, Path], tiny_model, tokenizer, minilm
) -> None:
    engine = Engine("tiny", as_base(tiny_model, tokenizer), minilm)

    def work() -> None:
        Worker(database, engine, base_model="tiny", settings=Settings(poll_s=0.05), drain=True).run()

    connection.execute(
        "CREATE TABLE notes (id integer PRIMARY KEY, body text);"
        "INSERT INTO notes SELECT i, 'row ' || i FROM generate_series(1, 17) AS i;"
        "UPDATE notes SET body = 'Is tea hot?' WHERE id > 15"  # one of them is corrected
    )
    connection.execute("SELECT loracomp.create_answers('said', 'notes', '{body}', choices => %s)", [CHOICES])
    try:
        connection.execute(
            "SELECT loracomp.add_example('tea', 'Is tea hot?', label => %s, choices => %s)", [CHOICES[1], CHOICES]
        )
        work()
        connection.execute("UPDATE said SET correct = %s WHERE id < 17", [CHOICES[0]])
        work()
        connection.execute("SELECT loracomp.alter_answers('said', again => true)")
        work()
        found = connection.execute("SELECT array_agg(DISTINCT answered_by) AS by FROM said").fetchone()
        assert found == {"by": ["16 corrections"]}
        (nearest,) = connection.execute(
            "SELECT array_agg(DISTINCT p.example_tasks[1]) AS tasks FROM loracomp.prediction AS p"
            " JOIN loracomp.job AS j ON j.id = p.job_id WHERE j.prompt = 'Is tea hot?' AND j.kind = 'predict'"
        )
        assert nearest == {"tasks": ["tea"]}
        without_setup = "SELECT count(*) AS n FROM loracomp.answer_row WHERE setup IS NULL"
        assert connection.execute(without_setup).fetchone() == {"n": 0}, "their own corrections are left out"
    finally:
        connection.execute("DROP TABLE notes CASCADE; SELECT loracomp.forget_answers(a) FROM loracomp.declaration AS a")


def test_the_time_of_a_calibration_is_a_step_of_its_own(
    connection: Connection, library: dict[str, Path], tiny_model, tokenizer, minilm, monkeypatch
) -> None:
    engine = Engine("tiny", as_base(tiny_model, tokenizer), minilm)
    measured_rows(connection, engine)
    step = Calibrator.step

    def slowly(self: Calibrator, **settings: Any) -> Sequence[Calibration]:
        time.sleep(0.2)
        return step(self, **settings)

    monkeypatch.setattr(Calibrator, "step", slowly)

    def timings(policy: str) -> list[dict[str, float]]:
        """Return the times of two jobs that are answered together."""
        add_jobs(connection, "Is tea hot?", "Is it hot?", choices=CHOICES, policy=policy)
        jobs, began = claim(connection), time.perf_counter()
        flights = engine.run(connection, jobs)
        all_ms = 1000 * (time.perf_counter() - began)
        return [{**each.timings, "all": all_ms} for each in flights if isinstance(each.result, Prediction)]

    for found in timings("measured"):
        assert found["calibrate"] > 200
        steps = ("encode", "route", "load", "ready", "compose", "calibrate", "predict")
        assert sum(found[step] for step in steps) <= found["all"], "no time is counted twice"
    assert ["calibrate" in found for found in timings("base")] == [False] * 2


def test_a_step_that_raises_changes_no_calibrated_answer(
    connection: Connection, database: str, library: dict[str, Path], tiny_model, tokenizer, minilm, monkeypatch
) -> None:
    engine = Engine("tiny", as_base(tiny_model, tokenizer), minilm)
    measured_rows(connection, engine)
    prompts = [f"Is {drink} hot?" for drink in ("tea", "milk", "rain", "wine")]
    run = Engine._run
    raised = []

    def once(self: Engine) -> None:
        if not raised:
            raised.append(len(self._running))
            raise RuntimeError("a pass that failed")
        run(self)

    def calibrated() -> list[float]:
        """Return the choices' scores and their parts, as the worker records them for each prompt."""
        ids = add_jobs(connection, *prompts, choices=CHOICES, policy="measured")
        Worker(database, engine, base_model="tiny", settings=Settings(poll_s=0.05), drain=True).run()
        rows = connection.execute(
            "SELECT choice_scores || choice_biases || label_scores || score_weights AS parts FROM loracomp.job_trace"
            " WHERE job_id = ANY (%s) ORDER BY job_id",
            [ids],
        )
        return [part for row in rows for part in row["parts"]]

    undisturbed = calibrated()
    assert len(undisturbed) == len(prompts) * (3 * len(CHOICES) + 3)
    monkeypatch.setattr(Engine, "_run", once)
    assert calibrated() == pytest.approx(undisturbed, abs=1e-4)
    assert raised == [len(prompts)]


def request_of(trace: dict[str, Any]) -> Request:
    """Return the request that a trace describes, with its composition."""
    mix = Composition(
        tuple(trace["adapter_ids"]), tuple(trace["adapter_sha256"]), tuple(trace["adapter_weights"]), "cat", 0.5
    )
    return Request(trace["prompt"], tuple(trace["choices"]), None, normalization="tokens", composition=mix)


def explained(connection: Connection, job_id: int) -> str:
    row = connection.execute("SELECT loracomp.explain_job(%s) AS text", [job_id]).fetchone()
    assert row
    return str(row["text"])


def test_an_adapter_that_does_not_fit_fails_the_job_by_name(
    connection: Connection, database: str, library: dict[str, Path], tiny_model, tokenizer, minilm
) -> None:
    add_examples(connection, "new", "Is tea hot?")
    measure_task(connection, "new")
    connection.execute("UPDATE loracomp.adapter SET sha256 = repeat('b', 64) WHERE name = 'milk'")
    engine = Engine("tiny", as_base(tiny_model, tokenizer), minilm)
    (flight,) = engine.run(connection, claim(connection))
    failure = flight.result
    assert isinstance(failure, Failure)
    assert (failure.code, failure.retry) == ("adapter_hash_mismatch", False)


# --- what follows: versions compared, and reports


def two_versions(connection: Connection, gains: list[tuple[float, float]]) -> tuple[int, int]:
    """Add an active adapter of tea and a staged version 2, both measured; each pair of gains belongs to one example.
    Returns their ids."""
    old = add_task(connection, "tea", training={"tasks_seen": []})
    new = add_adapter(connection, "tea", {"tasks_seen": []}, version=2, status="staged")
    connection.execute("INSERT INTO loracomp.adapter_part VALUES (%s, 0, 'x'), (%s, 0, 'x')", [old, new])
    add_examples(connection, "tea", *(f"row {number}" for number in range(len(gains))))
    measure_task(connection, "tea")
    connection.execute("UPDATE loracomp.job SET adapter_ids = %s WHERE kind = 'measure'", [[old, new]])
    jobs = claim(connection, 64)
    found = [measured(each, [old, new], [*pair]) for each, pair in zip(jobs, gains, strict=True)]
    assert len(record_measurements(connection, jobs, found)) == len(gains)
    return old, new


def warnings_of(connection: Connection) -> list[str | None]:
    """Return a list that collects the warnings that the connection gets from now on."""
    heard: list[str | None] = []
    connection.add_notice_handler(lambda notice: heard.append(notice.message_primary))
    return heard


WORSE = [(0.5, 0.4 - 0.01 * number) for number in range(7)] + [(0.5, 0.6)]


def test_a_version_that_is_measured_worse_is_refused_unless_forced(connection: Connection) -> None:
    old, new = two_versions(connection, WORSE)
    compared = connection.execute("SELECT * FROM loracomp.compare_adapters(%s, %s)", [new, old]).fetchone()
    assert compared
    differences = np.array([after - before for before, after in WORSE], np.float32)
    assert (compared["examples"], compared["better"], compared["worse"]) == (8, 1, 7)
    assert compared["mean_difference"] == pytest.approx(differences.mean(), abs=1e-6)
    assert compared["standard_error"] == pytest.approx(differences.std(ddof=1) / 8**0.5, abs=1e-6)
    assert compared["p"] == pytest.approx(2 * (1 + 8) / 2**8), "the exact sign test"

    heard = warnings_of(connection)
    assert activate_adapter(connection, new) == old, "p = 0.07: it may be chance"
    figures = "tea@2 gains -0.101 nats over tea@1 on 8 measured examples: better on 1, worse on 7, p = 0.0703"
    assert heard[0] == figures
    assert activate_adapter(connection, old) == new
    connection.execute("DELETE FROM loracomp.measurement WHERE gains[2] > gains[1]")
    said = r"a new version must not be worse: tea@2 gains -0.130 nats over tea@1 on 7 measured examples: better on 0, "
    with pytest.raises(RefusedError, match=said + r"worse on 7, p = 0.0156: .* with force"):
        activate_adapter(connection, new)
    assert connection.execute("SELECT status FROM loracomp.adapter WHERE id = %s", [new]).fetchone() == {
        "status": "retired"
    }
    assert activate_adapter(connection, new, force=True) == old
    events = connection.execute(
        "SELECT entity_id, new_status, reason FROM loracomp.audit_event"
        " WHERE entity = 'adapter' ORDER BY id DESC LIMIT 2"
    ).fetchall()
    assert {(event["entity_id"], event["new_status"]) for event in events} == {(new, "active"), (old, "retired")}
    assert {event["reason"] for event in events} == {
        "tea@2 gains -0.130 nats over tea@1 on 7 measured examples: better on 0, worse on 7, p = 0.0156 (forced)"
    }
    assert activate_adapter(connection, old) == new, "the better one needs no force"


def test_versions_that_are_not_measured_together_are_not_compared(connection: Connection) -> None:
    old, new = two_versions(connection, WORSE[:7])
    connection.execute("UPDATE loracomp.measurement SET adapter_ids[2] = 1000000")
    heard = warnings_of(connection)
    assert activate_adapter(connection, new) == old
    assert heard[0] == "adapter tea@2 is not compared with tea@1: no example is measured under both"


def test_a_first_version_is_compared_with_the_base_model(connection: Connection) -> None:
    new = two_versions(connection, WORSE)[1]
    connection.execute("DELETE FROM loracomp.adapter WHERE version = 1")
    heard = warnings_of(connection)
    connection.execute("UPDATE loracomp.measurement SET gains[2] = -0.25")
    assert activate_adapter(connection, new) is None, "it is worse, but there is no better version"
    figures = "tea@2 gains -0.250 nats over the base model on 8 measured examples: better on 0, worse on 8, p = 0.0078"
    assert heard[0] == figures
    connection.execute("SELECT loracomp.retire_adapter('tea')")
    connection.execute("DELETE FROM loracomp.measurement")
    heard.clear()
    assert activate_adapter(connection, new) is None
    assert heard[0] == "adapter tea@2 is not compared with the base model: no example is measured under both"


def test_an_adapter_is_compared_on_another_task_too(connection: Connection) -> None:
    old, new = two_versions(connection, WORSE)
    milk = add_task(connection, "milk", training={"tasks_seen": []})
    connection.execute(
        "UPDATE loracomp.measurement SET adapter_ids = adapter_ids || %s, gains = gains || %s::real,"
        " are_right = are_right || (example_id %% 2 = 0)",
        [milk, 0.25],
    )
    found = connection.execute("SELECT * FROM loracomp.compare_adapters(%s, task => 'tea')", [milk]).fetchone()
    assert found
    assert (found["examples"], found["mean_difference"], found["better"], found["worse"]) == (8, 0.25, 8, 0)
    assert found["p"] == pytest.approx(2 / 2**8)
    assert (found["accuracy"], found["other_accuracy"]) == (0.5, 0)
    rows = connection.execute(QUERIES["compare_with_base"], {"task": "tea", "base_model": "tiny"}).fetchall()
    assert [row["adapter"] for row in rows] == ["tea@1", "tea@2", "milk@1"], "the task's own come first"
    assert {"n": 8, "base_accuracy": 0, "accuracy": 0.5, "gain": 0.25}.items() <= rows[2].items()
    assert compare_adapter(connection, milk) == [], "on its own task nothing is measured"
    base, active = compare_adapter(connection, new)
    assert (base["against"], base["better"], active["against"], active["worse"]) == ("base model", 8, "tea@1", 7)
    assert [row["against"] for row in compare_adapter(connection, old)] == ["base model"]


def test_commands_print_what_was_measured(connection: Connection, run, monkeypatch: pytest.MonkeyPatch) -> None:
    two_versions(connection, WORSE)
    measured = run("task", "measure", "tea")[0]["measured"]
    assert [(row["adapter"], row["status"], row["n"]) for row in measured] == [
        ("tea@1", "active", 8),
        ("tea@2", "staged", 8),
    ]
    base, active = run("adapter", "measure", "tea@2")[0]["measured"]
    assert (base["against"], base["n"], base["accuracy"], base["other_accuracy"]) == ("base model", 8, 1, 0)
    assert (active["against"], active["n"], active["accuracy"], active["other_accuracy"]) == ("tea@1", 8, 1, 1)
    assert (round(base["gain"], 3), round(active["gain"], 3)) == (0.399, -0.101)
    assert active["p"] == pytest.approx(2 * (1 + 8) / 2**8)
    piped = CliRunner().invoke(cli.app, ["adapter", "measure", "tea@2"]).stdout
    assert "against\tn\taccuracy\tother_accuracy\tgain\tp\nbase model\t8\t1.0\t0.0\t0.39" in piped
    monkeypatch.setattr(common, "console", Console(force_terminal=True, width=80, color_system=None))
    for command in ("task measure tea", "adapter measure tea@2", "adapter activate tea@2"):
        lines = CliRunner().invoke(cli.app, command.split()).stdout.splitlines()
        assert max(map(len, lines)) <= 80
        assert any(line.startswith("tea@1") for line in lines), lines
        assert any(line.startswith("In every row: ") and "n 8" in line for line in lines), lines
    assert [row["against"] for row in run("adapter", "activate", "tea@1")[0]["measured"]] == ["base model", "tea@2"]


def test_a_version_that_has_learnt_from_all_measured_rows_says_so(connection: Connection) -> None:
    two_versions(connection, WORSE)
    training = {"tasks_seen": ["tea"]}
    new = add_adapter(connection, "tea", training, version=3, status="staged")
    connection.execute("UPDATE loracomp.example SET split = 'train'")
    found = connection.execute("SELECT * FROM loracomp.measure_adapter(%s)", [new]).fetchone()
    assert found == {"examples": 8, "added": 0, "learnt": 8}


def test_transfer_says_what_each_adapter_is_worth_on_each_task(connection: Connection) -> None:
    old, new = two_versions(connection, WORSE)
    rows = {row["adapter_id"]: row for row in connection.execute("SELECT * FROM bi.transfer")}
    gains = np.array(WORSE, np.float32).astype(float)
    for at, (adapter, label) in enumerate([(old, "tea@1"), (new, "tea@2")]):
        row = rows[adapter]
        assert (row["adapter"], row["task"], row["n"], row["base_accuracy"], row["accuracy"]) == (label, "tea", 8, 0, 1)
        assert row["mean_gain"] == pytest.approx(gains[:, at].mean())
        assert row["standard_error"] == pytest.approx(gains[:, at].std(ddof=1) / 8**0.5)
