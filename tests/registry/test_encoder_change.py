"""Changing the encoder: jobs wait while all examples are embedded again, also if the change is killed, and with several
processes."""

import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from typer.testing import CliRunner

from forked import programs
from job_data import add_jobs, statuses
from loracomp import cli
from loracomp.database.connections import Connection, rows_within
from loracomp.database.routing import route
from loracomp.errors import LoracompError, RefusedError, SchemaMismatchError
from loracomp.model.encoder import Encoder, load_encoder
from loracomp.model.loading import describe_base_model
from loracomp.model.sources import resolve_source
from loracomp.records import Job
from loracomp.registry import embeddings, encoder_change
from loracomp.registry.adapter_store import stage_adapter
from loracomp.registry.adapters import activate_adapter
from loracomp.registry.base_models import register_base_model
from loracomp.registry.embeddings import embed_examples, embed_missing, embed_some
from loracomp.registry.encoder_change import set_encoder
from loracomp.registry.tasks import add_rows, add_task
from model_fixtures import letter_tokenizer, tiny_llama
from registry_data import MINILM, write_adapter
from worker_helpers import wait_until


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


def embedded(connection: Connection) -> list[int]:
    rows = connection.execute("SELECT example_id FROM loracomp.example_embedding ORDER BY example_id")
    return [each["example_id"] for each in rows]


def present(connection: Connection) -> tuple[str, bool]:
    (found,) = connection.execute("SELECT name, is_ready FROM loracomp.show_encoder()")
    return found["name"], found["is_ready"]


@pytest.mark.parametrize(
    ("file", "was", "becomes"),
    [
        ("sentence_bert_config.json", '"max_seq_length": 256', '"max_seq_length": 64'),
        ("1_Pooling/config.json", '"pooling_mode_cls_token": false', '"pooling_mode_cls_token": true'),
    ],
)
def test_the_same_weights_with_other_settings_are_another_encoder(
    connection: Connection,
    database: str,
    facts: list[int],
    minilm: Encoder,
    tmp_path: Path,
    file: str,
    was: str,
    becomes: str,
) -> None:
    folder = shutil.copytree(resolve_source(MINILM).path, tmp_path / "other")
    text = (folder / file).read_text()
    assert was in text
    (folder / file).write_text(text.replace(was, becomes))
    other = load_encoder(str(folder))
    assert other.fingerprint == minilm.fingerprint
    with pytest.raises(RefusedError, match="has other settings or another tokenizer here"):
        embed_examples(connection, other)
    assert set_encoder(database, other) == {}
    assert embedded(connection) == facts
    assert set_encoder(database, other) is None
    with pytest.raises(SchemaMismatchError, match="not the database's encoder"):
        embed_missing(connection, minilm)
    with pytest.raises(RefusedError, match="has other settings"):
        embed_examples(connection, minilm)
    with pytest.raises(SchemaMismatchError, match="start the worker again"):
        job = Job(id=1, lease_token=1, kind="predict", prompt="a", choices=None, max_new_tokens=None)
        route(connection, [job], minilm.encode([("a", None)]), minilm.identity, minilm.input_version)


INDEXES = "SELECT indexname AS name FROM pg_indexes WHERE schemaname = 'loracomp' AND indexdef LIKE '%hnsw%'"


def test_another_encoder_embeds_all_examples_again(
    connection: Connection, database: str, facts: list[int], minilm: Encoder, shorter: Encoder
) -> None:
    assert set_encoder(database, minilm) is None
    assert embedded(connection) == facts
    assert set_encoder(database, shorter) == {}
    assert (embedded(connection), present(connection)) == (facts, ("shorter", True))
    (stored, *_) = connection.execute("SELECT embedding FROM loracomp.example_embedding ORDER BY example_id")
    np.testing.assert_allclose(
        stored["embedding"].to_numpy(), shorter.encode([("How many are 0 and 0?", None)])[0], atol=1e-3
    )
    assert connection.execute(INDEXES).fetchall() == [{"name": "example_embedding_hnsw"}]
    assert set_encoder(database, shorter) is None
    assert set_encoder(database, replace(shorter, name="renamed", source="elsewhere")) is None
    assert present(connection) == ("renamed", True)


def test_vectors_of_another_encoder_are_not_stored(
    connection: Connection, database: str, facts: list[int], minilm: Encoder, shorter: Encoder
) -> None:
    add_rows(connection, "facts", [row(5)])
    with pytest.raises(SchemaMismatchError, match="not the database's encoder"):
        embed_missing(connection, shorter)
    encoder_change._stop_routing(database, shorter)
    with pytest.raises(SchemaMismatchError, match="not the database's encoder"):
        embed_missing(connection, minilm)
    assert embedded(connection) == []


def test_the_way_back_before_all_is_embedded_embeds_again_too(
    connection: Connection, database: str, facts: list[int], minilm: Encoder, shorter: Encoder
) -> None:
    encoder_change._stop_routing(database, shorter)
    embed_some(partial(rows_within, connection, 5), shorter, most=2)
    with pytest.raises(psycopg.OperationalError, match="not the database's encoder"):
        encoder_change._start_routing(connection, minilm)
    assert set_encoder(database, minilm) == {}
    assert (embedded(connection), present(connection)) == (facts, (minilm.name, True))


