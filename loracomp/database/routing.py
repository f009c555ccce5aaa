"""The route step: asks the database which adapters fit each job's vector, and with what weights. SQL decides."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import psycopg.errors as pg

from loracomp.database.connections import Connection, know_traces, translate
from loracomp.database.queries import QUERIES
from loracomp.records import Composition, Job, LabelledRow, Routed


def route(
    connection: Connection,
    jobs: Sequence[Job],
    embeddings: npt.NDArray[np.float32],
    encoder: str,
    input_version: int,
) -> list[Routed]:
    """Route a batch of jobs in one snapshot. The result is in the order of `jobs`, without jobs that were purged
    meanwhile.

    `embeddings` [len(jobs), dimensions] are the vectors from `engine.encode`; `encoder` and `input_version` are the
    identity and input version of the encoder that made them. The connection must know pgvector's types. Raises
    SchemaMismatchError if the database has another encoder now, or embeds its examples again. Other errors of the
    database are psycopg's, by which a worker tells whose fault they are.
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
    try:
        rows = connection.execute(QUERIES["route_jobs"], given, binary=True)
    except pg.ObjectNotInPrerequisiteState as error:
        raise translate(error) from error
    return [
        Routed(
            job_id=row["job_id"],
            composition=Composition(
                adapter_ids=tuple(row["adapter_ids"]),
                adapter_sha256=tuple(row["adapter_sha256"]),
                weights=tuple(row["adapter_weights"]),
                strategy=row["strategy"],
                density=row["density"],
            ),
            normalization=row["choice_normalization"],
            chat_template=row["chat_template"],
            calibration_examples=tuple(row["calibration_examples"] or ()),
            description_weight=row["description_weight"],
            trace=row["trace"],
        )
        for row in rows
    ]


def read_labelled(
    connection: Connection, jobs: Sequence[Job], routes: Sequence[Routed]
) -> Mapping[int, tuple[LabelledRow, ...]]:
    """Return, for each job, the labelled rows that calibrate its choices' scores, without examples that were deleted
    meanwhile.

    Only jobs of kind 'predict' can have such rows. The server returns no rows for a job whose lease has ended.
    """
    predicted = {job.id: job for job in jobs if job.kind == "predict"}
    wanted = {each.job_id: each.calibration_examples for each in routes if each.calibration_examples}
    held = [predicted[id_] for id_ in wanted if id_ in predicted]
    if not held:
        return {}
    given = {
        "job_ids": [job.id for job in held],
        "tokens": [job.lease_token for job in held],
        "example_ids": sorted({id_ for job in held for id_ in wanted[job.id]}),
    }
    found = connection.execute(QUERIES["read_labelled"], given, binary=True)
    rows = {row["example_id"]: LabelledRow(row["prompt"], row["label"], row["embedding"].to_numpy()) for row in found}
    return {job.id: tuple(rows[id_] for id_ in wanted[job.id] if id_ in rows) for job in held}
