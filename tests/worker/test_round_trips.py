"""How often a worker waits for the database, as libpq's own trace tells: what a distant database costs a batch."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from psycopg.pq import Trace

from job_data import add_jobs, statuses
from job_fixtures import cleared_connection, database_of_a_module  # noqa: F401
from loracomp.config import Settings
from loracomp.database import connections as db
from loracomp.database.connections import Connection
from loracomp.pipeline import Pipeline
from loracomp.registry.adapters import activate_adapter, stage_adapter
from loracomp.registry.base_models import set_encoder
from loracomp.worker import link
from loracomp.worker.loop import Worker
from model_fixtures import as_base
from registry_data import registered, write_adapter
from routing_data import ADD_EXAMPLES

BATCHES, BATCH = 6, 16
TRACE_TYPE = 3
"""Round trips in which a connection learns the type of traces, once: BEGIN, SELECT, COMMIT."""


@pytest.fixture
def pipeline(connection: Connection, database: str, tiny_model, tokenizer, minilm, tmp_path: Path) -> Pipeline:
    """A library of one task, with an adapter and an example."""
    connection.execute("DELETE FROM loracomp.base_model")
    registered(connection, "tea")
    set_encoder(database, minilm)
    write_adapter(tmp_path / "tea")
    activate_adapter(connection, stage_adapter(connection, tmp_path / "tea", task="tea").id)
    (task,) = connection.execute("SELECT id FROM loracomp.task")
    (example,) = connection.execute(ADD_EXAMPLES, {"task_id": task["id"], "count": 1})
    vector = np.eye(832, dtype=np.float32)[0]
    connection.execute(
        "INSERT INTO loracomp.example_embedding (example_id, task_id, embedding) VALUES (%s, %s, %s)",
        [example["id"], task["id"], vector],
    )
    connection.execute("UPDATE loracomp.policy SET min_similarity = -1")
    return Pipeline("tiny", as_base(tiny_model, tokenizer), minilm)


@pytest.fixture
def traces(monkeypatch, tmp_path: Path) -> Iterator[Path]:
    """A folder with a file for each connection of a worker: all messages to and from the server."""
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


def test_a_batch_costs_three_round_trips(connection: Connection, database: str, pipeline: Pipeline, traces: Path):
    """What is asked once for a connection, or for an adapter, does not grow with the batches."""
    add_jobs(connection, *(f"job {number}" for number in range(BATCHES * BATCH)), choices=["yes", "no"])
    settings = Settings(poll_s=0.05, batch_size=BATCH, worker="near")
    Worker(database, pipeline, base_model="tiny", settings=settings, drain=True).run()
    assert set(statuses(connection).values()) == {"succeeded"}
    (row,) = connection.execute("SELECT count(*) FROM loracomp.prediction WHERE adapter_ids <> '{}'")
    assert row["count"] == BATCHES * BATCH, "adapters were composed"

    claiming, recording = traces / "worker", traces / "recorder"
    asked = calls(claiming)
    # Each claim that found jobs was routed. The others, and whether the worker may leave, come when the queue is empty.
    idle = {"claim_jobs", "queue_is_empty"}
    assert {name: asked[name] for name in asked.keys() - idle} == {"route_jobs": BATCHES, "read_adapters": 1}
    assert calls(recording) == {"record_predictions": BATCHES}
    for trace in (claiming, recording):
        assert round_trips(trace) == calls(trace).total() + TRACE_TYPE, "nothing but these calls"


def calls(trace: Path) -> Counter[str]:
    """The functions that the statements call."""
    return Counter(re.findall(r"\tParse\t \"\" \"[^\"]*?loracomp\.(\w+)\(", trace.read_text()))


def round_trips(trace: Path) -> int:
    """How often the server said that it is ready for the next statement."""
    return len(re.findall(r"\tReadyForQuery\t", trace.read_text()))
