"""Tests what people read: job_result, job_trace, the trace's views, attempts, the queue, explain_job."""

import pytest
from psycopg import errors

from job_data import REPORT
from loracomp.database import connections as db
from loracomp.database.queries import QUERIES
from people_data import answer, claim, load, one, submit


@pytest.fixture
def examples(connection: db.Connection) -> dict[str, int]:
    return load(connection)


def result(connection: db.Connection, job_id: int) -> dict[str, object]:
    return one(connection, "SELECT * FROM loracomp.job_result WHERE job_id = %s", [job_id])


def explain(connection: db.Connection, job_id: int) -> str:
    words = str(one(connection, "SELECT loracomp.explain_job(%s) AS words", [job_id])["words"])
    assert "\n\n\n" not in words
    return words


def test_result_of_an_answered_job(connection: db.Connection, examples: dict[str, int]) -> None:
    job_id = submit(connection, choices=["yes", "no"], idempotency_key="k")
    answer(connection, job_id, examples, choice_index=1, choice_scores=[-0.5, -1.5])
    found = result(connection, job_id)
    assert (found["status"], found["output"], found["choice_index"]) == ("succeeded", "yes", 1)
    assert found["choice_scores"] == [-0.5, -1.5]
    assert found["composition"] == "rte 0.62 + mnli 0.38"
    assert (found["policy"], found["fallback"], found["error"]) == ("default", None, None)
    assert (found["idempotency_key"], found["attempts"]) == ("k", 1)
    assert 0 <= found["latency_s"] < 60


def test_result_of_a_job_that_the_base_model_answered(connection: db.Connection, examples: dict[str, int]) -> None:
    job_id = submit(connection)
    answer(connection, job_id, examples, composed_tasks=[], adapter_weights=[], fallback="below min_similarity")
    found = result(connection, job_id)
    assert (found["composition"], found["fallback"]) == ("base model", "below min_similarity")


@pytest.mark.usefixtures("examples")
def test_result_of_a_waiting_job(connection: db.Connection) -> None:
    found = result(connection, submit(connection, tags='{"app": "x"}'))
    assert (found["status"], found["output"], found["composition"]) == ("queued", None, None)
    assert (found["latency_s"], found["finished_at"], found["tags"]) == (None, None, {"app": "x"})


def test_composition_in_short_is_sorted_by_weight(connection: db.Connection) -> None:
    statement = "SELECT loracomp.composition_text(%s::text[], %s::float8[]) AS short"
    assert one(connection, statement, [["a", "b", "c"], [0.1, 0.6, 0.3]])["short"] == "b 0.60 + c 0.30 + a 0.10"
    assert one(connection, statement, [["a"], [1]])["short"] == "a 1.00"
    assert one(connection, statement, [[], []])["short"] is None


def test_shorten(connection: db.Connection) -> None:
    cases = [
        ("a\n\n  b\tc ", 10, "a b c"),
        ("abcdef", 6, "abcdef"),
        ("abc defgh", 5, "abc…"),
        ("  ", 5, ""),
        (None, 5, None),
    ]
    for value, length, short in cases:
        assert one(connection, "SELECT loracomp.shorten(%s, %s) AS short", [value, length])["short"] == short


def test_trace_has_all_of_job_and_prediction(connection: db.Connection, examples: dict[str, int]) -> None:
    job_id = submit(connection, choices=["yes", "no"], expected="yes", task="rte")
    answer(connection, job_id, examples, choice_index=1)
    found = one(connection, "SELECT * FROM loracomp.job_trace WHERE job_id = %s", [job_id])
    assert (found["own_task"], found["correct"]) == ("rte", True)
    assert found["example_ids"] == list(examples.values())
    assert found["policy_settings"]["name"] == found["policy"] == "default"
    assert found["timings"].pop("record") > 2  # what the server adds
    assert found["timings"] == {
        "claim": 1,
        "encode": 5.5,
        "route": 2.25,
        "load": 3,
        "compose": 4,
        "calibrate": 7,
        "predict": 40,
    }
    # Renamed, or of no use to a reader; any other new column belongs in the view.
    left_out = {"id", "place", "background", "scheduled", "watched", "task", "labelled_task", "attempt", "lease_token"}
    left_out |= {
        "is_correct",
        "lease_expires_at",
        "expired_leases",
        "priority",
        "max_attempts",
        "timeout_s",
    }
    rows = connection.execute(
        "SELECT column_name AS name FROM information_schema.columns "
        "WHERE table_schema = 'loracomp' AND table_name IN ('job', 'prediction')"
    )
    renamed = {"confidence", "own_task", "correct", "given_tasks", "given_weights"}
    assert {row["name"] for row in rows} - left_out == set(found) - renamed


