"""A change of the encoder while jobs, imports and erasures go on; killed half-way; by several processes at once."""

import os
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from forked import programs
from job_data import add_jobs, statuses
from loracomp import cli
from loracomp.database.connections import Connection, connect
from loracomp.database.queries import QUERIES
from loracomp.errors import LoracompError, RefusedError
from loracomp.model.encoder import Encoder
from loracomp.model.loading import describe_base_model
from loracomp.registry import embeddings, encoder_change
from loracomp.registry.adapter_store import stage_adapter
from loracomp.registry.adapters import activate_adapter
from loracomp.registry.base_models import register_base_model
from loracomp.registry.embeddings import add_embeddings, embed_examples
from loracomp.registry.encoder_change import set_encoder
from loracomp.registry.tasks import add_rows, add_task
from model_fixtures import letter_tokenizer, tiny_llama
from registry_data import write_adapter
from worker_helpers import wait_until

NEXT = QUERIES["show_next_encoder"]


def row(number: int, **columns: Any) -> dict[str, Any]:
    return {
        "split": "train",
        "prompt": f"How many are {number} and {number}?",
        "label": str(2 * number),
        "content_hash": sha256(str(number).encode()).hexdigest(),
        **columns,
    }


@pytest.fixture
def facts(connection: Connection, database: str, minilm: Encoder) -> list[int]:
    """Ids of five examples, embedded by MiniLM."""
    set_encoder(database, minilm)
    add_task(connection, "facts")
    add_rows(connection, "facts", [row(number) for number in range(5)])
    embed_examples(connection, minilm)
    return [each["id"] for each in connection.execute("SELECT id FROM loracomp.example ORDER BY id")]


def begin(database: str, encoder: Encoder) -> None:
    """A change that has embedded nothing yet, as if its process had been killed at once."""
    assert encoder_change._begin(database, encoder) == "next"


def embedded(connection: Connection, table: str) -> list[int]:
    return [
        each["example_id"]
        for each in connection.execute(f"SELECT example_id FROM loracomp.{table} ORDER BY 1".encode())
    ]


def name_of_encoder(connection: Connection) -> str:
    (found,) = connection.execute("SELECT name FROM loracomp.show_encoder()")
    return str(found["name"])


def test_the_old_encoder_takes_imports_until_the_new_one_takes_over(
    connection: Connection, database: str, facts: list[int], minilm: Encoder, shorter: Encoder
) -> None:
    begin(database, shorter)
    encoder_change.embed_missing(connection, shorter)
    assert embedded(connection, "next_embedding") == facts
    add_rows(connection, "facts", [row(5), row(6)])
    assert embed_examples(connection, minilm) == 2
    (shown,) = connection.execute(NEXT)
    assert (shown["name"], shown["missing"]) == ("shorter", 2)
    connection.execute("SELECT loracomp.erase_example(%s)", [facts[0]])
    add_rows(connection, "facts", [row(1, prompt="Two ones are how many?")])
    for table in ("example_embedding", "next_embedding"):
        assert not {facts[0], facts[1]} & {*embedded(connection, table)}, "erased, and worded anew"

    assert set_encoder(database, shorter) == {}
    ids = [each["id"] for each in connection.execute("SELECT id FROM loracomp.example ORDER BY id")]
    assert embedded(connection, "example_embedding") == ids
    assert name_of_encoder(connection) == "shorter"
    (reworded,) = connection.execute(
        "SELECT embedding FROM loracomp.example_embedding WHERE example_id = %s", [facts[1]]
    )
    expected = shorter.encode([("Two ones are how many?", None)])[0]
    np.testing.assert_allclose(reworded["embedding"].to_numpy(), expected, atol=1e-3)
    assert connection.execute("SELECT to_regclass('loracomp.next_embedding') AS t").fetchone() == {"t": None}
    assert set_encoder(database, shorter) is None


def test_vectors_of_another_encoder_enter_no_table(
    connection: Connection, database: str, facts: list[int], minilm: Encoder, shorter: Encoder
) -> None:
    rows = [{"example_id": facts[0]}]
    vectors = shorter.encode([("Which?", None)])
    with pytest.raises(RefusedError, match="neither the database's encoder nor its next one"):
        add_embeddings(connection, rows, vectors, shorter)
    begin(database, shorter)
    assert add_embeddings(connection, rows, vectors, shorter) == 1
    assert connection.execute(QUERIES["cancel_encoder"]).fetchone() == {"given_up": "shorter"}
    with pytest.raises(RefusedError, match="given up by loracomp encoder cancel"):
        encoder_change.embed_missing(connection, shorter)
    assert connection.execute(QUERIES["cancel_encoder"]).fetchone() == {"given_up": None}
    assert embedded(connection, "example_embedding") == facts


