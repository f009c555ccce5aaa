"""Worker hosts: how many, how far away, and cut off. Each trial takes a lab and says what was lost and doubled."""

import time

from arena import Arena
from lab import MODEL_S, Lab, Outcome, answered_a_second, wait_for_answers

WORST = "SELECT day, task, ordinal, count(*), avg(similarity) FROM bi.retrieved_example GROUP BY 1, 2, 3"
"""The heaviest query of an analyst that we found."""
HISTORY = 4_000
"""Answered jobs that an analyst reads; each retrieved 30 examples."""


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


def standby(lab: Lab) -> Outcome:
    """Commits wait for the standby, on which an analyst runs the heaviest query of bi without end: at least 0.95."""
    with lab.arena() as arena:
        arena.insert(HISTORY)
        (history,) = lab.start_workers(arena, [lab.host("history")], MODEL_S=0, BATCH_SIZE=64)
        wait_for_answers(arena, 300)
        history.terminate()
        history.wait(60)
        lab.start_workers(arena, [lab.host(f"worker{number}") for number in range(4)], MODEL_S=MODEL_S)
        rates = {"no commit waits": measured(arena, lab)}
        with lab.pair.commits_wait():
            rates["commits wait"] = measured(arena, lab)
            with lab.analyst(arena, lab.host("analyst"), WORST) as answers:
                rates["and an analyst reads"] = measured(arena, lab)
                queries = len(answers())
            wait_for_answers(arena)
        assert queries, "the analyst had no answer"
        shares = {case: rate / rates["no commit waits"] for case, rate in rates.items()}
        said = ", ".join(f"{case}: {rates[case]:.1f} jobs/s ({share:.2f})" for case, share in shares.items())
        missed = {f"{case}: {share:.2f}": share < 0.95 for case, share in shares.items()}
        return closed(arena, f"{said}; {queries} queries over {HISTORY:,} jobs", missed=missed)


def measured(arena: Arena, lab: Lab) -> float:
    """Measure the rate after a few batches, in which the claims of a new worker may meet those of the other workers."""
    arena.insert(512)
    time.sleep(4 * MODEL_S)
    return answered_a_second(arena, lab.size / 10)


def closed(arena: Arena, note: str, *, missed: dict[str, bool] | None = None) -> Outcome:
    """Return the account of an arena whose jobs have all ended; missed goals fail the trial."""
    account = arena.account()
    found = [goal for goal, is_missed in (missed or {}).items() if is_missed]
    return Outcome(account.jobs, account.lost, account.doubled, note="; ".join([note, *(f"MISSED {g}" for g in found)]))