def test_retrieved_examples_and_composed_adapters(connection: db.Connection, examples: dict[str, int]) -> None:
    job_id = submit(connection)
    answer(connection, job_id, examples)
    rows = connection.execute("SELECT * FROM loracomp.retrieved_example ORDER BY ordinal").fetchall()
    assert [(row["ordinal"], row["example_id"], row["source_ref"]) for row in rows] == [
        (ordinal, example_id, reference) for ordinal, (reference, example_id) in enumerate(examples.items(), start=1)
    ]
    assert (rows[0]["task"], rows[0]["similarity"]) == ("rte", 0.9)
    assert (rows[0]["prompt"], rows[0]["label"]) == ("Does it rain in example 1 of rte?", "yes")
    rows = connection.execute("SELECT * FROM loracomp.composed_adapter ORDER BY ordinal").fetchall()
    assert [(row["task"], row["weight"], row["adapter"], row["version"]) for row in rows] == [
        ("rte", 0.62, "rte", 1),
        ("mnli", 0.38, "mnli", 1),
    ]


def test_a_trace_outlives_what_it_names(connection: db.Connection, examples: dict[str, int]) -> None:
    job_id = submit(connection)
    answer(connection, job_id, examples)
    connection.execute("DELETE FROM loracomp.adapter; DELETE FROM loracomp.task")
    rows = connection.execute("SELECT * FROM loracomp.composed_adapter ORDER BY ordinal").fetchall()
    assert [(row["task"], row["adapter"]) for row in rows] == [("rte", None), ("mnli", None)]
    assert one(connection, "SELECT count(*) FROM loracomp.retrieved_example")["count"] == 4
    assert f"adapter {rows[0]['adapter_id']} of rte, sha256 {rows[0]['sha256'][:12]}..." in explain(connection, job_id)


@pytest.mark.usefixtures("examples")
def test_attempts_are_read_from_the_audit(connection: db.Connection) -> None:
    job_id = submit(connection)
    token = claim(connection, job_id)[job_id]
    connection.execute("SELECT loracomp.release_jobs(%s, %s)", [[job_id], [token]])
    token = claim(connection, job_id, worker="worker-2")[job_id]
    connection.execute("SELECT loracomp.fail_jobs(%s, %s, '{too_long}', '{the prompt}', '{f}')", [[job_id], [token]])
    connection.execute("SELECT loracomp.retry_job(%s)", [job_id])
    claim(connection, job_id)
    rows = connection.execute("SELECT * FROM loracomp.job_attempt ORDER BY started_at").fetchall()
    assert [(row["job_id"], row["worker"], row["attempt"], row["outcome"], row["reason"]) for row in rows] == [
        (job_id, "worker-1", 1, "given back", "released"),
        (job_id, "worker-2", 1, "failed", "too_long"),
        (job_id, "worker-1", 1, "running", None),
    ]
    assert rows[0]["duration_s"] >= 0
    assert rows[2]["ended_at"] is None


def test_health_of_the_queue(connection: db.Connection, examples: dict[str, int]) -> None:
    answer(connection, submit(connection), examples)
    claim(connection, submit(connection))
    connection.execute("UPDATE loracomp.job SET lease_expires_at = now() - interval '1 s' WHERE status = 'running'")
    submit(connection, run_at="2020-01-01")
    submit(connection, run_at="3000-01-01")
    connection.execute("SELECT loracomp.cancel_job(%s)", [submit(connection)])
    found = one(connection, "SELECT * FROM loracomp.queue_health")
    assert (found["queued"], found["due"], found["retrying"]) == (2, 1, 0)
    assert (found["running"], found["busy_workers"], found["expired_leases"]) == (1, 1, 1)
    assert (found["succeeded_last_hour"], found["failed_last_hour"], found["cancelled_last_hour"]) == (1, 0, 1)
    assert found["per_minute"] == 2 / 5
    # It waits since it was inserted, not since 2020.
    assert 0 <= found["oldest_due_s"] < 60
    assert 0 <= found["median_latency_s"] < 60


@pytest.mark.usefixtures("examples")
def test_an_idle_base_model_has_a_row_of_zeros(connection: db.Connection) -> None:
    found = one(connection, "SELECT * FROM loracomp.queue_health")
    assert {name: value for name, value in found.items() if value} == {"base_model": "toy"}


