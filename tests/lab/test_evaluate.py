"""`loracomp evaluate` from the data folder to its tables: a tiny base model, real adapters, the real encoder."""

import csv
import io
import json
import os
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread, get_ident
from time import perf_counter, sleep

import pytest
from rich.console import Console
from typer.testing import CliRunner

from job_data import add_jobs, claim
from loracomp import cli
from loracomp.cli import common
from loracomp.config import Settings
from loracomp.engine.engine import Engine
from loracomp.engine.inflight import InFlight
from loracomp.errors import LoracompError, NotFoundError, UsageError
from loracomp.records import Request
from loracomp.registry.adapter_files import CONFIG
from loracomp.registry.adapter_store import stage_adapter
from loracomp.registry.adapters import activate_adapter
from loracomp.registry.base_models import register_base_model
from loracomp.registry.embeddings import embed_examples
from loracomp.registry.encoder_change import set_encoder
from loracomp.registry.tasks import add_task, import_examples
from loracomp.worker import start
from loracomp.worker.recorder import record_predictions
from loracomp.worker.worker import Worker
from loracomp_lab.catalogue import load_entry, read_examples
from model_fixtures import as_base
from registry_data import tiny_description, write_adapter

ROWS = {
    "piqa": lambda n: {"goal": f"Hold {n} hot pots", "sol1": "with a cloth", "sol2": "with ice", "label": n % 2},
    "rte": lambda n: {"sentence1": f"All {n} hens sleep.", "sentence2": f"No {n} hen is awake.", "label": n % 2},
}


def write_data(folder: Path) -> Path:
    for task, row in ROWS.items():
        (folder / task).mkdir()
        for split, numbers in (("train", range(100, 112)), ("validation", range(12))):
            lines = "".join(json.dumps(row(number)) + "\n" for number in numbers)
            (folder / task / f"{split}.jsonl").write_text(lines)
    return folder


@pytest.fixture
def data(connection, database, minilm, tmp_path):
    """Folder with both tasks' splits; the database has their train rows, embedded, and an adapter of each."""
    folder = write_data(tmp_path)
    register_base_model(connection, tiny_description(fingerprint="0" * 64))
    set_encoder(database, minilm)
    for seed, task in enumerate(ROWS):
        entry = load_entry(task)
        add_task(connection, task, family=entry.family)
        import_examples(connection, task, read_examples(entry, "train", str(folder / task)))
        write_adapter(tmp_path / f"{task}-adapter", seed=seed)
        activate_adapter(connection, stage_adapter(connection, tmp_path / f"{task}-adapter", task=task).id)
    embed_examples(connection, minilm)
    return folder


@pytest.fixture
def engine(tiny_model, tokenizer, minilm, monkeypatch):
    """The model with which a worker in this process answers, instead of a model from a hub."""
    built = Engine("tiny", as_base(tiny_model, tokenizer), minilm)
    monkeypatch.setattr(start, "load_engine", lambda settings, connection: built)
    return built


def test_from_the_data_folder_to_the_tables(connection, run, data, engine, tmp_path):
    file = tmp_path / "rows.csv"
    arguments = ["evaluate", "small", "--tasks", "piqa,rte", "--policies", "base,own_task,default", "--rows", "8"]
    found = run(*arguments, "--data", str(data), "--csv", str(file))
    assert (found["evaluation"]["jobs"], found["evaluation"]["succeeded"]) == (48, 48)
    jobs = connection.execute("SELECT * FROM loracomp.job_trace ORDER BY job_id").fetchall()
    alone = [job for job in jobs if job["policy"] == "base"]
    asked = [Request(job["prompt"], tuple(job["choices"]), None, normalization="tokens") for job in alone]
    answers = engine.predict(connection, asked)
    assert [answer.output for answer in answers] == [job["output"] for job in alone]
    accuracy = {(row["own_task"], row["policy"]): row for row in found["accuracy"] if row["scope"] == "task"}
    for (task, policy), row in accuracy.items():
        answers = [
            job["output"] == job["expected"] for job in jobs if (job["own_task"], job["policy"]) == (task, policy)
        ]
        assert (row["n"], row["correct"]) == (8, sum(answers))
    assert {row["policy_b"] for row in found["pairs"]} == {"base", "own_task"}
    assert {tuple(job["composed_tasks"]) for job in jobs if job["policy"] == "own_task"} == {("piqa",), ("rte",)}
    lines = list(csv.DictReader(file.read_text().splitlines()))
    assert len(lines) == 48
    right = [line for line in lines if line["is_correct"] == "True"]
    assert all((line["choice_index"] == line["expected_index"]) == (line in right) for line in lines)
    assert len(right) == sum(row["correct"] for row in accuracy.values())
    assert {line["source_ref"].partition("#")[0] for line in lines} == {"piqa/validation", "rte/validation"}
    assert "hens" not in file.read_text()