@pytest.mark.usefixtures("facts")
def test_several_processes_share_the_work(
    connection: Connection, database: str, shorter: Encoder, monkeypatch: pytest.MonkeyPatch
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
    assert changes.count({}) >= 1
    assert texts.keys() == {row(number)["prompt"] for number in range(60)}
    assert texts.total() < 2 * 60, "they seldom embed the same examples"
    assert len(embedded(connection)) == 60


def test_what_would_be_left_out_is_asked_about_first(
    connection: Connection, database: str, facts: list[int], shorter: Encoder
) -> None:
    connection.execute("UPDATE loracomp.example SET prompt = NULL, source_ref = 'a' WHERE id = %s", [facts[0]])

    def refuse(left_out: Any) -> None:
        assert left_out == {"facts": 1}
        raise LoracompError("no")

    before = present(connection), embedded(connection)
    with pytest.raises(LoracompError, match=r"^no$"):
        set_encoder(database, shorter, refuse)
    assert (present(connection), embedded(connection)) == before
    assert set_encoder(database, shorter) == {"facts": 1}
    assert embedded(connection) == facts[1:]


def test_a_view_in_the_way_is_named_and_nothing_is_lost(
    connection: Connection, database: str, facts: list[int], minilm: Encoder, shorter: Encoder
) -> None:
    connection.execute("CREATE VIEW public.mine AS SELECT embedding FROM loracomp.example_embedding")
    with pytest.raises(RefusedError, match=r"view (public\.)?mine depends on"):
        set_encoder(database, shorter)
    assert (embedded(connection), present(connection)) == (facts, (minilm.name, True))
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
    """A model with made-up vectors that counts its texts and kills its process after this number of batches."""

    def __init__(self, model: Any, width: int, batches: int = 9) -> None:
        self.device, self.width, self.batches, self.texts = model.device, width, batches, 0

    def encode(self, texts: list[str], **_: Any) -> Any:
        if not self.batches:
            os.kill(os.getpid(), signal.SIGKILL)
        self.batches -= 1
        self.texts += len(texts)
        vectors = np.random.default_rng(0).normal(size=(len(texts), self.width)).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.usefixtures("facts")
def test_a_change_that_is_killed_goes_on_where_it_stopped(
    connection: Connection, database: str, minilm: Encoder, shorter: Encoder, run: Callable[..., Any]
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
    assert run("encoder", "show")[0]["state"] == f"jobs wait: {left} examples to embed"

    rest = Quick(shorter.model, 64)
    assert set_encoder(database, replace(shorter, model=rest)) == {}
    assert left <= rest.texts < 260, "only what was left, and the choices of each batch"
    assert (len(embedded(connection)), present(connection)) == (260, ("shorter", True))


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


def test_jobs_wait_for_the_new_encoder_and_workers_end_by_themselves(
    connection: Connection,
    database: str,
    answering: None,
    minilm: Encoder,
    shorter: Encoder,
    shorter_source: str,
    environment: dict[str, str],
) -> None:
    with command(environment, "worker") as process:
        first = ask(connection)
        wait_until(lambda: statuses(connection)[first] == "succeeded", 120)
        encoder_change._stop_routing(database, replace(shorter, source=shorter_source))
        waiting = [ask(connection) for _ in range(3)]
        time.sleep(1)
        assert {statuses(connection)[job_id] for job_id in waiting} == {"queued"}
        set_encoder(database, replace(shorter, source=shorter_source))
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 4
    assert "the database's encoder is no longer the one" in said.replace("\n", " ")
    assert {statuses(connection)[job_id] for job_id in waiting} == {"queued"}
    with command(environment, "worker", "--drain") as process:
        assert process.wait(120) == 0
    rows = connection.execute(
        "SELECT j.id, j.status, j.attempts, p.encoder, cardinality(p.example_ids) AS retrieved"
        " FROM loracomp.job AS j LEFT JOIN loracomp.prediction AS p ON p.job_id = j.id ORDER BY j.id"
    ).fetchall()
    assert rows == [
        {"id": job_id, "status": "succeeded", "attempts": 1, "encoder": f"{name}/3", "retrieved": 5}
        for job_id, name in [(first, minilm.name), *((job_id, "shorter") for job_id in waiting)]
    ]


def test_the_command_shows_and_asks(
    connection: Connection, database: str, facts: list[int], minilm: Encoder, shorter_source: str, run: Any
) -> None:
    connection.execute("UPDATE loracomp.example SET prompt = NULL, source_ref = 'a' WHERE id = %s", [facts[0]])
    refused = CliRunner().invoke(cli.app, ["encoder", "set", shorter_source], input="n\n")
    assert refused.exit_code == 1
    assert "Change the encoder without them?" in refused.output
    assert "jobs will not retrieve them: facts 1" in " ".join(refused.output.split())
    (before,) = run("encoder", "show")
    assert (before["name"], before["state"]) == (minilm.name, "ready")
    (now,) = run("encoder", "set", shorter_source, "--yes")
    assert (now["name"], now["state"]) == ("shorter", "ready")
    assert [(row["name"], row["embedded"]) for row in run("task", "list")] == [("facts", 4)]