def test_explanation_of_an_answer(connection: db.Connection, examples: dict[str, int]) -> None:
    job_id = submit(connection, "Is it\n wet? " + "x" * 300, choices=["yes", "no"], exclude_tasks=["mnli"])
    answer(connection, job_id, examples, choice_index=1, choice_scores=[-0.5, -1.5])
    words = explain(connection, job_id)
    for line in (
        f"Job {job_id}: succeeded. Submitted by postgres at ",
        "Answered by attempt 1 of 3, ",
        "Prompt: Is it wet? xxx",
        "Choices: yes | no",
        "Excluded tasks: mnli",
        "Answer: yes",
        ">     -0.500  yes",
        "      -1.500  no",
        "Nearest examples (4 retrieved)",
        "  0.900  rte   rte/train#1: Does it rain in example 1 of rte?",
        "  0.700  mnli  mnli/train#1: ",
        "Tasks (policy default: temperature 0.1, weighting similarity, top_p 0.95, at most 8 adapters)",
        "  mnli  probability 0.380  weight 0.380",
        "Composition: cat",
        "  0.620  rte version 1",
        "Time of each step of its batch: claim 1.0 ms, encode 5.5 ms, route 2.3 ms, load 3.0 ms, compose 4.0 ms, ",
        "Tokens: 12 in the prompt, 1 scored or generated",
        "Versions: base model toy (000000000000...), encoder toy-encoder/1, loracomp 0.1.0; composition dddddddddddd",
    ):
        assert f"\n{line}" in f"\n{words}", words
    assert "…" in words  # the prompt is shortened
    assert "Next: " not in words


def test_explanation_of_many_adapters_at_equal_weights(connection: db.Connection, examples: dict[str, int]) -> None:
    job_id = submit(connection, choices=["yes", "no"])
    tasks = [f"task{number}" for number in range(22)]
    even = {"composed_tasks": tasks, "adapter_weights": [1 / 22] * 22, "adapter_ids": list(range(1, 23))}
    route = {"tasks": ["rte", *tasks], "probabilities": [1.0] + [0.0] * 22, "weights": [0.0] + [1 / 22] * 22}
    scored = {"choice_index": 1, "choice_scores": [-0.5, -1.5], "choice_biases": [1.25, -1.25]}
    scored |= {"label_scores": [-0.5, 1.5], "score_weights": [1.5, 2.0, 0.0]}
    hashes, labelled = ["a" * 64] * 22, list(examples.values())
    answer(
        connection, job_id, examples, **even, **route, **scored, adapter_sha256=hashes, calibration_examples=labelled
    )
    words = explain(connection, job_id)
    assert "\nComposition: cat\n  0.045 each  22 adapters (loracomp.composed_adapter names them)\n" in words
    assert "probability 1.000  not composed\n  and 22 tasks with smaller weights\n" in words
    assert "normalised by: tokens, fitted on 4 labelled examples); confidence 0.73" in words
    assert "\n>     -0.500  of which bias +1.250, rows -0.500  yes\n" in words
    assert "\nThe adapter mix favours yes 0.62 (weight 1.50); the classifier " in words
    assert " trained on 4 labelled rows favours no 0.88 (weight 2.00).\n" in words
    assert max(len(line) for line in words.splitlines() if line.startswith("  ")) <= 80


def test_explanation_of_described_choices(connection: db.Connection, examples: dict[str, int]) -> None:
    described = {"choices": ["account", "billing"], "descriptions": ["login,\n passwords, users", "payments, invoices"]}
    job_id = submit(connection, "I cannot log in.", **described)
    scored = {"choice_index": 1, "choice_scores": [2.5, 1.5], "description_similarities": [0.5, 0.25]}
    answer(connection, job_id, examples, **scored, score_weights=[0.5, 0.0, 10.0])
    words = explain(connection, job_id)
    assert "\nChoices: account: login, passwords, users | billing: payments, invoices\n" in words
    assert "\n>      2.500  of which description +5.000  account\n" in words
    assert (
        "\nThe adapter mix favours billing 0.82 (weight 0.50); the descriptions favour account 0.92 (weight 10.00).\n"
        in words
    )
    assert "\nClosest to the description of account: login, passwords, users (similarity 0.500)\n" in words
    labelled = scored | {"choice_biases": [0.5, -0.5], "label_scores": [0.25, -0.25]}
    again = submit(connection, "I cannot log in.", **described)
    answer(
        connection, again, examples, **labelled, score_weights=[1, 2, 10], calibration_examples=list(examples.values())
    )
    words = explain(connection, again)
    assert "\n>      2.500  of which bias +0.500, rows +0.250, description +5.000  account\n" in words
    assert "\nThe adapter mix favours billing 0.95 (weight 1.00); the classifier" in words
    assert "trained on 4 labelled rows favours account 0.62 (weight 2.00); the descriptions favour account" in words
    assert max(len(line) for line in words.splitlines() if line.startswith(("  ", "> "))) <= 80