def interrupt(patch):
    """Let the process be told to stop in the first step of the model, which ends when the worker knows."""
    step, stop, told, known = Engine.step, Worker.stop, [], Event()

    def interrupting(engine):
        if not told:
            told.append(os.kill(os.getpid(), signal.SIGTERM))
            assert known.wait(30)
        return step(engine)

    def stopping(worker):
        stop(worker)
        known.set()

    patch.setattr(Engine, "step", interrupting)
    patch.setattr(Worker, "stop", stopping)


def without_as_of(found):
    """Live reports say up to when they count, which is another time in each call."""
    if isinstance(found, list):
        return [without_as_of(each) for each in found]
    if isinstance(found, dict):
        return {name: without_as_of(each) for name, each in found.items() if name != "as_of"}
    return found


def test_told_to_stop_it_says_what_is_left_and_goes_on_later(connection, run, data, engine, monkeypatch):
    asked = ["--tasks", "piqa", "--policies", "base,nearest", "--exclude-own", "--data", str(data)]
    monkeypatch.setenv("LORACOMP_BATCH_SIZE", "8")
    with monkeypatch.context() as patch:
        interrupt(patch)
        with pytest.raises(LoracompError, match=r"^16 jobs are left: run `loracomp evaluate small` again to continue"):
            run("evaluate", "small", *asked)
    found = run("evaluate", "small")
    assert (found["evaluation"]["jobs"], found["evaluation"]["succeeded"]) == (24, 24)
    assert {row["composition"] for row in connection.execute("SELECT composition FROM loracomp.job_result")} == {
        "base model",
        "rte 1.00",
    }
    assert without_as_of(run("evaluate", "small", *asked)) == without_as_of(found)


