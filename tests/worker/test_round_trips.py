"""How often a worker waits for the database, counted in libpq's trace. With a distant database each wait costs time."""

import re
from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from psycopg.pq import Trace, TransactionStatus

from job_data import add_jobs, statuses
from job_fixtures import cleared_connection, database_of_a_module  # noqa: F401
from loracomp.config import Settings
from loracomp.database import connections as db
from loracomp.database.connections import Connection
from loracomp.engine.engine import Engine
from loracomp.registry.adapter_store import stage_adapter
from loracomp.registry.adapters import activate_adapter
from loracomp.registry.embeddings import embed_examples
from loracomp.registry.encoder_change import set_encoder
from loracomp.registry.examples import Example
from loracomp.registry.measurements import measure_task
from loracomp.registry.tasks import import_examples
from loracomp.worker import link
from loracomp.worker.worker import Worker
from model_fixtures import as_base
from registry_data import registered, write_adapter

BATCHES, BATCH = 6, 16
CHOICES = ("yes", "no")
ASKED_IDLE = {"claim_jobs", "queue_is_empty", "retry_waits", "rows_run", "rows_wait"}
A_TYPE = "a type"
"""A connection learns each once."""


@pytest.fixture
def engine(connection: Connection, database: str, tiny_model, tokenizer, minilm, tmp_path: Path) -> Engine:
    """An engine and a library of two tasks: tea has an adapter and an example, new has only examples to measure."""
    connection.execute("DELETE FROM loracomp.base_model")
    registered(connection, "tea", "new")
    set_encoder(database, minilm)
    write_adapter(tmp_path / "tea")
    activate_adapter(connection, stage_adapter(connection, tmp_path / "tea", task="tea").id)
    import_examples(connection, "tea", [example("tea", 0)])
    import_examples(connection, "new", [example("new", number) for number in range(BATCHES * BATCH)])
    embed_examples(connection, minilm)
    connection.execute("UPDATE loracomp.policy SET min_similarity = -1")
    return Engine("tiny", as_base(tiny_model, tokenizer), minilm)


def example(task: str, number: int) -> Example:
    ref = f"{task}/train#{number}"
    return Example("train", ref, CHOICES, "yes", sha256(ref.encode()).digest(), ref)


@pytest.fixture
def traces(monkeypatch, tmp_path: Path) -> Iterator[Path]:
    """A folder with a file for each connection of a worker, which has all messages to and from the server."""
    folder = tmp_path / "traces"
    folder.mkdir()
    files = []

    def connect(url: str, *, application_name: str, **settings: Any) -> Connection:
        connection = db.connect(url, application_name=application_name, **settings)
        files.append((folder / application_name.split()[1]).open("ab"))
        connection.pgconn.trace(files[-1].fileno())
        connection.pgconn.set_trace_flags(Trace.SUPPRESS_TIMESTAMPS)
        return connection

    monkeypatch.setattr(link, "connect", connect)
    yield folder
    for file in files:
        file.close()


def drain(database: str, engine: Engine) -> None:
    settings = Settings(poll_s=0.05, batch_size=BATCH, worker="near")
    Worker(database, engine, base_model="tiny", settings=settings, drain=True).run()


def test_a_batch_costs_three_round_trips(connection: Connection, database: str, engine: Engine, traces: Path):
    """Statements that are sent once for each connection, or each adapter, don't become more with more batches."""
    add_jobs(connection, *(f"job {number}" for number in range(BATCHES * BATCH)), choices=[*CHOICES])
    drain(database, engine)
    assert set(statuses(connection).values()) == {"succeeded"}
    (row,) = connection.execute("SELECT count(*) FROM loracomp.prediction WHERE adapter_ids <> '{}'")
    assert row["count"] == BATCHES * BATCH, "adapters were composed"
    assert asked(traces / "worker") == {"route_jobs": BATCHES, "read_adapters": 1, A_TYPE: 1}
    assert asked(traces / "recorder") == {"record_predictions": BATCHES, A_TYPE: 2}


def test_a_batch_of_measurements_costs_four(connection: Connection, database: str, engine: Engine, traces: Path):
    assert measure_task(connection, "new")["added"] == BATCHES * BATCH
    drain(database, engine)
    assert set(statuses(connection).values()) == {"succeeded"}
    assert asked(traces / "worker") == {"plan_measurements": BATCHES, "read_adapters": 1}
    each = dict.fromkeys(("record_measurements", "labelled_scores", "record_evidence"), BATCHES)
    assert asked(traces / "recorder") == {**each, A_TYPE: 1}


def test_no_transaction_is_left_open_between_two_messages(
    connection: Connection, database: str, engine: Engine, monkeypatch: pytest.MonkeyPatch
):
    """If a worker's machine freezes after it got a reply, the server keeps no locks for it."""
    connection.execute("CREATE TABLE notes (id integer PRIMARY KEY, body text)")
    connection.execute("INSERT INTO notes SELECT i, 'note ' || i FROM generate_series(1, 5) AS i")
    connection.execute("SELECT loracomp.create_answers('said', 'notes', '{body}', choices => '{yes,no}')")
    measure_task(connection, "new")
    connection.execute("SELECT loracomp.add_example('tea', 'Is it hot?', 'yes', '{yes,no}')")
    left_open = set()
    wait = db._Impatient.wait

    def watched(session: Any, *arguments: Any, **given: Any) -> Any:
        result = wait(session, *arguments, **given)
        if session.pgconn.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.INERROR):
            left_open.add(session.info.parameter_status("application_name"))
        return result

    monkeypatch.setattr(db._Impatient, "wait", watched)
    drain(database, engine)
    monkeypatch.undo()
    assert left_open == set()
    assert set(statuses(connection).values()) == {"succeeded"}
    (row,) = connection.execute("SELECT loracomp.has_unembedded() AS has")
    assert not row["has"]


def asked(trace: Path) -> dict[str, int]:
    """Return how often a connection called each function, and how often it waited for anything else.

    Each claim that found jobs was routed or planned. The other claims, whether the worker may leave, and whether there
    are examples to embed, are asked when the queue is empty, and are left out.
    """
    text = trace.read_text()
    calls = Counter(re.findall(r"\t(?:Parse\t \"\"|Query\t) \"[^\"]*?loracomp\.(\w+)\(", text))
    calls[A_TYPE] = len(re.findall(r"\tReadyForQuery\t", text)) - calls.total()
    return {name: times for name, times in calls.items() if times and name not in ASKED_IDLE}