def test_one_change_at_a_time(
    connection: Connection, database: str, facts: list[int], minilm: Encoder, shorter: Encoder
) -> None:
    begin(database, shorter)
    other = replace(shorter, name="other", fingerprint="6" * 64)
    with pytest.raises(RefusedError, match=r"being changed to encoder shorter .*loracomp encoder cancel"):
        set_encoder(database, other)
    assert set_encoder(database, minilm) is None, "the present one: the change is given up"
    assert connection.execute(NEXT).fetchall() == []
    assert name_of_encoder(connection) == minilm.name


def test_several_processes_share_the_work(
    connection: Connection, database: str, facts: list[int], shorter: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loracomp.registry.embeddings.EMBEDDED_TOGETHER", 8)
    add_rows(connection, "facts", [row(number) for number in range(5, 60)])
    texts: Counter[str] = Counter()

    class Counted:
        device = shorter.model.device

        def encode(self, batch: list[str], **settings: Any) -> Any:
            texts.update(batch)
            return shorter.model.encode(batch, **settings)

    with ThreadPoolExecutor(3) as pool:
        changes = list(pool.map(lambda _: set_encoder(database, replace(shorter, model=Counted())), range(3)))
    assert sum(change is not None for change in changes) == 1
    assert texts == dict.fromkeys((row(number)["prompt"] for number in range(60)), 1)
    assert len(embedded(connection, "example_embedding")) == 60


def test_what_would_be_left_out_is_asked_about_first(
    connection: Connection, database: str, facts: list[int], shorter: Encoder
) -> None:
    connection.execute("UPDATE loracomp.example SET prompt = NULL, source_ref = 'a' WHERE id = %s", [facts[0]])
    connection.execute(
        "INSERT INTO loracomp.example_embedding SELECT id, task_id, array_fill(1, '{832}')::vector"
        " FROM loracomp.example WHERE id = %s", [facts[0]],
    )  # fmt: skip

    def refuse(left_out: Any) -> None:
        assert left_out == {"facts": 1}
        raise LoracompError("no")

    with pytest.raises(LoracompError, match=r"^no$"):
        set_encoder(database, shorter, refuse)
    assert connection.execute(NEXT).fetchall() == []

    assert set_encoder(database, shorter) == {"facts": 1}
    assert embedded(connection, "example_embedding") == facts[1:]


def test_a_view_in_the_way_is_named_and_nothing_is_lost(
    connection: Connection, database: str, facts: list[int], shorter: Encoder
) -> None:
    connection.execute("CREATE VIEW public.mine AS SELECT example_id FROM loracomp.example_embedding")
    with pytest.raises(RefusedError, match=r"view public\.mine depends on table .*example_embedding"):
        set_encoder(database, shorter)
    assert name_of_encoder(connection) != "shorter"
    connection.execute("DROP VIEW public.mine")
    assert set_encoder(database, shorter) is not None


# --- the command, and workers


@pytest.fixture
def environment(database: str, tmp_path: Path) -> dict[str, str]:
    return {
        **os.environ,
        "LORACOMP_DATABASE_URL": database,
        "LORACOMP_HOME": str(tmp_path / "home"),
        "LORACOMP_POLL_S": "0.05",
        "LORACOMP_BATCH_SIZE": "4",
        "LORACOMP_DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
    }


@contextmanager
def command(environment: dict[str, str], *arguments: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [programs() / "loracomp", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


class Quick:
    """A model that makes up its vectors, and is killed with its process at the batch after so many."""

    def __init__(self, model: Any, width: int, batches: int = 9) -> None:
        self.device, self.width, self.batches = model.device, width, batches

    def encode(self, texts: list[str], **_: Any) -> Any:
        if not self.batches:
            os.kill(os.getpid(), signal.SIGKILL)
        self.batches -= 1
        vectors = np.random.default_rng(0).normal(size=(len(texts), self.width)).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_change_that_is_killed_goes_on_where_it_stopped(
    connection: Connection, database: str, facts: list[int], minilm: Encoder, shorter: Encoder, run: Callable[..., Any]
) -> None:
    add_rows(connection, "facts", [row(number) for number in range(5, 260)])
    embed_examples(connection, replace(minilm, model=Quick(minilm.model, 384)))
    if not (change := os.fork()):
        try:
            set_encoder(database, replace(shorter, model=Quick(shorter.model, 64, batches=2)))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(change, 0)[1]) == -signal.SIGKILL
    left = 260 - 2 * embeddings.EMBEDDED_TOGETHER
    assert run("encoder", "show")[1]["missing"] == left
    assert name_of_encoder(connection) == minilm.name
    assert len(embedded(connection, "example_embedding")) == 260

    rest = Quick(shorter.model, 64)
    assert set_encoder(database, replace(shorter, model=rest)) == {}
    assert rest.batches == 9 - 3, "of five"
    assert name_of_encoder(connection) == "shorter"
    assert len(embedded(connection, "example_embedding")) == 260


@pytest.fixture
def answering(connection: Connection, facts: list[int], tmp_path: Path) -> None:
    """A base model and an adapter that a worker process can load."""
    folder = str(tmp_path / "tiny")
    tiny_llama().save_pretrained(folder)
    letter_tokenizer().save_pretrained(folder)
    register_base_model(connection, describe_base_model(folder, cache_dir=tmp_path))
    write_adapter(tmp_path / "facts")
    activate_adapter(connection, stage_adapter(connection, tmp_path / "facts", task="facts").id)


def ask(connection: Connection) -> int:
    (job_id,) = add_jobs(connection, "Is it so?", choices=["yes", "no"])
    return job_id


def ended(connection: Connection) -> bool:
    return set(statuses(connection).values()) <= {"succeeded", "failed"}


def test_a_worker_answers_all_jobs_through_a_change(
    connection: Connection,
    database: str,
    answering: None,
    minilm: Encoder,
    shorter: Encoder,
    environment: dict[str, str],
) -> None:
    add_rows(connection, "facts", [row(number) for number in range(5, 100)])
    embed_examples(connection, minilm)
    with command(environment, "worker") as process, ThreadPoolExecutor(1) as pool:
        first = ask(connection)
        wait_until(lambda: statuses(connection)[first] == "succeeded", 120)
        changing = pool.submit(set_encoder, database, shorter)
        during = []
        with connect(database) as submitting:
            while not changing.done():
                during.append(ask(submitting))
                wait_until(lambda: statuses(connection)[during[-1]] != "queued")
        after = [ask(connection) for _ in range(20)]
        wait_until(lambda: ended(connection), 120)
        assert process.poll() is None
    assert changing.result() == {}
    rows = connection.execute(
        "SELECT j.id, j.status, j.attempts, j.error, p.encoder, cardinality(p.example_ids) > 0 AS routed"
        " FROM loracomp.job AS j LEFT JOIN loracomp.prediction AS p ON p.job_id = j.id"
    ).fetchall()
    assert [each for each in rows if (each["status"], each["attempts"]) != ("succeeded", 1)] == []
    assert all(each["routed"] for each in rows)
    encoders = {each["id"]: each["encoder"] for each in rows}
    assert encoders[first] == f"{minilm.name}/3"
    assert {encoders[job_id] for job_id in after} == {"shorter/3"}
    assert len(during) > 1 and encoders[during[0]] == f"{minilm.name}/3"


def test_a_worker_that_cannot_load_the_new_encoder_says_so_and_gives_its_jobs_back(
    connection: Connection, database: str, answering: None, shorter: Encoder, environment: dict[str, str]
) -> None:
    with command(environment, "worker") as process:
        first = ask(connection)
        wait_until(lambda: statuses(connection)[first] == "succeeded", 120)
        set_encoder(database, replace(shorter, source="/nowhere/shorter"))
        second = ask(connection)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 4
    assert "can't load the new one: model source '/nowhere/shorter'" in said.replace("\n", " ")
    (job,) = connection.execute("SELECT status, attempts FROM loracomp.job WHERE id = %s", [second])
    assert job == {"status": "queued", "attempts": 0}


def test_the_command_shows_asks_and_gives_up(
    connection: Connection, database: str, facts: list[int], shorter: Encoder, shorter_source: str, run: Any
) -> None:
    begin(database, shorter)
    present, upcoming = run("encoder", "show")
    assert (present["state"], upcoming["state"]) == ("present", "next: 5 examples to embed")
    assert run("encoder", "cancel") == {"given_up": "shorter"}
    assert run("encoder", "cancel") == {"given_up": None}
    connection.execute("UPDATE loracomp.example SET prompt = NULL, source_ref = 'a' WHERE id = %s", [facts[0]])
    connection.execute(
        "INSERT INTO loracomp.example_embedding SELECT id, task_id, array_fill(1, '{832}')::vector"
        " FROM loracomp.example WHERE id = %s", [facts[0]],
    )  # fmt: skip
    refused = CliRunner().invoke(cli.app, ["encoder", "set", shorter_source], input="n\n")
    assert refused.exit_code == 1
    assert "Change the encoder without them?" in refused.output
    assert "the change leaves them out: facts 1" in " ".join(refused.output.split())
    assert len(run("encoder", "show")) == 1
    (now,) = run("encoder", "set", shorter_source, "--yes")
    assert (now["name"], now["state"]) == ("shorter", "present")
    assert [(row["name"], row["embedded"]) for row in run("task", "list")] == [("facts", 4)]
