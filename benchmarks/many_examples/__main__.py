"""Measures what routing costs and what it finds, by the number of examples: python -m benchmarks.many_examples
[--help].

Examples are generated from the shipped library's embeddings, in tasks of their own, in a database that is dropped at
the end. The database is on the server that LORACOMP_DATABASE_URL names (as superuser), or else on an embedded one. Jobs
of three logins, who may use 1 %, 10 % and all of the tasks, are routed in batches; pgvector and ChromaDB search the
same vectors. It writes docs/performance/many_examples.json and keeps the figures there for other sizes; `make figures`
shows them in docs/scaling.md.
"""

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from rich.console import Console

from benchmarks.databases import timed
from benchmarks.pages import as_markdown
from benchmarks.routing import add_jobs, database, route_jobs
from loracomp.database import connections as db
from loracomp.registry.embeddings import index_embeddings
from routing_reference import Floats, Settings, Weighted, weigh

from .ingest import ingest
from .made_up import READERS, Library, Vectors, drop_readers, fill, stored
from .others import SYSTEMS, K, Search
from .report import by_size

CHUNK = 50_000
OUT = Path(__file__).parents[2] / "docs" / "performance" / "many_examples.json"
SERVER = """
SELECT current_setting('shared_buffers') AS shared_buffers, current_setting('huge_pages_status', true) AS huge_pages
"""
SIZES = """
SELECT pg_table_size('loracomp.example_embedding') / 1e6 AS table_mb,
    pg_relation_size('loracomp.example_embedding_hnsw') / 1e6 AS index_mb
"""
console = Console(stderr=True, highlight=False)


