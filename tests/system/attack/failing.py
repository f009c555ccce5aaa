"""Each statement that a worker and its keeper send, and each call of the engine, fails once, in each way.

The statements are those of queries.sql that a worker is seen to send, so a new one is tried without being named here.
A worker that freezes after a reply is a session that stays open and silent for the server, and another worker goes on.
"""

import os
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from socket import socketpair
from threading import Event, Thread, current_thread
from typing import Any
from unittest.mock import patch
from zlib import crc32

import psycopg
from psycopg.pq import PipelineStatus

from loracomp.database import connections as db
from loracomp.database.queries import QUERIES
from loracomp.worker import stages
from rounds import Round
from town import Ground, Town, connect, town_of

NAMES = {text: name for name, text in QUERIES.items()}
RAISES = "DO $$ BEGIN RAISE 'planted' USING ERRCODE = 'data_exception'; END $$"
HANGS = "SELECT pg_sleep(600)"
WAYS = ("raises", "hangs", "is lost before", "is lost after", "freezes")
CALLS = [name for name, made in vars(stages.EngineInterface).items() if callable(made) and not name.startswith("_")]
"""The methods of an engine that a worker calls."""
SLOW_S = 4.0
"""Seconds for which a hanging call hangs, which is longer than a statement may take."""
PLANTED_A_ROUND = 5
WARM = 9
"""Number of times that Bob is served before the failures begin. He needs eight corrections, because only then does the
keeper measure corrections."""
FIRED_S = 4.0
TOLD_S = 10.0
"""Seconds within which a failure must be reported. Cancelling a statement that hangs takes three of them."""


@dataclass
class Plan:
    """What is to fail, in which way, and whether it has failed."""

    name: str = ""
    way: str = ""
    sent: set[str] = field(default_factory=set)
    """Names of all statements that were seen."""
    fired: Event = field(default_factory=Event)
    where: str = ""
    """The thread that met the failure, and its call stack."""
    frozen: list[int] = field(default_factory=list)
    """File descriptors of connections that stay open and silent."""

    def take(self, name: str) -> str:
        """Return the way in which this statement is to fail now; empty if it is not to fail."""
        if name != self.name or self.fired.is_set():
            return ""
        calls = [f"{each.name}:{each.lineno}" for each in traceback.extract_stack(limit=14)[:-2]]
        self.where = f"{current_thread().name}: {' '.join(calls)}"
        self.fired.set()
        return self.way


def steps(ground: Ground, seed: int, size: float = 1) -> Round:
    """Plant some failures, one after the other. After each, Bob must be served in time, and the failure be reported."""
    made, plan = Round(), Plan()
    with failing(plan), town_of(ground) as town:
        for _ in range(round(size * WARM)):
            made.failures += [f"before the failures: {line}" for line in town.is_served()]
        disturb(town)
        town.walter.leave()
        town.walter.hire()
        made.failures += [f"after a restart: {line}" for line in town.is_served()]
        pairs = [(name, way) for name in sorted(plan.sent) for way in WAYS]
        pairs += [(call, way) for call in CALLS for way in WAYS[:2]]
        pairs.sort(key=lambda pair: crc32(repr(pair).encode()))
        offset = seed * PLANTED_A_ROUND  # so that rounds with neighbouring seeds plant other failures
        for place in range(round(size * PLANTED_A_ROUND)):
            if made.failures:
                break
            fail(town, plan, *pairs[(offset + place) % len(pairs)], made)
        if not made.failures:
            town.watch.lines.clear()
            made.failures += [*town.is_served(), *town.is_whole()]
        made.counts.update(served=town.counts["served"], rounds=1, statements=len(plan.sent))
    for descriptor in plan.frozen:
        os.close(descriptor)
    return made


def fail(town: Town, plan: Plan, name: str, way: str, made: Round) -> None:
    """Let a statement or call fail, make the worker use it, and check what follows."""
    town.watch.lines.clear()
    plan.name, plan.way = name, way
    plan.fired.clear()
    engine = failing_call(town, plan) if name in CALLS else None
    found: list[str] = []
    with engine or nullcontext():
        found += serve(town)
        if not plan.fired.wait(0):
            disturb(town)
            plan.fired.wait(FIRED_S)
        if not plan.fired.is_set():
            town.walter.leave()
            ended = town.walter.ended
            town.walter.hire()
            found += serve(town)
            if ended and "planted" in ended:
                town.watch.lines.append(ended)
        found += serve(town)  # a recorder's error shows when more jobs have ended
    made.counts["failures planted"] += 1
    if not plan.fired.is_set():
        made.counts["not reached"] += 1
    elif not found and not is_told(town, plan):
        found.append(f"nobody is told of what {plan.where} met; the worker logged {town.watch.lines[-20:]}")
    plan.name = ""
    made.failures += [f"{name} {way}: {line}" for line in found]


