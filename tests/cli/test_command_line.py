"""The command line as a person and a script meet it: real processes on the demo's database."""

import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import psycopg
import pytest

from demo_fixtures import INSTALLED, ROOT, execute, run
from loracomp import __version__
from loracomp.model.cpu import SPINS, wait_briefly
from loracomp.registry.library_files import packaged

pytestmark = pytest.mark.model
PROMPT = "Iron is heavier than cork.\nQuestion: Cork is heavier than iron. True or False?\nAnswer:"


def url(demo: dict[str, str], user: str | None = None) -> str:
    name = execute(["loracomp", "db", "start"], demo).strip()
    return psycopg.conninfo.make_conninfo(name, **({"user": user} if user else {}))


@pytest.mark.parametrize("command", [["loracomp"], [f"{INSTALLED}/loracomp"], [sys.executable, "-m", "loracomp"]])
def test_the_version_can_be_asked(command: list[str], demo: dict[str, str]) -> None:
    assert execute([*command, "--version"], demo) == f"loracomp {__version__}\n"


def test_the_demo_leaves_no_view_of_bi_empty_that_answers_could_fill(demo: dict[str, str]) -> None:
    reports = ("latency_by_day", "cost_by_submitter", "adapter_usage_by_day", "routing_drift")
    counts = ", ".join(f"(SELECT count(*) > 0 FROM bi.{report})" for report in reports)
    said = execute(["loracomp", "db", "psql", "-qAtc", f"SELECT {counts}"], demo)
    assert said.strip() == "|".join("t" for _ in reports)


def test_the_demo_loads_all_of_the_shipped_library(demo: dict[str, str]) -> None:
    loaded = """SELECT a.name FROM loracomp.adapter AS a JOIN loracomp.example_embedding AS e USING (task_id)
        WHERE a.status = 'active' GROUP BY a.name HAVING count(*) > 100"""
    said = execute(["loracomp", "db", "psql", "-qAtc", loaded], demo)
    assert {path.name for path in (packaged() / "adapters").iterdir()} <= set(said.split())


def test_the_index_finds_the_shipped_examples(demo: dict[str, str]) -> None:
    """Each by its own vector. Built with pgvector's own ef_construction, 64, it misses one in fifty; builds differ."""
    missed = """SELECT count(*) FROM loracomp.example_embedding AS e
        WHERE e.example_id % 9 = 0 AND NOT EXISTS (
            SELECT FROM loracomp.nearest_examples(
                e.embedding, ARRAY(SELECT t.id FROM loracomp.task AS t ORDER BY t.id), 30, false
            ) AS n WHERE n.example_id = e.example_id
        )"""
    said = execute(["loracomp", "db", "psql", "-qAt", "-c", "SET hnsw.ef_search = 100", "-c", missed], demo)
    assert int(said) <= 7  # of some 720


def test_ask_answers_and_explains(demo: dict[str, str]) -> None:
    command = ["loracomp", "ask", PROMPT, "--choice", "True", "--choice", "False"]
    answer, near, mix, scores = at_80_columns(command, demo)
    assert re.fullmatch(r"(True|False)  \(confidence 0\.\d\d\)", answer)
    assert re.fullmatch(r"near    (\w+ 0\.\d\d(, |$)){3}", near) and mix.startswith("mix     rte 0.")
    assert re.fullmatch(r"scores  (True|False) -[\d.]+, (True|False) -[\d.]+", scores)
    lines = at_80_columns([*command, "--trace"], demo)
    assert "Nearest examples (30 retrieved)" in lines and "Composition: cat" in lines


def at_80_columns(command: list[str], demo: dict[str, str]) -> list[str]:
    """The lines that a terminal of 80 columns shows."""
    lines = execute(command, demo | {"COLUMNS": "80", "FORCE_COLOR": "1", "TERM": "dumb"}).splitlines()
    assert max(map(len, lines)) <= 80, lines
    return [line.rstrip() for line in lines]


@pytest.mark.parametrize(
    ("command", "columns"),
    [
        ("task list", ("name", "family", "train")),
        ("adapter list", ("adapter_id", "adapter", "task")),
        ("policy list", ("name", "strategy", "k")),
        ("doctor --all", ("status", "check_name")),
    ],
)
def test_lists_are_tables_of_80_columns(demo: dict[str, str], command: str, columns: tuple[str, ...]) -> None:
    lines = at_80_columns(["loracomp", *command.split()], demo)
    assert any(line.startswith("───") for line in lines)
    for row in json.loads(execute(["loracomp", *command.split(), "--json"], demo)):
        values = " +".join(re.escape(str(row[column])) for column in columns)
        assert any(re.match(f" *{values}(  |$)", line) for line in lines), (row, lines)