def main(  # noqa: PLR0917
    examples: Annotated[list[int] | None, typer.Option(help="Sizes, one after the other.")] = None,
    a_task: Annotated[int, typer.Option(help="Examples of a task.")] = 100,
    jobs: Annotated[int, typer.Option(help="Jobs of each login.")] = 640,
    batch: Annotated[int, typer.Option(help="Jobs that are routed together.")] = 16,
    beside: Annotated[bool, typer.Option(help="Measure pgvector and ChromaDB too.")] = True,
    memory: Annotated[str, typer.Option(help="maintenance_work_mem while indexes are built.")] = "4GB",
    shared_buffers: Annotated[str, typer.Option(help="Memory of the embedded server, if no other is named.")] = "4GB",
    out: Annotated[Path, typer.Option(help="JSON file to add the figures to.")] = OUT,
) -> None:
    """Measure, write the figures, print them."""
    if small := [size for size in examples or [] if size < a_task]:
        raise typer.BadParameter(f"{small[0]} examples are less than a task's {a_task}", param_hint="--examples")
    figures: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    for size in examples or [10_000]:
        with database(shared_buffers) as url, db.connect(url) as connection:
            connection.execute("SELECT set_config('maintenance_work_mem', %s, false)", [memory])
            figures[str(size)] = measure(connection, url, size, size // a_task, jobs, batch, beside=beside)
        out.parent.mkdir(parents=True, exist_ok=True)
        figures = {key: figures[key] for key in sorted(figures, key=int)}
        out.write_text(json.dumps(figures, indent=1) + "\n")
    print(as_markdown(by_size(figures)))


def measure(  # noqa: PLR0917
    connection: db.Connection, url: str, size: int, tasks: int, jobs: int, batch: int, *, beside: bool
) -> dict[str, Any]:
    """Measure the figures for one number of examples."""
    try:
        library = fill(connection, tasks, size, jobs)
        indexed_s = timed(lambda: index_embeddings(connection)) / 1000
        connection.execute("VACUUM ANALYZE")
        console.print(f"{size:,} examples: stored in {library.stored_ms / 1000:.0f} s, indexed in {indexed_s:.0f} s")
        rows = [shown(ours(connection, library, share, batch)) for share in READERS]
        joins = shown(ingest(connection, url, library, batch))
    finally:
        drop_readers(connection)
    if beside:
        rows += [shown(other(name, make(connection, library), library, batch)) for name, make in SYSTEMS.items()]
    sizes, server = connection.execute(SIZES).fetchone(), connection.execute(SERVER).fetchone()
    assert sizes and server
    return {
        "day": f"{datetime.now():%Y-%m-%d}", "tasks": tasks, "batch": batch, "jobs": len(library.queries), **server,
        "stored_per_s": round(size / library.stored_ms * 1000), "indexed_s": round(indexed_s, 1), **joins,
        **{name: round(float(mb), 1) for name, mb in sizes.items()}, "rows": rows,
    }  # fmt: skip


def shown(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row unchanged, and print it to stderr."""
    console.print(", ".join(f"{name} {value}" for name, value in row.items()))
    return row


def ours(connection: db.Connection, library: Library, share: str, batch: int) -> dict[str, Any]:
    """Route jobs in batches, for the login that may use this share of the tasks, and compare with the exact
    neighbours."""
    role, every = READERS[share]
    found: list[dict[str, Any]] = []

    def route(vectors: Vectors) -> None:
        found.extend(route_jobs(connection, add_jobs(connection, len(vectors), submitted_by=role), vectors))

    times = in_batches(route, library.queries, batch)
    _, numbers = np.unique(library.task_ids, return_inverse=True)
    similarities, best = exact(library, numbers % every == 0)
    composed = [{int(task.removeprefix("t")) for task in row["composed_tasks"]} for row in found]
    same = [
        set(np.array(mix.tasks)[mix.kept]) == names
        for mix, names in zip(map(by_definition, numbers[best].tolist(), similarities.tolist()), composed, strict=True)
    ]
    return {
        "searched_by": f"ours, {share} of the tasks", **times,
        "recall": recall(library, best, [row["example_ids"] for row in found]),
        "same_mix": round(float(np.mean(same)), 4),
    }  # fmt: skip


def by_definition(tasks: list[int], similarities: list[float]) -> Weighted:
    """Return the mix that the policy `default` makes of these nearest examples."""
    return weigh(tasks, similarities, Settings())


def other(name: str, search: Search, library: Library, batch: int) -> dict[str, Any]:
    """Run the same queries by another search, among all examples."""
    found: list[Sequence[int]] = []
    times = in_batches(lambda vectors: found.extend(search(vectors)), library.queries, batch)
    _, best = exact(library, np.ones(len(library.task_ids), dtype=bool))
    return {"searched_by": name, **times, "recall": recall(library, best, found)}


def in_batches(work: Callable[[Vectors], object], queries: Vectors, batch: int) -> dict[str, float]:
    """Return the milliseconds per query: the median and the 99th percentile over 100 batches."""
    spent = [timed(lambda: work(queries[at : at + batch])) / batch for at in range(0, len(queries), batch)]  # noqa: B023
    return {"p50_ms": round(float(np.quantile(spent, 0.5)), 2), "p99_ms": round(float(np.quantile(spent, 0.99)), 2)}


def exact(library: Library, allowed: npt.NDArray[np.bool_]) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Return the similarities [m, K] and places of the nearest allowed examples, nearest first, by comparing with all
    examples."""
    queries, places = stored(library.queries), np.flatnonzero(allowed)
    best = np.full((len(queries), K), -1.0), np.zeros((len(queries), K), dtype=np.int64)
    for start in range(0, len(places), CHUNK):
        some = places[start : start + CHUNK]
        similarities = np.hstack([best[0], queries @ stored(library.vectors[some]).T])
        candidates = np.hstack([best[1], np.broadcast_to(some, (len(queries), len(some)))])
        order = np.argsort(-similarities, axis=1)[:, :K]
        best = np.take_along_axis(similarities, order, 1), np.take_along_axis(candidates, order, 1)
    return best


def recall(library: Library, best: npt.NDArray[np.int64], found: Sequence[Sequence[int]]) -> float:
    """Return the share of the nearest examples that were found."""
    shares = [np.isin(ids, mine).mean() for ids, mine in zip(library.example_ids[best], found, strict=True)]
    return round(float(np.mean(shares)), 4)


if __name__ == "__main__":
    typer.run(main)
