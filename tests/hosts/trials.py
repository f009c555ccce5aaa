"""What several hosts do to a queue: each trial takes a lab, does its worst, and says what was lost and doubled."""

import random
import time
from collections.abc import Callable
from typing import TypeAlias

from arena import Arena
from lab import MODEL_S, Lab, Outcome, answered_a_second, first_answer_after, recorded, wait_for_answers
from servers import wait

Trial: TypeAlias = Callable[[Lab], Outcome]


def more_hosts(lab: Lab) -> Outcome:
    """One worker host, then two, then four: at least 0.95 of linear."""
    with lab.arena() as arena:
        rates = {}
        hosts = [lab.host(f"worker{number}") for number in range(4)]
        for number, added in ((1, hosts[:1]), (2, hosts[1:2]), (4, hosts[2:])):
            lab.start_workers(arena, added, MODEL_S=MODEL_S)
            rates[number] = measured(arena, lab)
        wait_for_answers(arena)
        shares = {number: rate / number / rates[1] for number, rate in rates.items()}
        said = ", ".join(f"{number}: {rates[number]:.1f} jobs/s ({share:.2f})" for number, share in shares.items())
        return closed(arena, said, missed={f"{n} hosts: {s:.2f} of linear": s < 0.95 for n, s in shares.items()})


def far_hosts(lab: Lab) -> Outcome:
    """A worker host nearby, then 2 ms and 20 ms away, then one that loses 1 % of its packets."""
    places = {
        "near": ({}, 0.0),
        "2 ms": ({"round_trip_ms": 2}, 0.95),
        "20 ms": ({"round_trip_ms": 20}, 0.8),
        "2 ms, 1 % lost": ({"round_trip_ms": 2, "loss": 0.01}, 0.0),
    }
    rates = {}
    with lab.arena() as arena:
        for place, (far, _) in places.items():
            (worker,) = lab.start_workers(arena, [lab.host("worker", **far)], MODEL_S=MODEL_S)
            rates[place] = measured(arena, lab)
            worker.terminate()
            worker.wait(60)
        lab.start_workers(arena, [lab.host("last")], MODEL_S=0)
        wait_for_answers(arena)
        shares = {place: rate / rates["near"] for place, rate in rates.items()}
        said = ", ".join(f"{place}: {rates[place]:.1f} jobs/s ({share:.2f})" for place, share in shares.items())
        missed = {f"{place}: {share:.2f} of near": share < places[place][1] for place, share in shares.items()}
        return closed(arena, said, missed=missed)


def host_cut_off(lab: Lab, cut_s: float = 12) -> Outcome:
    """A worker host is cut off for longer than its leases while another goes on, and comes back."""
    with lab.arena() as arena:
        away, here = lab.host("away"), lab.host("here")
        lab.start_workers(arena, [away, here], MODEL_S=MODEL_S)
        arena.insert(512)
        arena.wait(lambda: arena.one("SELECT count(DISTINCT worker) FROM loracomp.prediction") == 2)
        away.cut()
        held = arena.one("SELECT array_agg(id) FROM loracomp.job WHERE status = 'running' AND worker = 'w0'")
        time.sleep(cut_s)
        away.plug()
        back = arena.one("SELECT clock_timestamp()")
        came = "SELECT extract(epoch FROM min(created_at) - %s)::float8 FROM loracomp.prediction"
        came += " WHERE worker = 'w0' AND created_at > %s"
        arena.wait(lambda: arena.insert(64) or arena.one(came, back, back) is not None, 60)
        wait_for_answers(arena)
        took = arena.one(came, back, back)
        outcome = closed(arena, f"{cut_s:g} s; {len(held or [])} jobs were held there")
        outcome.seconds = [took]
        return outcome


def measured(arena: Arena, lab: Lab) -> float:
    """After a few batches, in which claims of a new worker meet those of others."""
    arena.insert(512)
    time.sleep(4 * MODEL_S)
    return answered_a_second(arena, lab.size / 10)


def closed(arena: Arena, note: str, *, missed: dict[str, bool] | None = None) -> Outcome:
    """The account of an arena whose jobs have all ended; goals that were missed fail the trial."""
    account = arena.account()
    found = [goal for goal, is_missed in (missed or {}).items() if is_missed]
    return Outcome(account.jobs, account.lost, account.doubled, note="; ".join([note, *(f"MISSED {g}" for g in found)]))


def failover_synchronous(lab: Lab, failovers: int = 3) -> Outcome:
    """The primary dies under load, commits wait for the standby: the standby takes over, the dead one comes back."""
    return fail_over_under_load(lab, failovers, synchronous=True)


def failover_asynchronous(lab: Lab, failovers: int = 3) -> Outcome:
    """The same with commits that do not wait, and a standby that had lost touch a second before."""
    return fail_over_under_load(lab, failovers, synchronous=False)


BEHIND_S = 1.0
"""How long the standby has not heard of an asynchronous primary when that dies."""