def test_ask_in_json_has_the_whole_trace(demo: dict[str, str]) -> None:
    row = json.loads(execute(["loracomp", "ask", PROMPT, "--choice", "True", "--choice", "False", "--json"], demo))
    assert row["status"] == "succeeded"
    assert row["output"] == row["choices"][row["choice_index"] - 1]
    assert row["choice_scores"][row["choice_index"] - 1] == max(row["choice_scores"])
    shares = [math.exp(score) for score in row["choice_scores"]]
    assert row["confidence"] == pytest.approx(max(shares) / sum(shares))
    assert abs(sum(row["adapter_weights"]) - 1) < 1e-6
    assert len(row["example_ids"]) == 30
    replayed = json.loads(execute(["loracomp", "replay", str(row["job_id"]), "--json"], demo))
    assert replayed["outcome"] == "equal"


def test_drawn_text_is_replayed_by_its_seed(demo: dict[str, str]) -> None:
    command = ["loracomp", "ask", "Once there was", "--max-new-tokens", "6", "--temperature", "0.9", "--json"]
    row = json.loads(execute(command, demo))
    assert (row["temperature"], row["top_p"], row["seed"]) == (0.9, 1, row["job_id"])
    replayed = json.loads(execute(["loracomp", "replay", str(row["job_id"]), "--json"], demo))
    assert replayed["outcome"] == "equal"


def test_a_sample_of_what_was_answered_is_replayed(demo: dict[str, str]) -> None:
    results = json.loads(execute(["loracomp", "replay", "--all-since", "2024-01-01", "--sample", "3", "--json"], demo))
    assert [result["outcome"] for result in results] == ["equal"] * 3
    assert len({result["job"] for result in results}) == 3


def test_a_replay_tells_a_forged_answer_and_a_lost_adapter(demo: dict[str, str]) -> None:
    def psql(statement: str) -> list[int]:
        return [int(number) for number in execute(["loracomp", "db", "psql", "-qAtc", statement], demo).split()]

    (forged,) = psql("SELECT min(job_id) FROM loracomp.prediction")
    of_forged = f"(SELECT adapter_ids FROM loracomp.prediction WHERE job_id = {forged})"
    (adapter,) = psql(
        "SELECT min(u.id) FROM loracomp.prediction AS p, unnest(p.adapter_ids) AS u (id)"
        f" WHERE u.id <> ALL ({of_forged}::integer[])"
    )
    lost = psql(f"SELECT job_id FROM loracomp.prediction WHERE {adapter} = ANY (adapter_ids)")
    of_adapter = f"loracomp.adapter_part WHERE adapter_id = {adapter}"
    psql(f"CREATE TABLE public.kept AS SELECT * FROM {of_adapter}; DELETE FROM {of_adapter}")
    psql(f"UPDATE loracomp.prediction SET output = output || ' forged' WHERE job_id = {forged}")
    said = run(["loracomp", "replay", "--all-since", "2024-01-01", "--sample", "100", "--json"], demo)
    psql("INSERT INTO loracomp.adapter_part SELECT * FROM public.kept; DROP TABLE public.kept")
    psql(f"UPDATE loracomp.prediction SET output = replace(output, ' forged', '') WHERE job_id = {forged}")
    assert said.returncode == 1
    results = {result["job"]: result for result in json.loads(said.stdout)}
    assert {job: result["outcome"] for job, result in results.items() if result["outcome"] != "equal"} == {
        forged: "different",
        **dict.fromkeys(lost, "impossible"),
    }
    assert results[forged]["detail"].startswith("now ")
    assert all("in the database are not those that were registered" in results[job]["detail"] for job in lost)


def test_everything_excluded_falls_back_to_the_base_model_and_says_so(demo: dict[str, str]) -> None:
    tasks = [row["name"] for row in json.loads(execute(["loracomp", "task", "list", "--json"], demo))]
    excluded = [argument for task in tasks for argument in ("--exclude-task", task)]
    row = json.loads(
        execute(["loracomp", "ask", "Is tea hot?", "--choice", "yes", "--choice", "no", *excluded, "--json"], demo)
    )
    assert row["status"] == "succeeded"
    assert row["fallback"] and not row["adapter_ids"]