def test_explanation_where_the_base_model_answered(connection: db.Connection, examples: dict[str, int]) -> None:
    job_id = submit(connection)
    nothing = {"composed_tasks": [], "adapter_weights": [], "weights": [0, 0]}
    answer(connection, job_id, examples, **nothing, fallback="below min_similarity")
    words = explain(connection, job_id)
    assert "Composition: none. The base model answered alone: below min_similarity" in words
    assert "  rte   probability 0.620  not composed" in words
    assert "Scores" not in words


@pytest.mark.usefixtures("examples")
def test_explanation_of_jobs_without_an_answer(connection: db.Connection) -> None:
    job_id = submit(connection)
    assert "\nIt has been due for 0." in explain(connection, job_id)
    assert "Start one: LORACOMP_BASE_MODEL='toy' loracomp worker" in explain(connection, job_id)
    later = submit(connection, run_at="3000-01-01")
    assert "It can start at 3000-01-01 00:00:00" in explain(connection, later)
    connection.execute(QUERIES["report_worker"], {**REPORT, "base_model": "toy"})
    assert "Next: wait. Due jobs: 1, the oldest for" in explain(connection, job_id)
    assert "Next: wait until it can start." in explain(connection, later)
    token = claim(connection, job_id)[job_id]
    assert "Attempt 1 of 3 has been running on worker worker-1 for 0." in explain(connection, job_id)
    assert "Its lease ends in 59." in explain(connection, job_id)
    another = submit(connection, "Another?")
    assert "Next: wait. Due jobs: 1, the oldest for 0" in explain(connection, another)
    assert "running jobs: 1.\n" in explain(connection, another)
    connection.execute("UPDATE loracomp.job SET expired_leases = 1 WHERE id = %s", [job_id])
    alone = "running jobs: 1 (of these alone on their worker, because the job's lease expired before: 1).\n"
    assert alone in explain(connection, another)
    connection.execute("UPDATE loracomp.job SET lease_expires_at = now() - interval '1 s' WHERE id = %s", [job_id])
    assert "Its lease has expired" in explain(connection, job_id)
    connection.execute("SELECT loracomp.fail_jobs(%s, %s, '{too_long}', '{cut it}', '{f}')", [[job_id], [token]])
    words = explain(connection, job_id)
    assert "\nFailed after attempt 1 of 3.\nError: too_long: cut it\n" in words
    assert f"SELECT loracomp.retry_job({job_id})" in words
    connection.execute("SELECT loracomp.cancel_job(%s, 'not needed')", [later])
    words = explain(connection, later)
    assert "Error: cancelled: not needed" in words
    assert f"Next: if you want its answer after all, run SELECT loracomp.retry_job({later})" in words


def test_explanation_of_weights_that_nothing_retrieved_and_nothing_composed(connection: db.Connection) -> None:
    load(connection)
    job_id = submit(connection, kind="route", tasks=["rte", "mnli"], weights=[0.5, 0.25])
    nothing = {"output": None, "composition_digest": None, "prompt_tokens": 0}
    answer(connection, job_id, {}, **nothing, probabilities=[0, 0], chat_template=True)
    words = explain(connection, job_id)
    assert "Only tasks: rte, mnli with weights 0.5, 0.25\n" in words
    assert (
        "\nWeights (a job of kind route computes weights but composes no adapters)\n"
        "  0.620  rte version 1\n  0.380  mnli version 1\n\n" in words
    )
    assert words.endswith("encoder toy-encoder/1, loracomp 0.1.0")
    for absent in ("Tasks (", "Nearest", "norm ratio", "Tokens", "Composition"):
        assert absent not in words


def test_explanation_of_a_job_that_is_not_there(connection: db.Connection) -> None:
    with pytest.raises(errors.NoDataFound, match="job 7 does not exist, or is not yours"):
        explain(connection, 7)