def fail_over_under_load(lab: Lab, failovers: int, *, synchronous: bool) -> Outcome:
    chance = random.Random(failovers)
    lab.pair.synchronous = synchronous
    direct, pooled = (lab.host(name) for name in ("direct", "pooled"))
    with lab.arena() as arena:
        lab.pair.wait_for_standby()
        lab.start_workers(arena, [lab.host(f"worker{number}") for number in range(2)], MODEL_S=0.1, BATCH_SIZE=8)
        database = lab.database(arena)
        with (
            lab.application(arena, direct, lab.url(arena), "direct", 30) as first,
            lab.application(arena, pooled, lab.pooler.url(database), "pooled", 10) as second,
        ):
            wait(lambda: first.acknowledged and second.acknowledged)
            took, windows = [], []
            for number in range(failovers):
                time.sleep(chance.uniform(1, 3))
                windows.append(kill_primary(lab, vanishes=number % 2 == 1, behind_s=0 if synchronous else BEHIND_S))
                lab.pair.fail_over()
                lab.pooler.follow(lab.pair.primary)
                took.append(first_answer_after(arena, windows[-1][1]))
                if not synchronous:
                    for application in (first, second):
                        said = application.acknowledged
                        application.submit_again([key for key, _, at in said if within(at, windows[-1:])])
                lab.pair.standby.host.plug()
                lab.pair.take_back()
            for application in (first, second):
                application.stop()
            wait_for_answers(arena)
            said = first.acknowledged + second.acknowledged
        lab.pair.synchronous = False
        lab.pair.primary.set()
        return judged(arena, said, windows, took, synchronous=synchronous)


def kill_primary(lab: Lab, *, vanishes: bool, behind_s: float) -> tuple[float, float]:
    """SIGKILL, or the host falls silent and then dies; from when on the standby knew nothing, and when it was."""
    since = time.time()
    if behind_s:
        lab.pair.standby.host.cut()
        time.sleep(behind_s)
    if vanishes:
        lab.pair.primary.host.cut()
    lab.pair.primary.kill()
    at = time.time()
    if behind_s:
        lab.pair.standby.host.plug()
    return since, at


def within(at: float, windows: list[tuple[float, float]]) -> bool:
    """Whether what was acknowledged then may be lost; an acknowledgement is noted a moment after its commit."""
    return any(since - 0.5 <= at <= until + 0.5 for since, until in windows)


def judged(
    arena: Arena, said: list[tuple[str, int, float]], windows: list[tuple[float, float]], took: list[float],
    *, synchronous: bool,
) -> Outcome:  # fmt: skip
    """What was acknowledged must be there; without a synchronous standby, what was acknowledged outside the windows."""
    with arena.connect() as connection:
        rows = connection.execute(
            "SELECT j.id, j.idempotency_key AS key, p.worker FROM loracomp.job AS j"
            " LEFT JOIN loracomp.prediction AS p ON p.job_id = j.id"
        ).fetchall()
    jobs = {row["key"]: row["id"] for row in rows}
    keys = {key for key, _, _ in said}
    arena.accepted = len(keys)
    moved = {(key, job) for key, job, _ in said if jobs.get(key) != job}
    outside = [key for key, job, at in said if jobs.get(key) != job and (synchronous or not within(at, windows))]
    answers = {row["id"]: row["worker"] for row in rows}
    gone = [(worker, job) for worker, job in recorded(arena) if answers.get(job) != worker]
    again = len(recorded(arena)) - len({job for _, job in recorded(arena)})
    unclaimed = arena.one(UNCLAIMED)
    assert unclaimed == 0, f"{unclaimed} answers were written by a worker that had not claimed the job here"
    account = arena.account()
    doubled = account.doubled - (0 if synchronous else again)
    lost = account.lost + len(outside) + (len(gone) if synchronous else 0)
    note = f"{len(windows)} failovers"
    if not synchronous:
        note += (
            f", standby {BEHIND_S:g} s behind: {len(moved)} acknowledged jobs lost, all of that time, and submitted"
            f" again by their keys; {len(gone)} answers lost and asked again"
        )
    return Outcome(len(keys), lost, doubled, took, note)


UNCLAIMED = """
SELECT count(*) FROM (
    SELECT new_status, worker, lag(new_status) OVER w AS before, lag(worker) OVER w AS claimed_by
    FROM loracomp.audit_event WHERE entity = 'job' WINDOW w AS (PARTITION BY entity_id ORDER BY id)
) AS e WHERE new_status = 'succeeded' AND (before IS DISTINCT FROM 'running' OR claimed_by IS DISTINCT FROM worker)
"""
"""Answers whose worker had not claimed the job on this timeline."""

TRIALS: dict[str, Trial] = {
    "more_hosts": more_hosts,
    "far_hosts": far_hosts,
    "host_cut_off": host_cut_off,
    "failover_synchronous": failover_synchronous,
    "failover_asynchronous": failover_asynchronous,
}
