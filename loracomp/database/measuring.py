"""Asks the database what to score for each job of kind 'measure'; SQL decides."""

from collections.abc import Sequence

from loracomp.database.connections import Connection
from loracomp.database.queries import QUERIES
from loracomp.records import Job, MeasurementPlan


def plan_measurements(connection: Connection, jobs: Sequence[Job]) -> list[MeasurementPlan]:
    """For each job its right answer and the adapters to measure. A job that was purged meanwhile is left out."""
    if not jobs:
        return []
    return [
        MeasurementPlan(
            job_id=row["job_id"],
            answer=row["answer"],
            normalization=row["choice_normalization"],
            adapter_ids=tuple(row["adapter_ids"]),
            adapter_sha256=tuple(row["adapter_sha256"]),
            chat_template=row["chat_template"],
        )
        for row in connection.execute(QUERIES["plan_measurements"], {"job_ids": [job.id for job in jobs]})
    ]
