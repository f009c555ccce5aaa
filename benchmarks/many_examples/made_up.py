"""Makes libraries of any size. Their tasks are made up from the embeddings of the shipped library."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.databases import timed
from loracomp.database import connections as db
from loracomp.model.encoder import SHAPE, VIEWS
from loracomp.registry.library_files import packaged, read_examples_file, read_manifest
from routing_data import Vectors, add_base_model, add_examples, add_task, stored

READERS = {"1 %": ("loracomp_bench_1", 100), "10 %": ("loracomp_bench_10", 10), "all": ("loracomp_bench_100", 1)}
"""Logins by the share of the tasks that they may use: each 100th task, each 10th task, and all tasks. The number is the
step."""
APART, SPREAD = 0.5, 0.3
"""How far a made-up task lies from the real task that it is made from, and how far its examples lie from each other.
Both are shares of the difference of two real texts."""


@dataclass(frozen=True)
class Library:
    """A made-up library. Rows of the three arrays belong together. Queries belong to tasks that every reader may
    use."""

    example_ids: npt.NDArray[np.int64]
    task_ids: npt.NDArray[np.int64]
    vectors: npt.NDArray[np.float16]
    queries: Vectors
    stored_ms: float = 0.0
    """Milliseconds that inserting the examples and copying their embeddings took, without making them."""


def made_up(generator: np.random.Generator, tasks: int, examples: int) -> Iterator[Vectors]:
    """Yield the unit vectors of each task: vectors of a real task, moved by differences of real texts, with the shapes
    of the real task."""
    real = [read_examples_file(packaged(), task).embeddings for task in read_manifest(packaged()).tasks]
    every = np.concatenate(real)
    for _ in range(tasks):
        own = real[generator.integers(len(real))]

        def differences(of: Vectors, count: int) -> Vectors:
            first, second = of[generator.integers(len(of), size=(2, count))]
            return first - second

        base = own[generator.integers(len(own), size=examples)]
        moved = base + APART * differences(every, 1) + SPREAD * differences(own, examples)
        ends = np.linspace(0, base.shape[1] - SHAPE, VIEWS + 1, dtype=int)[1:]
        parts = [_as_long(*pair) for pair in zip(np.split(moved, ends, 1), np.split(base, ends, 1), strict=True)]
        yield stored(np.concatenate([*parts[:-1], base[:, ends[-1] :]], axis=1))


def _as_long(vectors: Vectors, wanted: Vectors) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors * np.linalg.norm(wanted, axis=1, keepdims=True) / np.where(lengths > 0, lengths, 1)


def fill(connection: db.Connection, tasks: int, examples: int, queries: int, *, of_each: int = 100) -> Library:
    """Load a library without its index. Queries are examples of each `of_each`th task, which are not loaded."""
    generator = np.random.default_rng(0)
    add_base_model(connection)
    connection.execute("DROP INDEX loracomp.example_embedding_hnsw")
    make_readers(connection)
    asked = -(-queries // -(-tasks // of_each))
    ids, owners, vectors, kept_back = [], [], [], []
    stored_ms = 0.0
    each = examples // tasks
    for number, made in enumerate(made_up(generator, tasks, each + asked)):
        task = add_task(connection, f"t{number}", reader_role=reader_of(number))
        stored_ms += timed(lambda: ids.extend(add_examples(connection, task, made[:each])))  # noqa: B023
        owners += [task] * each
        vectors.append(made[:each].astype(np.float16))
        if number % of_each == 0:
            kept_back.append(made[each:])
    asking = generator.permutation(np.concatenate(kept_back))[:queries]
    return Library(np.array(ids), np.array(owners), np.concatenate(vectors), asking, stored_ms)


def reader_of(task: int) -> str:
    """Return the group that may use a task: the smallest group whose step divides the task's number."""
    return next(role for role, every in READERS.values() if task % every == 0)


def make_readers(connection: db.Connection) -> None:
    """Create a role for each share of the tasks. Each role is a member of the roles with smaller shares."""
    drop_readers(connection)
    roles = [role for role, _ in READERS.values()]
    for place, role in enumerate(roles):
        connection.execute(f"CREATE ROLE {role}")
        for smaller in roles[:place]:
            connection.execute(f"GRANT {smaller} TO {role}")


def drop_readers(connection: db.Connection) -> None:
    for role, _ in READERS.values():
        connection.execute(f"DROP ROLE IF EXISTS {role}")
