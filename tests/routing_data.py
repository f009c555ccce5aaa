"""Libraries of clustered unit vectors in a database, for the tests and the benchmark of routing."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pgvector import HalfVector

from loracomp.database import connections as db

DIMENSIONS = 832
BASE_MODEL = "toy"
Vectors = npt.NDArray[np.float32]

ADD_BASE_MODEL = """
INSERT INTO loracomp.base_model
(name, source, fingerprint, architecture, context_length, parameter_count, modules, is_default)
VALUES (%s, 'made up', repeat('0', 64), 'Toy', 128, 1, '{}', %s) RETURNING id
"""
ADD_ADAPTER = """
INSERT INTO loracomp.adapter
(task_id, base_model_id, name, version, status, rank, alpha, use_rslora, scaling, target_modules, parameter_count,
 byte_count, sha256, digest, config)
SELECT t.id, b.id, t.name, %(version)s, %(status)s, 8, 16, false, 2, '{q}', 1, 1, %(sha256)s, %(sha256)s, '{}'
FROM loracomp.task AS t, loracomp.base_model AS b WHERE t.name = %(task)s AND b.name = %(base_model)s RETURNING id
"""
ADD_EXAMPLES = """
INSERT INTO loracomp.example (task_id, split, source_ref, content_hash)
SELECT %(task_id)s, 'train', n::text, sha256(convert_to(%(task_id)s || '/' || n, 'UTF8'))
FROM generate_series(1, %(count)s) AS n RETURNING id
"""
ADD_JOBS = """
INSERT INTO loracomp.job (prompt, choices, policy, exclude_tasks, task, submitted_by)
SELECT 'x', %(choices)s, (%(policies)s::text[])[1 + n %% cardinality(%(policies)s::text[])], %(exclude_tasks)s,
    %(task)s, coalesce(%(submitted_by)s, current_user)
FROM generate_series(0, %(count)s - 1) AS n RETURNING id
"""


ROUTED = """
SELECT r.job_id, r.strategy, r.description_weight, (r.trace).*
FROM loracomp.route_jobs(%s::bigint[], %b::vector[]) WITH ORDINALITY AS r ORDER BY r.ordinality
"""


@dataclass(frozen=True)
class Library:
    """The loaded library. Rows of the arrays belong together, in the order of the examples' ids; vectors are as they
    are stored."""

    example_ids: npt.NDArray[np.int64]
    task_ids: npt.NDArray[np.int64]
    vectors: Vectors
    tasks: dict[int, str]

    def id_of(self, task: str) -> int:
        return next(number for number, name in self.tasks.items() if name == task)


def unit(vectors: npt.NDArray[np.floating]) -> Vectors:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def stored(vectors: Vectors) -> Vectors:
    """Return vectors as the database compares them: rounded to half precision, and of length 1 again."""
    return unit(vectors.astype(np.float16).astype(np.float64))


def clustered(generator: np.random.Generator, counts: list[int]) -> list[Vectors]:
    """Make unit vectors for each task: five topics around a centre, in 20 dimensions, with a little noise in all
    dimensions. Tasks overlap, as texts do, because the HNSW graph would not connect tasks that are far apart.
    """
    basis = generator.normal(size=(20, DIMENSIONS))
    topics = [generator.normal(size=(1, 20)) + generator.normal(size=(5, 20)) for _ in counts]
    return [
        unit(
            (own[generator.integers(5, size=count)] + generator.normal(size=(count, 20))) @ basis
            + generator.normal(size=(count, DIMENSIONS))
        )
        for own, count in zip(topics, counts, strict=True)
    ]


def queries_near(generator: np.random.Generator, library: Library, count: int) -> Vectors:
    """Return unit vectors, each between two random examples and nearer to the first."""
    first, second = library.vectors[generator.integers(len(library.vectors), size=(2, count))]
    return unit(first + 0.5 * second)


def add_base_model(connection: db.Connection, name: str = BASE_MODEL, *, is_default: bool = True) -> None:
    connection.execute(ADD_BASE_MODEL, [name, is_default])


def add_task(connection: db.Connection, name: str, *, reader_role: str | None = None) -> int:
    """Add a task with an active adapter for the base model; returns its id."""
    row = connection.execute(
        "INSERT INTO loracomp.task (name, reader_role) VALUES (%s, %s) RETURNING id", [name, reader_role]
    ).fetchone()
    assert row
    add_adapter(connection, name)
    return int(row["id"])


def add_adapter(
    connection: db.Connection, task: str, *, base_model: str = BASE_MODEL, version: int = 1, status: str = "active"
) -> int:
    sha256 = hashlib.sha256(f"{task}/{base_model}/{version}".encode()).hexdigest()
    given = {"task": task, "base_model": base_model, "version": version, "status": status, "sha256": sha256}
    row = connection.execute(ADD_ADAPTER, given).fetchone()
    assert row
    return int(row["id"])


def add_examples(connection: db.Connection, task_id: int, vectors: Vectors) -> list[int]:
    """Add train examples with these embeddings; returns their ids."""
    rows = connection.execute(ADD_EXAMPLES, {"task_id": task_id, "count": len(vectors)}).fetchall()
    ids = sorted(row["id"] for row in rows)
    with (
        connection.cursor() as cursor,
        cursor.copy(
            "COPY loracomp.example_embedding (example_id, task_id, embedding) FROM STDIN WITH (FORMAT binary)"
        ) as copy,
    ):
        copy.set_types(["int8", "int4", "halfvec"])
        for example_id, vector in zip(ids, vectors, strict=True):
            copy.write_row((example_id, task_id, HalfVector(vector)))
    return ids


def add_jobs(
    connection: db.Connection,
    count: int,
    *policies: str,
    choices: Sequence[str] | None = ("a", "b"),
    exclude_tasks: Sequence[str] = (),
    task: str | None = None,
    submitted_by: str | None = None,
) -> list[int]:
    """Add jobs that name these policies in turn, or the default one; returns their ids."""
    given = {
        "count": count,
        "policies": list(policies or ["default"]),
        "choices": None if choices is None else list(choices),
        "exclude_tasks": list(exclude_tasks),
        "task": task,
        "submitted_by": submitted_by,
    }
    rows = connection.execute(ADD_JOBS, given)
    return [row["id"] for row in rows]


def route_jobs(
    connection: db.Connection, jobs: Sequence[int], vectors: Vectors, *, prepare: bool | None = None
) -> list[dict[str, Any]]:
    """Route jobs by vectors that no encoder made; returns the decision for each job, with its trace unfolded."""
    return connection.execute(ROUTED, [list(jobs), list(vectors)], prepare=prepare).fetchall()


def load(connection: db.Connection, seed: int, counts: list[int]) -> Library:
    """Add a base model and tasks t0, t1, ... with these numbers of examples; builds the index when all are loaded."""
    add_base_model(connection)
    connection.execute("DROP INDEX loracomp.example_embedding_hnsw")
    ids, task_ids, tasks = [], [], {}
    embeddings = clustered(np.random.default_rng(seed), counts)
    for number, vectors in enumerate(embeddings):
        task_id = add_task(connection, f"t{number}")
        tasks[task_id] = f"t{number}"
        ids += add_examples(connection, task_id, vectors)
        task_ids += [task_id] * len(vectors)
    connection.execute("SELECT loracomp.build_embedding_index()")
    connection.execute("SELECT loracomp.tune_routing()")
    return Library(np.array(ids), np.array(task_ids), stored(np.concatenate(embeddings)), tasks)