def test_a_prompt_too_long_fails_alone_and_the_worker_goes_on(demo: dict[str, str]) -> None:
    done = run(["loracomp", "ask", "word " * 9000, "--max-new-tokens", "1", "--json"], demo)
    assert json.loads(done.stdout)["error_code"] == "prompt_too_long"
    assert done.returncode == 7
    assert "Traceback" not in done.stderr
    assert json.loads(execute(["loracomp", "ask", "Name a colour.", "--max-new-tokens", "2", "--json"], demo))["output"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["ask", "  "], 6, "prompt must not be blank"),
        (["ask", "Hot?", "--choice", "yes"], 6, "choices must be a list of 2 to 1000"),
        (["ask", "Hot?", "--choice", "yes", "--choice", "yes"], 6, "choices must be distinct"),
        (["ask", "Hot?", "--choice", "yes", "--choice", " "], 6, "choices must not be null or blank"),
        (["ask", "Hot?", "--choice", "a", "--choice", "b", "--max-new-tokens", "3"], 6, "not both"),
        (["ask", "Hot?", "--policy", "no such"], 6, "policy no such does not exist: the table loracomp.policy lists"),
        (["ask", "Hot?", "--exclude-task", "no such"], 6, "exclude tasks"),
        (["ask", "Hot?", "--max-new-tokens", "0"], 2, "--max-new-tokens"),
        (["ask", "Hot?", "--temperature", "nan"], 6, "temperature must be between"),
        (["answers", "try", "no_such", "{a}"], 5, 'error: relation "no_such" does not exist\n'),
        (["task", "add", "\udcff"], 2, "'\\udcff' is not valid UTF-8"),
        (["refresh", "--older-than", "nan"], 2, "Invalid value"),
        (["explain", "999999"], 5, "does not exist"),
        (["replay", "999999"], 5, "does not exist"),
        (["replay", "--all-since", "3000-01-01"], 5, "give an earlier time"),
        (["replay"], 2, "name a job, or --all-since DATE"),
        (["policy", "set", "wild", "routing_temperature=NaN"], 6, "routing_temperature must be between"),
        (["policy", "set", "wild", "k=0"], 6, "k must be between"),
        (["policy", "set", "wild", "colour=red"], 2, "there is no setting colour"),
        (["model", "add", "no/such/folder"], 5, "no/such/folder"),
        (["adapter", "activate", "no such"], 5, "no such"),
        (["adapter", "stage", "tests", "--task", "rte"], 6, "adapter_config.json"),
        (["train", "no such", "--output", "unused"], 5, "no such"),
    ],
)
def test_bad_input_is_a_sentence_and_an_exit_code(
    demo: dict[str, str], arguments: list[str], code: int, words: str
) -> None:
    done = run(["loracomp", *arguments], demo)
    assert (done.returncode, words in done.stderr, "Traceback" in done.stderr) == (code, True, False), done.stderr


def test_a_database_that_cannot_be_reached_is_a_sentence(demo: dict[str, str]) -> None:
    done = run(["loracomp", "doctor"], demo | {"LORACOMP_DATABASE_URL": "postgresql://127.0.0.1:1/none"})
    assert done.returncode == 3
    assert "cannot be reached" in done.stderr and "Traceback" not in done.stderr


def test_wrong_settings_name_the_variable(demo: dict[str, str]) -> None:
    done = run(["loracomp", "doctor"], demo | {"LORACOMP_BATCH_SIZE": "many"})
    assert done.returncode == 2
    assert "LORACOMP_BATCH_SIZE" in done.stderr


@pytest.mark.parametrize("device", ["banana", "cuda:99"])
def test_a_device_that_is_not_here_is_a_sentence(demo: dict[str, str], device: str) -> None:
    done = run(["loracomp", "worker", "--drain"], demo | {"LORACOMP_DEVICE": device})
    assert (done.returncode, f"device '{device}'" in done.stderr, "Traceback" in done.stderr) == (2, True, False)


def test_markup_in_a_name_is_only_text(demo: dict[str, str]) -> None:
    execute(["loracomp", "task", "add", "[/b]", "--json"], demo)
    assert "[/b]" in execute(["loracomp", "task", "list"], demo)


