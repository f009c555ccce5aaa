"""Measures what a job costs apart from time: CPU time of server and clients (from Linux's /proc), WAL bytes,
commits."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COUNTERS = """
SELECT pg_current_wal_insert_lsn() - '0/0' AS wal_bytes,
    (SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()) AS commits
"""
POSTMASTER = "SELECT split_part(pg_read_file('postmaster.pid'), E'\\n', 1)::integer"
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Counters:
    """Totals of jobs, WAL bytes, commits and CPU seconds at one moment."""

    jobs: int
    wal_bytes: int
    commits: int
    """Number of commits; it may lag by a second, because running backends report only sometimes."""
    server_s: float
    client_s: float

    @classmethod
    def now(cls, look: Callable[[str], tuple[Any, ...]], jobs: int, clients: Iterable[int]) -> "Counters":
        """Read the counters. `look` runs a statement and returns its row; `clients` are the workers' process ids."""
        (postmaster,) = look(POSTMASTER)
        wal_bytes, commits = look(COUNTERS)
        return cls(jobs, int(wal_bytes), commits, server_cpu_s(postmaster), sum(cpu_s(each) for each in clients))

    def costs_since(self, before: "Counters") -> dict[str, float]:
        """Return the costs per job since `before`."""
        jobs = max(1, self.jobs - before.jobs)
        return {
            "server_ms_a_job": round(1000 * (self.server_s - before.server_s) / jobs, 3),
            "client_ms_a_job": round(1000 * (self.client_s - before.client_s) / jobs, 3),
            "wal_bytes_a_job": round((self.wal_bytes - before.wal_bytes) / jobs),
        }


def server_cpu_s(postmaster: int) -> float:
    """Return the CPU seconds of all processes of the server, including those that have ended."""
    children = [int(pid) for pid in Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()]
    return cpu_s(postmaster, ended=True) + sum(cpu_s(child) for child in children)


def cpu_s(pid: int, *, ended: bool = False) -> float:
    """Return the user and system time of a process in seconds, with `ended` also of its ended children; 0 if the
    process has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except FileNotFoundError:
        return 0.0
    # utime, stime, cutime, cstime: fields 14 to 17 of proc(5), where the text after the name begins with field 3.
    return sum(map(int, fields[11 : 15 if ended else 13])) / _TICKS_A_SECOND
