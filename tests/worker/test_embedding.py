"""Workers embed examples that lack an embedding, such as one that SQL alone added."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from psycopg.conninfo import make_conninfo

from job_data import add_jobs, job
from job_fixtures import cleared_connection, database_of_a_module, gate_of_a_test  # noqa: F401
from loracomp.config import Settings
from loracomp.database import connections as db
from loracomp.database.connections import Connection, rows_within
from loracomp.database.queries import QUERIES
from loracomp.engine.engine import Engine
from loracomp.errors import RefusedError
from loracomp.model.encoder import Encoder
from loracomp.registry.embeddings import embed_examples, embed_some, encoder_key
from loracomp.registry.encoder_change import set_encoder
from loracomp.worker.worker import Worker
from model_fixtures import as_base
from queue_worker import Obedient
from worker_helpers import wait_until, working


class Embedding(Obedient):
    """An engine like Obedient that also embeds, with a real encoder."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def embed(self, connection: Connection) -> int:
        return embed_some(partial(rows_within, connection, 5), self.encoder, most=16).added


def add_example(connection: Connection, prompt: str, split: str = "train") -> None:
    connection.execute("SELECT loracomp.add_example('tea', %s, 'yes', '{yes,no}', %s)", [prompt, split])


def wait_for_looks(worker: Worker, times: int) -> None:
    """Wait until the worker has asked for jobs this many more times."""
    for _ in range(times):
        before = worker._claimer.looked_at
        wait_until(lambda before=before: worker._claimer.looked_at != before)


def embedded(connection: Connection) -> list[str]:
    statement = "SELECT e.prompt FROM loracomp.example_embedding AS v JOIN loracomp.example AS e ON e.id = v.example_id"
    return [row["prompt"] for row in connection.execute(f"{statement} ORDER BY e.id".encode())]


@pytest.fixture(autouse=True)
def tea(connection: Connection, database: str, minilm: Encoder) -> None:
    set_encoder(database, minilm)
    connection.execute("SELECT loracomp.add_task('tea')")


def test_a_worker_embeds_what_sql_added_before_it_leaves(
    connection: Connection, database: str, tiny_model, tokenizer, minilm: Encoder
) -> None:
    """In batches of 16, with the rights of its role alone."""
    if connection.execute("SELECT oid FROM pg_roles WHERE rolname = 'job_worker'").fetchone() is None:
        connection.execute("CREATE ROLE job_worker LOGIN IN ROLE loracomp_worker")
    prompts = [f"Is tea number {number} hot?" for number in range(20)]
    for prompt in prompts:
        add_example(connection, prompt)
    add_example(connection, "Is this one held out?", "validation")
    engine = Engine("tiny", as_base(tiny_model, tokenizer), minilm)
    url = make_conninfo(database, user="job_worker")
    Worker(url, engine, base_model="tiny", settings=Settings(poll_s=0.05), drain=True).run()
    assert embedded(connection) == prompts
    (stored, *_) = connection.execute("SELECT embedding FROM loracomp.example_embedding ORDER BY example_id")
    (expected,) = minilm.encode([(prompts[0], ["yes", "no"])])
    np.testing.assert_allclose(stored["embedding"].to_numpy(), expected, atol=1e-3)


def test_a_busy_worker_embeds_too(
    connection: Connection, database: str, minilm: Encoder, monkeypatch: pytest.MonkeyPatch, gate: Path
) -> None:
    monkeypatch.setattr("loracomp.worker.embedder.BUSY_S", 0.1)
    (slow,) = add_jobs(connection, f"until {gate}")
    with working(database, Embedding(minilm)):
        wait_until(lambda: job(connection, slow)["status"] == "running")
        add_example(connection, "Is tea hot?")
        wait_until(lambda: embedded(connection) == ["Is tea hot?"])
        assert job(connection, slow)["status"] == "running"
        gate.touch()


def test_a_worker_whose_encoder_is_no_longer_the_databases_goes_on(
    connection: Connection, database: str, minilm: Encoder, caplog: pytest.LogCaptureFixture
) -> None:
    connection.execute("UPDATE loracomp.encoder SET identity = repeat('b', 64)")
    add_example(connection, "Is tea hot?")
    with working(database, Embedding(minilm)):
        wait_until(lambda: "step_failed" in caplog.text)
        (asked,) = add_jobs(connection, "a")
        wait_until(lambda: job(connection, asked)["status"] == "succeeded")
    assert embedded(connection) == []