def test_doctor_finds_nothing_wrong_after_the_demo(demo: dict[str, str]) -> None:
    checks = json.loads(execute(["loracomp", "doctor", "--json"], demo))
    assert [check for check in checks if check["status"] == "fail"] == []


STEPS = {"claim", "encode", "route", "load", "ready", "compose", "predict", "record"}


def test_a_submitters_insert_is_answered_by_a_running_worker(demo: dict[str, str]) -> None:
    """The acceptance of the whole: plain SQL by a plain submitter, and a worker that is then told to stop."""
    address = url(demo)
    execute(["loracomp", "db", "psql", "-c", "CREATE ROLE visitor LOGIN IN ROLE loracomp_submitter"], demo)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["loracomp", "worker", "--metrics-port", str(port)]
    worker = subprocess.Popen(
        command, env=demo | {"LORACOMP_LOG_FORMAT": "json"}, cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    try:
        with psycopg.connect(address, user="visitor", autocommit=True) as connection:
            row = connection.execute(
                "INSERT INTO loracomp.job (prompt, choices) VALUES (%s, '{True,False}') RETURNING id", [PROMPT]
            ).fetchone()
            assert row is not None
            answer = _answer(connection, row[0])
            examples = connection.execute(
                "SELECT count(*) FROM loracomp.retrieved_example WHERE job_id = %s", [row[0]]
            ).fetchone()
            timings = connection.execute(
                "SELECT timings FROM loracomp.job_trace WHERE job_id = %s", [row[0]]
            ).fetchone()
        assert answer[0] == "succeeded" and answer[1] in ("True", "False") and answer[2] != "base model"
        (listed,) = json.loads(execute(["loracomp", "workers", "--json"], demo))[:1]
        shown = at_80_columns(["loracomp", "workers"], demo)
        assert shown[3].startswith("───") and re.match(f"{re.escape(listed['worker'])} +(idle|busy) ", shown[4]), shown
        assert shown[5].startswith(f"In every row: device {listed['device']}, base model {listed['base_model']}")
        assert examples == (30,)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready") as ready:
            assert json.load(ready) == {"ready": True, "problems": {}}
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as metrics:
            text = metrics.read().decode()
        assert timings and set(timings[0]) == {*STEPS, "share"}
        assert set(re.findall(r'loracomp_step_seconds_count\{step="(\w+)"', text)) == STEPS
        assert 'loracomp_cache_requests_total{cache="adapters",result="miss"}' in text
        assert "loracomp_database_up 1.0" in text
        assert f'device="{listed["device"]}"' in text and "cpu/" in listed["device"]
        assert "loracomp_queue_jobs{" in text and "loracomp_workers{" in text
    finally:
        worker.send_signal(signal.SIGTERM)
        _, log = worker.communicate(timeout=60)
    assert worker.returncode == 0, log
    assert "Traceback" not in log
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert {"metrics_served", "started", "claimed", "recorded", "stopped"} <= {line["event"] for line in lines}


def _answer(connection: psycopg.Connection[tuple[object, ...]], job: object) -> tuple[object, ...]:
    for _ in range(600):
        row = connection.execute(
            "SELECT status, output, composition FROM loracomp.job_result WHERE job_id = %s", [job]
        ).fetchone()
        assert row is not None
        if row[0] not in ("queued", "running"):
            return row
        time.sleep(0.1)
    raise AssertionError("the worker did not answer within a minute")


def test_the_second_demo_adds_jobs_and_nothing_else(demo: dict[str, str]) -> None:
    before = json.loads(execute(["loracomp", "adapter", "list", "--json"], demo))
    lines = at_80_columns(["loracomp", "demo"], demo)
    assert len(lines) == 32 and sum(line.lstrip()[0] in "✓✗" for line in lines) == 14
    assert json.loads(execute(["loracomp", "adapter", "list", "--json"], demo)) == before


@pytest.mark.parametrize(("policy", "spins"), [(None, SPINS), ("passive", None)])
def test_torchs_threads_spin_a_little_unless_the_environment_says_how_they_wait(monkeypatch, policy, spins) -> None:
    monkeypatch.setattr(os, "environ", {"OMP_WAIT_POLICY": policy} if policy else {})
    wait_briefly()
    assert os.environ.get("GOMP_SPINCOUNT") == spins
