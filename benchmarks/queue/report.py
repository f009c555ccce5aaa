"""Turns results in JSON into tables that compare systems."""

from collections.abc import Callable
from typing import Any

SYSTEMS = {
    "loracomp": "ours", "pgqueuer": "pgqueuer", "procrastinate": "procrastinate", "awa": "awa-pg",
    "pgmq": "pgmq", "pgq": "PgQ", "bare": "bare table",
}  # fmt: skip
Row = dict[str, Any]


def beside_others(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the jobs per second and costs of each system, and the share of its rate that remains while a reader holds
    a snapshot."""
    throughput = results["throughput"]
    many, single = (rows_of(throughput, lambda row, size=size: row["batch"] == size) for size in (64, 1))
    held = rows_of(results["snapshot"], lambda row: row["snapshot"] == "held")
    return [
        (
            throughput["day"], "64 a batch, jobs/s", "ours is", "one at a time", "ours is", "server's CPU, ms a job",
            "WAL, bytes a job", "under a snapshot",
        ),
        *(
            (
                " ".join(filter(None, (name, throughput.get(system)))),
                *rate_and_ratio(many, system),
                *rate_and_ratio(single, system),
                f"{many[system]['server_ms_a_job']:.3f}",
                f"{many[system]['wal_bytes_a_job']:,.0f}",
                f"{held[system]['of_clean']:.2f}" if system in held else "",
            )
            for system, name in SYSTEMS.items()
            if system in many
        ),
    ]  # fmt: skip


def rows_of(part: Row, wanted: Callable[[Row], bool]) -> dict[str, Row]:
    """Return the wanted rows of a part, by system."""
    return {row["system"]: row for row in part["rows"] if wanted(row)}


def rate_and_ratio(rows: dict[str, Row], system: str) -> tuple[str, str]:
    """Return the jobs per second of a system, and how many times as fast our queue is; both are empty if the system was
    not measured."""
    if system not in rows:
        return "", ""
    rate = rows[system]["jobs_per_s"]
    return f"{rate:,}", f"{rows['loracomp']['jobs_per_s'] / rate:.2f} x"
