"""Measures claims from a long queue that one or many submitters share."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any

from loracomp.database import connections as db
from loracomp.worker.leases import claim_jobs
from loracomp.worker.recorder import record_predictions

from .place import queue, settle
from .systems.loracomp import BASE_MODEL, NoModel

BATCH = 16
ROUNDS = 5
NUMBERS = (1, 10, 100, 1000)
"""The numbers of submitters that are measured."""
SPREAD = "UPDATE loracomp.job SET submitted_by = 'submitter ' || id %% %s"


def submitters(maintenance: str, depth: int, claims: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Measure the milliseconds of claim and record, in turns, for each number of submitters who share the queue evenly.
    Each queue holds at least twice as many jobs as are claimed. All databases are filled first, so that the disk's
    delayed writes affect all of them equally.
    """
    with ExitStack() as stack:
        probes = [stack.enter_context(probe(maintenance, max(depth, 2 * claims * BATCH), number)) for number in NUMBERS]
        settle(maintenance)
        for number in range(ROUNDS):
            for each in probes:
                each.measure((claims + number) // ROUNDS)
            say(f"round {number + 1} of {ROUNDS}")
    return [each.row() for each in probes]


@dataclass
class Probe:
    """A queue that a number of submitters share, with the measured milliseconds of claims and records."""

    depth: int
    submitters: int
    connection: db.Connection
    model: NoModel = field(default_factory=NoModel)
    claimed: list[float] = field(default_factory=list)
    recorded: list[float] = field(default_factory=list)

    def measure(self, claims: int) -> None:
        for _ in range(claims):
            with timed(self.claimed):
                jobs = claim_jobs(self.connection, worker="probe", base_model=BASE_MODEL, batch_size=BATCH, lease_s=60)
            ended = self.model.ended(self.connection, jobs)
            with timed(self.recorded):
                assert len(record_predictions(self.connection, ended)) == len(jobs)

    def row(self) -> dict[str, Any]:
        return {
            "depth": self.depth, "submitters": self.submitters, "claim_p50_ms": round(median(self.claimed), 2),
            "claim_p99_ms": round(quantiles(self.claimed, n=100)[-1], 2),
            "record_p50_ms": round(median(self.recorded), 2),
        }  # fmt: skip


@contextmanager
def timed(into: list[float]) -> Iterator[None]:
    started = time.perf_counter()
    yield
    into.append((time.perf_counter() - started) * 1000)


@contextmanager
def probe(maintenance: str, depth: int, submitters: int) -> Iterator[Probe]:
    """Make a database with a queue of this depth."""
    with queue("loracomp", sys.executable, maintenance) as made, db.connect(made.url) as connection:
        made.fill(depth)
        if submitters > 1:
            connection.execute(SPREAD, (submitters,))
            connection.execute("VACUUM FULL ANALYZE loracomp.job")
        yield Probe(depth, submitters, connection)
