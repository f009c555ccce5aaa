"""Claim: lease due jobs, keep the leases alive, give them back."""

from collections.abc import Sequence
from datetime import timedelta

from loracomp.database.connections import Connection
from loracomp.database.queries import QUERIES
from loracomp.records import Job


def claim_jobs(
    connection: Connection, *, worker: str, base_model: str, batch_size: int, lease_s: float, held: int = 0
) -> tuple[Job, ...]:
    """Lease up to `batch_size` due jobs of a base model for `lease_s` seconds, the oldest due first.

    Where the worker holds jobs already, that many or none.
    """
    lease = timedelta(seconds=lease_s)
    arguments = {"worker": worker, "base_model": base_model, "batch_size": batch_size, "lease": lease, "held": held}
    return tuple(
        Job(**{**row, "choices": row["choices"] and tuple(row["choices"]), "stop": tuple(row["stop"])})
        for row in connection.execute(QUERIES["claim_jobs"], arguments)
    )


def renew_leases(connection: Connection, jobs: Sequence[Job], lease_s: float) -> set[int]:
    """Renew for `lease_s` seconds from now, never beyond a job's timeout; ids of the leases that still hold."""
    arguments = {**_fences(jobs), "lease": timedelta(seconds=lease_s)}
    return {row["id"] for row in connection.execute(QUERIES["renew_leases"], arguments)}


def release_jobs(connection: Connection, jobs: Sequence[Job]) -> set[int]:
    """Put jobs back into the queue with their attempt given back; ids of those that were still held."""
    return {row["id"] for row in connection.execute(QUERIES["release_jobs"], _fences(jobs))}


def queue_is_empty(connection: Connection, base_model: str) -> bool:
    """Whether no job is due or waits to be tried again; jobs for later and jobs that others hold don't count."""
    row = connection.execute(QUERIES["queue_is_empty"], {"base_model": base_model}).fetchone()
    assert row is not None
    return bool(row["empty"])


def _fences(jobs: Sequence[Job]) -> dict[str, list[int]]:
    return {"ids": [job.id for job in jobs], "tokens": [job.lease_token for job in jobs]}
