"""Route: unit vectors -> which adapters fit each job, and with what weights. SQL decides; this only asks."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from loracomp.database.connections import Connection, translated_errors
from loracomp.database.queries import QUERIES
from loracomp.model.encoding import INPUT_FORMAT_VERSION
from loracomp.records import Composition, Job, Route


def route(
    connection: Connection,
    jobs: Sequence[Job],
    embeddings: npt.NDArray[np.float32],
    encoder: str,
    input_version: int = INPUT_FORMAT_VERSION,
) -> list[Route]:
    """Routes of a batch, in its order, from one snapshot; a job that was purged meanwhile has none.

    `embeddings` [len(jobs), dimensions] as `steps.encode` returns them; `encoder` is the fingerprint of the one that
    made them, `input_version` its own; the connection knows pgvector's types. Raises SchemaMismatchError where the
    database has another encoder by now, UsageError where vectors are not as long as the database's.
    """
    given = {
        "job_ids": [job.id for job in jobs],
        "embeddings": list(embeddings),
        "encoder": encoder,
        "input_version": input_version,
    }
    with translated_errors():
        return [_route(row) for row in connection.execute(QUERIES["route_jobs"], given, binary=True)]


def _route(row: dict[str, Any]) -> Route:
    return Route(
        job_id=row["job_id"],
        policy=row["policy"],
        example_ids=tuple(row["example_ids"]),
        example_tasks=tuple(row["example_tasks"]),
        similarities=tuple(row["similarities"]),
        tasks=tuple(row["tasks"]),
        probabilities=tuple(row["probabilities"]),
        weights=tuple(row["weights"]),
        composed_tasks=tuple(row["composed_tasks"]),
        composition=_composition(row),
        fallback=row["fallback"],
    )


def _composition(row: dict[str, Any]) -> Composition:
    policy = row["policy"]
    return Composition(
        adapter_ids=tuple(row["adapter_ids"]),
        adapter_sha256=tuple(row["adapter_sha256"]),
        weights=tuple(row["adapter_weights"]),
        strategy=policy["strategy"],
        density=policy["density"],
        seed=policy["seed"],
        random_parameters=policy["router"] == "random_parameters",
        rescale=policy["rescale"],
    )
