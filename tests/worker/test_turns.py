"""Jobs that must run alone and the others take turns, also on a worker that is always busy."""

import time

import pytest

from job_data import add_jobs, job, statuses
from job_fixtures import cleared_connection, database_of_a_module  # noqa: F401
from loracomp.database.connections import Connection
from loracomp.worker.turns import Turns
from worker_helpers import wait_until, working

STEP_S = 0.05


class Made:
    """A worker in made-up time: always busy with others' jobs, each of which takes `job_s`, as suspects do."""

    def __init__(self, job_s: float, suspects: int) -> None:
        self.turns, self.job_s, self.suspects = Turns(0), job_s, suspects
        self.held: list[float] = []
        self.alone = False
        self.answered = 0
        self.ended_at: list[float] = []

    def run(self, until: float) -> None:
        for step in range(int(until / STEP_S)):
            now = step * STEP_S
            for end in [each for each in self.held if each <= now]:
                self.held.remove(end)
                if self.alone:
                    self.alone = False
                    self.ended_at.append(now)
                else:
                    self.answered += 1
            self.claim(now)

    def claim(self, now: float) -> None:
        holds = bool(self.held)
        overtakes = self.turns.overtakes(now, holds=holds)
        got = 0
        if self.alone or len(self.held) >= 8:
            pass
        elif self.suspects and not overtakes:
            if not holds:
                self.alone, self.suspects, got = True, self.suspects - 1, 1
        else:
            got = 2
        self.turns.note(now, holds=holds, claimed=got)
        # Not all at the same time.
        self.held += [now + self.job_s * (1 + number / 4) for number in range(got)]


@pytest.mark.parametrize("job_s", [0.1, 1, 10, 100])
def test_suspects_get_their_turn_and_the_others_keep_theirs(job_s: float):
    made, alone = Made(job_s, suspects=3), Made(job_s, suspects=0)
    made.run(150 * job_s + 20)
    alone.run(150 * job_s + 20)
    assert len(made.ended_at) == 3
    assert made.ended_at[2] < 40 * job_s + 10
    assert made.answered > 0.7 * alone.answered


def test_where_nothing_must_run_alone_a_worker_never_stops_claiming():
    made = Made(1, suspects=0)
    made.run(1000)
    made.suspects = 1  # after all that time
    assert not made.turns.overtakes(1000, holds=True)


def test_an_idle_worker_lets_a_suspect_go_first():
    turns = Turns(0)
    for now in (0, 0.5, 60, 61, 600):
        assert not turns.overtakes(now, holds=False)
        turns.note(now, holds=False, claimed=0)


def test_jobs_of_a_dead_worker_are_answered_while_another_workers_queue_is_full(connection: Connection, database: str):
    """They stand before all others, and hide none of them."""
    suspects = add_jobs(connection, "s", "t", "u", submitted_by="ann", expired_leases=1)
    add_jobs(connection, *["sleep 0.02"] * 600, submitted_by="bob")

    def queued() -> int:
        return list(statuses(connection).values()).count("queued")

    with working(database, batch_size=4):
        wait_until(lambda: {job(connection, each)["status"] for each in suspects} == {"succeeded"}, 30)
        assert queued() > 50
        (urgent,) = add_jobs(connection, "urgent", priority=1, submitted_by="cid")
        more = add_jobs(connection, "v", submitted_by="ann", expired_leases=1, priority=9)
        began = time.monotonic()
        wait_until(lambda: job(connection, urgent)["status"] == "succeeded", 10)
        wait_until(lambda: job(connection, more[0])["status"] == "succeeded", 10 + time.monotonic() - began)
        assert queued() > 0
        connection.execute(
            "SELECT loracomp.cancel_jobs(ids => ARRAY(SELECT id FROM loracomp.job WHERE status = 'queued'))"
        )
