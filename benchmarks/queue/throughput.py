"""Measures jobs/s from claim to record of each system, by batch size."""

from collections.abc import Callable
from statistics import median
from typing import Any

from .place import queue

KEYS = ((64, 1), (1, 1))
"""Batch sizes and numbers of workers at which the systems are compared, in several rounds."""
COSTS = ("server_ms_a_job", "client_ms_a_job", "wal_bytes_a_job", "commits_a_job")
"""The costs of a job: CPU time of the server's processes and of the workers in milliseconds, WAL bytes and commits."""
NO_SINGLES = ("pgq", (1, 1))
"""A system and key that are not measured, because PgQ can't take jobs one by one."""
FASTEST = {
    "loracomp": 15_000, "bare": 50_000, "pgqueuer": 6_000, "procrastinate": 2_000, "awa": 20_000,
    "pgmq": 30_000, "pgq": 60_000,
}  # fmt: skip
"""For each system, an upper bound of its jobs/s."""


def throughput(
    maintenance: str, pythons: dict[str, str], seconds: float, rounds: int, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Return the results of each system at each of KEYS, which are medians over rounds in which the systems take
    turns."""
    points = [
        (system, *key) for key in KEYS for _ in range(rounds) for system in pythons if (system, key) != NO_SINGLES
    ]
    measured: dict[tuple[str, int, int], list[dict[str, float]]] = {}
    sizes: dict[str, float] = {}
    for system, batch, workers in points:
        with queue(system, pythons[system], maintenance) as made:
            found = made.measured(round(FASTEST[system] * (seconds + 2)), batch, workers, seconds)
            sizes[system] = made.bytes_a_result()
        measured.setdefault((system, batch, workers), []).append(found)
        say(f"{system}: batches of {batch}, {workers} workers: {found['jobs_per_s']:.0f} jobs/s")
    return [
        {
            "system": system, "batch": batch, "workers": workers,
            "jobs_per_s": round(median(each["jobs_per_s"] for each in rounds)),
            "rounds": [round(each["jobs_per_s"]) for each in rounds], "bytes_a_result": round(sizes[system]),
            **{cost: round(median(each[cost] for each in rounds), 3) for cost in COSTS},
        }
        for (system, batch, workers), rounds in sorted(measured.items())
    ]  # fmt: skip