class Picky:
    """An encoder that fails on texts with a forbidden word, and has no finite vector for others."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def encode(self, texts: Sequence[tuple[str, Sequence[str] | None]]) -> Any:
        if any("forbidden" in text for text, _ in texts):
            raise ValueError("a forbidden word")
        vectors = self._encoder.encode(texts)
        vectors[["infinite" in text for text, _ in texts]] = np.inf
        return vectors


def test_an_example_that_the_encoder_cannot_embed_holds_up_no_other(
    connection: Connection, database: str, tiny_model, tokenizer, minilm: Encoder, caplog: pytest.LogCaptureFixture
) -> None:
    """Not even if there are more of them than a worker embeds at a time."""
    for number in range(20):
        add_example(connection, f"a forbidden word {number}")
    add_example(connection, "an infinite one")
    add_example(connection, "Is tea hot?")
    picky = Picky(minilm)
    with working(database, Engine("tiny", as_base(tiny_model, tokenizer), picky)):
        wait_until(lambda: embedded(connection) == ["Is tea hot?"])
    assert "not_embedded" in caplog.text and "a forbidden word" in caplog.text
    with pytest.raises(RefusedError, match=r"20 others have no embedding, because the encoder fails: a forbidden word"):
        embed_examples(connection, picky)


class Meanwhile:
    """An encoder during whose work something happens."""

    def __init__(self, encoder: Encoder, happens: Callable[[], object]) -> None:
        self._encoder = encoder
        self._happens = happens

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def encode(self, texts: Sequence[tuple[str, Sequence[str] | None]]) -> Any:
        self._happens()
        return self._encoder.encode(texts)


def test_an_example_that_is_changed_or_locked_meanwhile_gets_no_embedding_of_its_old_text(
    connection: Connection, database: str, minilm: Encoder
) -> None:
    for prompt in ("Is this kept?", "Is this changed?", "Is this locked?"):
        add_example(connection, prompt)
    embed = partial(embed_some, partial(rows_within, connection, 5), most=16)
    with db.connect(database) as other, other.transaction():

        def change() -> None:
            change = "UPDATE loracomp.example SET prompt = 'now ' || prompt WHERE prompt = %s"
            connection.execute(change, ["Is this changed?"])
            other.execute(change, ["Is this locked?"])

        assert embed(Meanwhile(minilm, change)).added == 1
        assert embedded(connection) == ["Is this kept?"]
        assert embed(minilm).added == 1
    assert embed(minilm).added == 1
    assert embedded(connection) == ["Is this kept?", "now Is this changed?", "now Is this locked?"]


def test_examples_that_somebody_keeps_locked_are_not_drawn_and_hold_up_no_other(
    connection: Connection, database: str, minilm: Encoder
) -> None:
    """The examples of corrections are locked in this way if somebody drops their declaration in a transaction left
    open. Drawing itself keeps no locks."""
    for number in range(100):  # more than the 5 * 16 from which the embedding below draws
        add_example(connection, f"Is this locked, {number}?")
    add_example(connection, "Is this free?")
    embed = partial(embed_some, partial(rows_within, connection, 5), minilm, most=5)
    with db.connect(database) as other, other.transaction(force_rollback=True):
        other.execute("DELETE FROM loracomp.example WHERE prompt <> 'Is this free?'")
        assert embed().added == 1
        assert not embed().taken
    with db.connect(database) as drawing, drawing.transaction():
        values = {**encoder_key(minilm), "task": None, "after": 0, "max_examples": 5}
        drawn = drawing.execute(QUERIES["draw_unembedded"], values).fetchall()
        assert len(drawn) == 5
        connection.execute("SELECT FROM loracomp.example FOR UPDATE NOWAIT")


class OutOfMemory(Obedient):
    """An engine that has no memory for the encoder."""

    def embed(self, connection: Connection) -> int:
        raise RuntimeError("out of memory")


def test_an_encoder_that_fails_ends_no_worker_and_is_not_tried_all_the_time(
    connection: Connection, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    with working(database, OutOfMemory()) as worker:
        wait_until(lambda: "step_failed" in caplog.text)
        wait_for_looks(worker, 3)
        (asked,) = add_jobs(connection, "a")
        wait_until(lambda: job(connection, asked)["status"] == "succeeded")
    assert caplog.text.count("step_failed") == 1
