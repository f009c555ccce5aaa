"""A load that rises, falls and bursts, on workers that an autoscaler starts and stops by loracomp.worker_demand."""

import random
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from autoscaler import QUERY, Autoscaler, Cluster
from loracomp.database import connections as db
from sleeper import JOB_S, STEP_S, TEXT_STEPS

SPEED = 3
"""All times are divided by this, compared with deploy/kubernetes, so that a trial takes nine minutes."""
TARGET_S = float(re.findall(r"target_wait_s => (\d+)", QUERY)[0]) / SPEED
BATCH_SIZE = 16
HELD_BATCHES = 2
TEXTS = 0.25
"""Share of jobs that ask for a text; the others have choices."""
WITHIN = 0.95
"""Share of each phase's jobs that must be answered within the target."""
PHASES = {
    # name: seconds, jobs a second, jobs at once at its beginning
    "from zero": (40, 4, 0),
    "rise": (50, 20, 0),
    "peak": (50, 40, 0),
    "fall": (60, 10, 0),
    "burst": (50, 10, 400),
    "to zero": (140, 0, 0),
    "one job": (140, 0, 1),
}


@dataclass(frozen=True)
class Phase:
    """The results of one phase."""

    name: str
    jobs: int
    within: float
    """Share of its jobs that were answered within the target."""
    median_s: float
    worst_s: float
    fewest: int
    most: int
    changes: int
    """How often the number of workers changed."""


@dataclass(frozen=True)
class Trial:
    """The results of all phases together."""

    phases: list[Phase]
    reversals: int
    """How often the number of workers turned from growing to shrinking, or back."""
    unanswered: int
    worker_s: float
    """Seconds of worker processes, of which `work_s` were needed had they been full of jobs all the time."""
    work_s: float

    def problems(self) -> list[str]:
        """What is not as it should be, in words."""
        phases = {phase.name: phase for phase in self.phases}
        late = [phase.name for phase in self.phases if phase.jobs and phase.within < WITHIN]
        found = {
            f"too many jobs came late: {', '.join(late)}": late,
            f"{self.unanswered} jobs are not answered": self.unanswered,
            "more load had no more workers": phases["peak"].most <= phases["from zero"].most,
            "less load had no fewer workers": phases["fall"].fewest >= phases["peak"].most,
            "not to zero and back": (phases["to zero"].fewest, phases["one job"].most, phases["one job"].fewest)
            != (0, 1, 0),
            # Up, down for the fall, up for the burst, down to zero, up for one job, down.
            f"{self.reversals} turns are too many": self.reversals > 5,
        }
        return [problem for problem, is_so in found.items() if is_so]


def run(database: str) -> Trial:
    """Nine minutes, with a base model named tiny in the database."""
    began: dict[str, float] = {}
    scaler = Autoscaler(SPEED)
    settings = {"batch_size": BATCH_SIZE, "held_batches": HELD_BATCHES, "poll_s": 0.2, "grace_s": 20, "lease_s": 60}
    with db.connect(database) as connection, Cluster(database, **settings) as cluster:
        asked_at = -scaler.poll_s
        start = time.monotonic()
        for name, choices, texts in load():
            if name not in began:
                began[name] = time.monotonic()
            connection.execute(
                "INSERT INTO loracomp.job (prompt, choices, tags)"
                " SELECT 'a', CASE WHEN n > 0 THEN '{a,b}'::text[] END, jsonb_build_object('phase', %s::text)"
                " FROM generate_series(1 - %s, %s) AS n",
                [name, texts, choices],
            )
            now = time.monotonic() - start
            if now - asked_at >= scaler.poll_s:
                asked_at = now
                row = connection.execute(scaled_query(), [TARGET_S]).fetchone()
                assert row is not None
                cluster.scale(scaler.replicas(now, len(cluster), row["workers"]))
        began["end"] = time.monotonic()
        rows = connection.execute(
            "SELECT tags ->> 'phase' AS phase,"
            " array_agg(extract(epoch FROM finished_at - created_at)::float8 ORDER BY finished_at - created_at)"
            " FILTER (WHERE status = 'succeeded') AS waits,"
            " count(*) FILTER (WHERE status <> 'succeeded') AS unanswered"
            " FROM loracomp.job GROUP BY 1"
        ).fetchall()
    waits = {row["phase"]: row["waits"] or [] for row in rows}
    ends = zip(PHASES, pairwise(began.values()), strict=True)
    steps = [b - a for (_, a), (_, b) in pairwise(cluster.changes)]
    changes = [*cluster.changes, (began["end"], 0)]
    return Trial(
        phases=[phase(name, waits.get(name, []), cluster, *between) for name, between in ends],
        reversals=sum(a * b < 0 for a, b in pairwise(steps)),
        unanswered=sum(row["unanswered"] for row in rows),
        worker_s=sum(number * (until - at) for (at, number), (until, _) in pairwise(changes)),
        work_s=job_s() * sum(map(len, waits.values())),
    )


def scaled_query() -> bytes:
    """KEDA's query, with the target as a parameter."""
    return re.sub(r"target_wait_s => \d+", "target_wait_s => %s", QUERY).encode()


def job_s() -> float:
    """Seconds of work that a job is on average, in a worker that holds as many as it may."""
    steps = TEXTS * TEXT_STEPS + 1 - TEXTS
    return steps * (STEP_S / (HELD_BATCHES * BATCH_SIZE) + JOB_S)


def load() -> Iterator[tuple[str, int, int]]:
    """The phase and how many jobs come now, with choices and as texts, ten times a second; by chance as in life."""
    chance = random.Random(0)

    def mixed(jobs: int) -> tuple[int, int]:
        texts = sum(chance.random() < TEXTS for _ in range(jobs))
        return jobs - texts, texts

    for name, (seconds, rate, at_once) in PHASES.items():
        until = time.monotonic() + seconds
        yield name, *mixed(at_once)
        before = time.monotonic()
        while (now := time.monotonic()) < until:
            expected = rate * (now - before)
            before = now
            yield name, *mixed(sum(chance.random() < expected / 50 for _ in range(50)))
            time.sleep(0.1)


def phase(name: str, waits: list[float], cluster: Cluster, began: float, ended: float) -> Phase:
    """`waits` in seconds, sorted; `began` and `ended` by the monotonic clock."""
    inside = [number for at, number in cluster.changes if began <= at < ended]
    before = [number for at, number in cluster.changes if at < began][-1:] or [0]
    return Phase(
        name=name,
        jobs=len(waits),
        within=sum(wait <= TARGET_S for wait in waits) / max(len(waits), 1),
        median_s=waits[len(waits) // 2] if waits else 0.0,
        worst_s=waits[-1] if waits else 0.0,
        fewest=min(before + inside),
        most=max(before + inside),
        changes=len(inside),
    )
