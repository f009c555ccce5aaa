"""Faults of the keeper: the keeper dies, is cut off or hangs, while an application writes to a table.

`declarations.while_written` and the arena's account check what must hold at the end.
"""

import signal
import time
from functools import partial
from typing import Any

from arena import Arena, Server
from declarations import while_written
from dying_worker import KEEPING

CLAIMED_BY_NOBODY = """
SELECT count(*) FROM loracomp.base_model AS b
CROSS JOIN LATERAL loracomp.claim_jobs('gone', b.name, 4, '1 second') WHERE b.is_default
"""
ELECTED = "SELECT coalesce(max(worker), '') FROM loracomp.keeper WHERE keeps_until > now()"
CUT_KEEPERS = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
WHERE datname = current_database() AND application_name LIKE %s
"""
WITHIN_S = 10
"""Seconds within which another worker must be elected: a lease of five seconds, a check every second and a half, and
some slack."""


def keeper_killed(_: Server, arena: Arena) -> str:
    """The keeper gets SIGKILL in each of its steps, before the step's commit and after it."""

    def harm() -> None:
        for point in KEEPING:
            process = arena.start_worker(BATCH_SIZE=8, die_at=point)
            deadline = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < deadline:
                arena.one(CLAIMED_BY_NOBODY)  # what rescue_jobs and then wake_jobs have to do
                time.sleep(0.5)
            assert process.poll() == -signal.SIGKILL, f"{point}: {arena.log(process)}"
        arena.start_workers(2)

    return f"{len(KEEPING)} kills; {while_written(arena, arena.size, harm)}"


def keeper_cut_off(_: Server, arena: Arena) -> str:
    """The keeper's connection is cut, twenty times."""
    cuts: list[int] = []

    def harm() -> None:
        arena.start_workers(2, BATCH_SIZE=8)
        for _ in range(20):
            cuts.append(arena.one(CUT_KEEPERS, "loracomp keeper %"))
            time.sleep(0.2)

    remark = while_written(arena, arena.size, harm)
    return f"{sum(cuts)} connections cut; {remark}"


def keeper_hangs(_: Server, arena: Arena) -> str:
    """The keeper's process stops, and goes on once another is elected; then a table that its steps need is locked."""
    waited: list[float] = []

    def harm() -> None:
        workers = arena.start_workers(2, BATCH_SIZE=8)
        for _ in range(2):
            arena.wait(lambda: arena.one(ELECTED))
            first = arena.one(ELECTED)
            process: Any = workers[int(first.removeprefix("w"))]
            process.send_signal(signal.SIGSTOP)
            began = time.monotonic()
            arena.wait(partial(is_another, arena, first))
            waited.append(time.monotonic() - began)
            process.send_signal(signal.SIGCONT)
        with arena.connect() as connection, connection.transaction():
            connection.execute("LOCK TABLE loracomp.declaration IN EXCLUSIVE MODE")
            time.sleep(8)  # longer than a step may take

    remark = while_written(arena, arena.size, harm)
    assert max(waited) < WITHIN_S, f"another worker was elected after {max(waited):.1f} s"
    return f"another was elected within {max(waited):.1f} s; {remark}"


def is_another(arena: Arena, than: str) -> bool:
    """Return whether another worker than this one is elected."""
    return arena.one(ELECTED) not in ("", than)


FAULTS = {each.__name__: each for each in (keeper_killed, keeper_cut_off, keeper_hangs)}
