"""Fills a database with many active adapters, each for a task of its own and with a file in the shipped base model's
shape."""

import hashlib
from dataclasses import dataclass

import numpy as np
from psycopg.types.json import Jsonb
from safetensors.torch import load_file, save

from benchmarks.databases import batches
from benchmarks.many_examples.made_up import READERS, fill
from benchmarks.queue.systems.loracomp import TIMINGS
from benchmarks.routing import MEASUREMENTS
from loracomp.database import connections as db
from loracomp.database.routing import route
from loracomp.engine.inflight import InFlight
from loracomp.records import Prediction, Versions
from loracomp.registry.adapter_files import WEIGHTS
from loracomp.registry.library_files import packaged
from loracomp.worker.leases import claim_jobs
from loracomp.worker.recorder import record_predictions
from routing_data import BASE_MODEL, Vectors, add_adapter

A_TASK = 10
"""Number of examples of a task."""
ANSWERED = 1000
"""Number of answered jobs, so that reports have something to count. It is the same for every number of adapters."""
MEASURED = 4
"""Number of adapters under which each example is measured: the adapters of its own task and of the next tasks."""
BATCH = 16
STAGED = "t1@2"
"""An adapter that is not active."""
VERSIONS = Versions("cpu/float32", BASE_MODEL, "0" * 64, "made up/1", "0")

GIVE_FILES = """
UPDATE loracomp.adapter SET
    rank = 1, alpha = 2, scaling = 2, byte_count = octet_length(%(file)b), sha256 = %(sha256)s, config = %(config)s,
    training = '{"tasks_seen": []}'
"""
ADD_PARTS = "INSERT INTO loracomp.adapter_part (adapter_id, part, bytes) SELECT a.id, 0, %b FROM loracomp.adapter AS a"
GIVE_TEXTS = "UPDATE loracomp.example SET prompt = source_ref, choices = '{yes,no}', label = 'yes'"
ADD_JOBS = """
INSERT INTO loracomp.job (prompt, choices, task, expected, submitted_by)
SELECT 'x', '{yes,no}', 't' || n %% %(tasks)s, CASE WHEN n %% 2 = 0 THEN 'yes' END, %(submitter)s
FROM generate_series(1, %(jobs)s) AS n
"""


@dataclass(frozen=True)
class Filled:
    adapters: int
    queries: Vectors
    """Vectors of BATCH jobs, each near another task."""


def fill_adapters(connection: db.Connection, adapters: int) -> Filled:
    """Add tasks t0, t1, ..., each with an active adapter, examples and measurements; and add answered jobs."""
    library = fill(connection, adapters, adapters * A_TASK, ANSWERED + BATCH, of_each=1)
    connection.execute("SELECT loracomp.build_embedding_index()")
    connection.execute("SELECT loracomp.tune_routing()")
    connection.execute(GIVE_TEXTS)
    give_files(connection)
    tasks = np.unique(library.task_ids)
    others = np.stack([np.roll(tasks, -place) for place in range(MEASURED)], axis=1)
    connection.execute(MEASUREMENTS, [np.repeat(tasks, MEASURED).tolist(), others.ravel().tolist()])
    for role, _ in READERS.values():
        connection.execute(f"GRANT loracomp_submitter TO {role}")
    connection.execute("VACUUM ANALYZE")
    answer_jobs(connection, adapters, library.queries[BATCH:])
    connection.execute("SELECT loracomp.refresh_reports()")
    connection.execute("VACUUM ANALYZE")
    return Filled(adapters, library.queries[:BATCH])


def give_files(connection: db.Connection) -> None:
    """Give each adapter the same file of rank 1, and stage a second version for t1."""
    add_adapter(connection, "t1", version=2, status="staged")
    file = rank_one()
    given = {"file": file, "sha256": hashlib.sha256(file).hexdigest(), "config": Jsonb({"lora_alpha": 2})}
    connection.execute(GIVE_FILES, given)
    connection.execute(ADD_PARTS, [file])


def rank_one() -> bytes:
    """Return the first rank of an adapter of the shipped library, as a safetensors file."""
    factors = load_file(next(packaged().glob(f"adapters/*/{WEIGHTS}")))
    return bytes(
        save({name: (each[:1] if ".lora_A." in name else each[:, :1]).clone() for name, each in factors.items()})
    )


def answer_jobs(connection: db.Connection, adapters: int, queries: Vectors) -> None:
    """Insert a job for each query, claim, route and record it. For half of the jobs the right answer is known."""
    submitter, _ = READERS["all"]
    connection.execute(ADD_JOBS, {"tasks": adapters, "submitter": submitter, "jobs": len(queries)})
    prediction = Prediction("yes", choice_index=1, choice_scores=(-1.0, -2.0), prompt_tokens=10, output_tokens=1)
    for batch in batches(queries, 50):
        jobs = claim_jobs(connection, worker="benchmark", base_model=BASE_MODEL, batch_size=len(batch), lease_s=300)
        routed = route(connection, jobs, batch, encoder=None, input_version=None)
        flights = [
            InFlight(
                job, decision=each, result=prediction, batch_size=len(jobs), timings={**TIMINGS}, versions=VERSIONS
            )
            for job, each in zip(jobs, routed, strict=True)
        ]
        assert len(record_predictions(connection, flights)) == len(batch)