def test_workers_that_are_there_answer(connection, database, run, data, engine, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a worker was started here")

    monkeypatch.setattr(start, "open_worker", refuse)
    worker = Worker(database, engine, base_model="tiny", settings=Settings(poll_s=0.05, batch_size=2, listen=False))
    thread = Thread(target=worker.run)
    thread.start()
    try:
        found = run("evaluate", "small", "--tasks", "rte", "--policies", "base", "--data", str(data), "--route-only")
    finally:
        worker.stop()
        thread.join()
    assert (found["evaluation"]["kind"], found["evaluation"]["succeeded"]) == ("route", 12)
    assert found["accuracy"] == found["pairs"] == []


def test_the_next_batch_is_encoded_by_the_thread_that_answers_and_its_time_counts_once(
    connection, data, engine, monkeypatch
):
    by_whom, coming = [], []

    whole = type(engine.encoder).encode_parts

    def noting(encoder, shown, parts):
        by_whom.append(get_ident())
        return whole(encoder, shown, parts)

    monkeypatch.setattr(type(engine.encoder), "encode_parts", noting)
    add_jobs(connection, "one", "two", choices=["a", "b"])
    (first, second) = (InFlight(job) for job in claim(connection, 2))
    engine.prepare(connection, [first])
    with ThreadPoolExecutor(1) as other:

        def wanted():
            if not coming:
                coming.append(other.submit(engine.prepare, connection, [second]))
                while not (engine._turns._waiting or coming[0].done()):
                    sleep(0.001)
            return True

        scored_again = replace(first.requests[0], submitted_by=None)
        again = replace(first, wanted=wanted, timings={}, requests=(scored_again,))
        engine.answer([first])
        started = again.since = perf_counter()
        engine.answer([again])
        elapsed = 1000 * (perf_counter() - started)
        coming[0].result()
    assert first.result == again.result
    assert by_whom == [get_ident()] * 2
    assert again.timings["predict"] + second.timings["encode"] <= elapsed


def test_the_models_time_is_divided_among_the_jobs_that_it_works_for(connection, data, engine):
    for tokens in (2, 30, 30):
        add_jobs(connection, "one", max_new_tokens=tokens)
    ended = [flight.timings for flight in engine.run(connection, claim(connection, 3))]
    longest = max(timings["predict"] for timings in ended)
    before = sum(ended[0][step] for step in ("encode", "route", "load", "compose"))
    assert all(0 < timings["share"] < before / 3 + timings["predict"] for timings in ended)
    assert sum(timings["share"] for timings in ended) < before + longest


def test_the_same_bytes_with_another_scaling_are_another_composition(connection, database, data, engine, tmp_path):
    """A job of kind route composes nothing, so its trace names no composition."""
    folder, traces = tmp_path / "piqa-adapter", []
    config = json.loads((folder / CONFIG).read_text())
    for alpha, of_modules in ((8, {}), (16, {}), (8, {"q_proj": 32}), (8, {})):
        (folder / CONFIG).write_text(json.dumps(config | {"lora_alpha": alpha, "alpha_pattern": of_modules}))
        activate_adapter(connection, stage_adapter(connection, folder, task="piqa").id)
        add_jobs(connection, "Hold a hot pot", choices=["with a cloth", "with ice"], policy="own_task", task="piqa")
        jobs = claim(connection, base_model="tiny")
        record_predictions(connection, engine.run(connection, jobs))
        query = "SELECT composition_digest, adapter_sha256, choice_scores FROM loracomp.job_trace WHERE job_id = %s"
        traces += [tuple(row.values()) for row in connection.execute(query, [jobs[0].id])]
    first, stronger, partly, again = traces
    assert first == again
    assert first[1] == stronger[1] == partly[1]
    assert len({first[0], stronger[0], partly[0]}) == len({tuple(each[2]) for each in traces}) == 3
    add_jobs(connection, "Hold a hot pot", kind="route", policy="own_task", task="piqa")
    jobs = claim(connection, base_model="tiny")
    record_predictions(connection, engine.run(connection, jobs))
    query = "SELECT adapter_sha256, composition_digest FROM loracomp.job_trace WHERE job_id = %s"
    (row,) = connection.execute(query, [jobs[0].id])
    assert row == {"adapter_sha256": first[1], "composition_digest": None}


def test_tables_for_people(run, data, engine, monkeypatch):
    run("evaluate", "small", "--tasks", "piqa,rte", "--policies", "base,default", "--rows", "6", "--data", str(data))

    def seen_on_a_terminal(width):
        screen = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
        monkeypatch.setattr(common, "console", screen)
        CliRunner().invoke(cli.app, ["evaluate", "small"], catch_exceptions=False)
        return screen.file.getvalue()

    printed = seen_on_a_terminal(80)
    assert max(map(len, printed.splitlines())) <= 80
    accuracy, differences = (table.splitlines() for table in printed.split("\n\n"))
    assert re.fullmatch(r"rows of +n +base +default *", accuracy[1])
    assert any(re.fullmatch(r"all, mean +12 +[\d.]+ +[\d.]+ *", line) for line in accuracy)
    assert re.fullmatch(r"policy +against base *", differences[1]) and len(differences) == 4
    assert re.fullmatch(r"default +[-+][\d.]+, [-+][\d.]+ to [-+][\d.]+, p [\d.e-]+ *", differences[3])
    run("evaluate", "small", "--tasks", "rte", "--policies", "base", "--rows", "8")
    said = " ".join(CliRunner().invoke(cli.app, ["evaluate", "small"], catch_exceptions=False).stderr.split())
    assert "not all policies were asked the same rows (default 6 of 8 rows of rte), so compare" in said
    narrow = seen_on_a_terminal(42)
    assert narrow.count("Accuracy in %") == 2 and max(map(len, narrow.split("\n\n")[0].splitlines())) <= 42


def test_tables_for_pipes(run, data, engine):
    run("evaluate", "small", "--tasks", "piqa,rte", "--policies", "base,default", "--rows", "6", "--data", str(data))
    done = CliRunner(env={"COLUMNS": "80"}).invoke(cli.app, ["evaluate", "small"])
    assert "small: validation rows on tiny; 24 of 24 jobs answered" in done.stderr
    tables = [[line.split("\t") for line in table.splitlines()] for table in done.stdout.split("\n\n")]
    names = [table[0] for table in tables]
    assert [columns[-1] for columns in names] == ["accuracy_high", "p"]
    assert all(len(line) == len(table[0]) for table in tables for line in table)
    accuracy = [dict(zip(names[0], line, strict=True)) for line in tables[0][1:]]
    assert {(row["scope"], row["own_task"]) for row in accuracy} == {
        ("task", "piqa"), ("task", "rte"), ("family", ""), ("all", ""),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (["none such"], NotFoundError, "there is no evaluation none such: start it with --tasks and --policies"),
        (["e", "--tasks", "rte"], UsageError, "--tasks and --policies go together"),
        (["e", "--tasks", "nix", "--policies", "base"], NotFoundError, "no validation rows .* of: nix"),
        (["e", "--tasks", "rte", "--policies", "base"], NotFoundError, "no validation rows .* loracomp task import"),
        (["e", "--tasks", "nix", "--policies", "base", "--data", "."], NotFoundError, "no catalogue entry 'nix'"),
        (["e", "--tasks", "rte", "--policies", "base", "--data", "/nowhere"], NotFoundError, "/nowhere/rte"),
        (["e", "--tasks", ",", "--policies", "base"], UsageError, "at least one task"),
    ],
)
def test_bad_input_is_a_sentence(connection, run, arguments, error, words):
    register_base_model(connection, tiny_description())
    add_task(connection, "rte")
    with pytest.raises(error, match=words):
        run("evaluate", *arguments)
