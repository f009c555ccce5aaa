"""Route: unit vectors -> which adapters fit each job, and with what weights. SQL decides; this only asks."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from loracomp.database.connections import Connection, know_traces, translated_errors
from loracomp.database.queries import QUERIES
from loracomp.records import Composition, Job, Routed


def route(
    connection: Connection,
    jobs: Sequence[Job],
    embeddings: npt.NDArray[np.float32],
    encoder: str,
    input_version: int,
) -> list[Routed]:
    """What is decided for a batch, in its order, from one snapshot; a job that was purged meanwhile has none.

    `embeddings` [len(jobs), dimensions] as `pipeline.encode` returns them; `encoder` is the fingerprint of the one
    that made them, `input_version` its own; the connection knows pgvector's types. Raises SchemaMismatchError where the
    database has another encoder by now, UsageError where vectors are not as long as the database's.
    """
    if not jobs:
        return []
    given = {
        "job_ids": [job.id for job in jobs],
        "embeddings": list(embeddings),
        "encoder": encoder,
        "input_version": input_version,
    }
    know_traces(connection)
    with translated_errors():
        return [
            Routed(
                job_id=row["job_id"],
                composition=Composition(
                    adapter_ids=tuple(row["adapter_ids"]),
                    adapter_sha256=tuple(row["adapter_sha256"]),
                    weights=tuple(row["adapter_weights"]),
                    strategy=row["strategy"],
                    density=row["density"],
                    seed=row["seed"],
                    random_parameters=row["random_parameters"],
                ),
                normalization=row["choice_normalization"],
                contrast=row["contrast"],
                trace=row["trace"],
            )
            for row in connection.execute(QUERIES["route_jobs"], given, binary=True)
        ]
