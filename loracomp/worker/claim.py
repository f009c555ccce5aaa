"""The claim step: leases due jobs, renews the leases, and gives jobs back."""

from collections.abc import Collection, Sequence
from datetime import timedelta

from loracomp.database.connections import Connection
from loracomp.database.queries import QUERIES
from loracomp.records import Job


def claim_jobs(
    connection: Connection,
    *,
    worker: str,
    base_model: str,
    batch_size: int,
    lease_s: float,
    held: Collection[Job] = (),
    whole: bool = True,
) -> tuple[Job, ...]:
    """Lease up to `batch_size` due jobs of a base model for `lease_s` seconds, in the order of their places.

    `held` are the jobs that the worker already holds: if there are any, no job that must run alone is claimed. `whole`:
    look from the start of the queue, and not only from the last claimed place, where new jobs are.
    """
    arguments = {
        "worker": worker,
        "base_model": base_model,
        "batch_size": batch_size,
        "lease": timedelta(seconds=lease_s),
        "held_ids": [job.id for job in held],
        "whole": whole,
    }
    return tuple(
        Job(**{**row, "choices": row["choices"] and tuple(row["choices"]), "stop": tuple(row["stop"])})
        for row in connection.execute(QUERIES["claim_jobs"], arguments)
    )


def renew_leases(connection: Connection, jobs: Sequence[Job], lease_s: float) -> set[int]:
    """Renew leases for `lease_s` seconds, never beyond a job's timeout; returns the ids of the jobs still held."""
    arguments = {**_fences(jobs), "lease": timedelta(seconds=lease_s)}
    return {row["id"] for row in connection.execute(QUERIES["renew_leases"], arguments)}


def release_jobs(connection: Connection, jobs: Sequence[Job]) -> set[int]:
    """Queue jobs again without counting the attempt; returns the ids of those that were still held."""
    return {row["id"] for row in connection.execute(QUERIES["release_jobs"], _fences(jobs))}


def queue_is_empty(connection: Connection, base_model: str) -> bool:
    """Whether no job is due or waits for a retry; scheduled jobs and jobs of other workers don't count."""
    row = connection.execute(QUERIES["queue_is_empty"], {"base_model": base_model}).fetchone()
    assert row is not None
    return bool(row["empty"])


def _fences(jobs: Sequence[Job]) -> dict[str, list[int]]:
    return {"ids": [job.id for job in jobs], "tokens": [job.lease_token for job in jobs]}