def serve(town: Town) -> list[str]:
    """Check that Bob is served, if need be by a worker that was started again, as a process manager would do."""
    stop = Event()

    def manage() -> None:
        while not stop.wait(0.1):
            if ended := town.walter.ended:
                town.watch.lines.append(f"ended with {ended}")
                town.walter.hire()

    manager = Thread(target=manage)
    manager.start()
    try:
        return town.bob.is_served()
    finally:
        stop.set()
        manager.join()


def disturb(town: Town) -> None:
    """Add work that makes a worker do more than serve: a job that fails, a job that is cancelled, and a slow job."""
    with connect(town.url, "alice") as alice:
        alice.execute(
            "INSERT INTO loracomp.job (prompt, max_new_tokens) VALUES (repeat('long ', 400), 4), ('slow', 200)"
        )
        time.sleep(0.3)
        alice.execute("SELECT loracomp.cancel_jobs(ARRAY(SELECT id FROM loracomp.job WHERE prompt = 'slow'))")


def is_told(town: Town, plan: Plan) -> bool:
    """Return whether the failure was reported: in the worker's log, by the way the worker ended, or in the keeper's
    notes."""
    if plan.name in CALLS and plan.way == "hangs":  # the engine is only slow, so nothing has failed
        return True
    words = ("timeout", "no answer within", "takes too long") if plan.way == "hangs" else ("planted",)
    deadline = time.monotonic() + TOLD_S
    with db.connect(town.url, vectors=False) as owner:
        while time.monotonic() < deadline:
            notes = [str(row["error"]) for row in owner.execute("SELECT error FROM loracomp.keeper_step")]
            ended = [town.walter.ended or ""]
            if any(word in line for line in [*town.watch.lines, *notes, *ended] for word in words):
                return True
            time.sleep(0.1)
    return False


@contextmanager
def failing(plan: Plan) -> Iterator[None]:
    """Within this context the worker's statements may fail as planned."""
    execute, leave = psycopg.Cursor.execute, psycopg.Pipeline.__exit__
    ending: dict[int, str] = {}
    """How connections are to fail, by the pipeline's connection, when the replies of their pipeline have come."""

    def planned(cursor: psycopg.Cursor[Any], query: Any, *arguments: Any, **given: Any) -> Any:
        connection = cursor.connection
        name = NAMES.get(query) if isinstance(query, str) else None
        if name is None or "walter" not in (connection.info.parameter_status("application_name") or ""):
            return execute(cursor, query, *arguments, **given)
        plan.sent.add(name)
        way = plan.take(name)
        if way == "raises":
            return execute(cursor, RAISES)
        if way == "hangs":
            return execute(cursor, HANGS)
        if way == "is lost before":
            lose(connection)
        result = execute(cursor, query, *arguments, **given)
        if way in ("is lost after", "freezes"):
            if connection.info.pipeline_status == PipelineStatus.OFF:
                end(connection, way)
            ending[id(connection.pgconn)] = way
        return result

    def left(pipeline: psycopg.Pipeline, *error: Any) -> Any:
        result = leave(pipeline, *error)
        if way := ending.pop(id(pipeline.pgconn), ""):
            end(pipeline._conn, way)
        return result

    def end(connection: psycopg.Connection[Any], way: str) -> None:
        if way == "freezes":
            plan.frozen.append(freeze(connection))
        lose(connection)

    with patch.object(psycopg.Cursor, "execute", planned), patch.object(psycopg.Pipeline, "__exit__", left):
        yield


def freeze(connection: psycopg.Connection[Any]) -> int:
    """Cut a connection off so that the server gets no word of it; returns a descriptor that keeps its session open."""
    kept = os.dup(connection.fileno())
    nowhere, far_end = socketpair()
    with nowhere, far_end:
        os.dup2(nowhere.fileno(), connection.fileno())
    return kept


def lose(connection: psycopg.Connection[Any]) -> None:
    connection.close()
    raise psycopg.OperationalError("planted: the connection is lost")


@contextmanager
def failing_call(town: Town, plan: Plan) -> Iterator[None]:
    """Within this context a call of the engine's fails once."""
    engine = town.walter.engine
    whole = getattr(engine, plan.name)

    def call(whole: Callable[..., Any], *arguments: Any, **given: Any) -> Any:
        way = plan.take(plan.name)
        if way == "raises":
            raise ValueError("planted")
        if way == "hangs":
            time.sleep(SLOW_S)
        return whole(*arguments, **given)

    name = plan.name
    setattr(engine, name, partial(call, whole))
    try:
        yield
    finally:
        setattr(engine, name, whole)
