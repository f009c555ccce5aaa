"""Measures how fast new examples join an index that is in use, and what routing costs meanwhile."""

from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.databases import timed
from benchmarks.routing import add_jobs, route_jobs
from loracomp.database import connections as db
from loracomp.registry.embeddings import EMBEDDED_TOGETHER, add_embeddings
from routing_data import ADD_EXAMPLES, add_task

from .made_up import Library, Vectors, made_up

NEW = 1024
"""Number of examples of each of the two tasks that are added."""


def ingest(connection: db.Connection, url: str, library: Library, batch: int) -> dict[str, float]:
    """Measure the rows per second that join the index when an import adds them, alone and while a session routes
    batches of jobs."""
    alone = joined(connection, "joins alone", 1)
    with ThreadPoolExecutor(1) as pool, db.connect(url) as other:
        joining = pool.submit(joined, other, "joins while jobs are routed", 2)
        spent = []
        while not joining.done():
            spent.append(timed(lambda: route(connection, library.queries[:batch])) / batch)
        beside = joining.result()
    meanwhile = round(float(np.median(spent)), 2)
    return {"joined_per_s": alone, "joined_meanwhile_per_s": beside, "routed_meanwhile_ms": meanwhile}


def joined(connection: db.Connection, task: str, seed: int) -> float:
    """Add a task's examples in batches, as an import does; returns the rows per second."""
    vectors = next(made_up(np.random.default_rng(seed), 1, NEW))
    given = {"task_id": add_task(connection, task), "count": NEW}
    rows = [{"example_id": row["id"]} for row in connection.execute(ADD_EXAMPLES, given)]
    started = perf_counter()
    for at in range(0, NEW, EMBEDDED_TOGETHER):
        add_embeddings(connection, rows[at : at + EMBEDDED_TOGETHER], vectors[at : at + EMBEDDED_TOGETHER])
    return round(NEW / (perf_counter() - started))


def route(connection: db.Connection, vectors: Vectors) -> list[dict[str, Any]]:
    """Route one new job for each vector; returns the decisions."""
    return route_jobs(connection, add_jobs(connection, len(vectors)), vectors)
