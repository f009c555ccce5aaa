"""Faults of declarations: an application writes to a table while workers, keeper or server die.

At the end, each row must have the answer to its current prompt, and no prompt may have been asked twice.
"""

import random
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from itertools import count
from threading import Event

import psycopg

from arena import Arena, Server
from dying_worker import POINTS
from loracomp.database.connections import Connection
from loracomp.errors import DatabaseUnavailableError

# Each death charges an attempt, and no job may fail for that alone.
DECLARE = """
ALTER TABLE loracomp.job ALTER max_attempts SET DEFAULT 100;
CREATE TABLE public.notes (id integer PRIMARY KEY, body text NOT NULL);
CREATE TABLE public.asked (prompt text NOT NULL);
CREATE FUNCTION public.note_asked() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO public.asked SELECT j.prompt FROM new_job AS j; RETURN NULL; END $$;
CREATE TRIGGER note_asked AFTER INSERT ON loracomp.job REFERENCING NEW TABLE AS new_job
    FOR EACH STATEMENT EXECUTE FUNCTION public.note_asked();
INSERT INTO public.notes SELECT i, 'old text ' || i FROM generate_series(1, {rows}) AS i;
SELECT loracomp.create_answers('said', 'public.notes', 'form 1 {{body}}', max_new_tokens => {tokens})
"""
WRITES = (
    "INSERT INTO notes VALUES (%(id)s, %(body)s) ON CONFLICT (id) DO UPDATE SET body = excluded.body",
    "UPDATE notes SET body = %(body)s WHERE id = %(id)s",
    "DELETE FROM notes WHERE id = %(id)s",
)
OPEN = "SELECT count(*) FROM public.said WHERE status <> 'answered'"
WRONG = """
SELECT count(*) FROM public.notes AS n FULL JOIN public.said AS s USING (id)
WHERE s.status IS DISTINCT FROM 'answered' OR s.answer IS NULL
    OR NOT %s AND s.answer <> upper((SELECT replace(a.prompt, '{body}', n.body) FROM loracomp.declaration AS a))
"""
TWICE = "SELECT count(*) FROM (SELECT FROM public.asked GROUP BY prompt HAVING count(*) > 1) AS twice"
CUT_OFF = (
    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database()"
    " AND state = 'active' AND query LIKE %s AND pid <> pg_backend_pid()"
)
SWEEPS = "SELECT count(*) FROM loracomp.declaration WHERE scan IS NOT NULL"


def workers_of_answers(_: Server, arena: Arena) -> str:
    """Workers die at each step of a batch while an application writes to the table."""

    def harm() -> None:
        points = deque(POINTS)
        workers = [arena.start_worker(BATCH_SIZE=8, die_at=points.popleft()) for _ in range(2)]
        while workers:
            arena.wait(lambda: any(process.poll() is not None for process in workers))
            for process in [process for process in workers if process.poll() is not None]:
                assert process.returncode == -signal.SIGKILL, arena.log(process)
                workers.remove(process)
                if points:
                    workers.append(arena.start_worker(BATCH_SIZE=8, die_at=points.popleft(), die_after=3))
        arena.start_workers(2)

    return f"{len(POINTS)} kills; {while_written(arena, arena.size, harm)}"


def server_of_answers(server: Server, arena: Arena) -> str:
    """The server crashes while an application writes to a table that has answers, four times."""

    def harm() -> None:
        arena.start_workers(2, BATCH_SIZE=8)
        for seconds in (0.1, 1.0, 2.0, 3.0):
            time.sleep(seconds)
            server.crash_and_restart()

    return while_written(arena, 4 * arena.size, harm)


def backfill_cut(server: Server, arena: Arena) -> str:
    """The keeper is cut off twenty times during a backfill; then the server crashes."""
    cuts: list[int] = []

    def harm() -> None:
        arena.start_workers(2, BATCH_SIZE=64, MODEL_S=0)
        while sum(cuts) < 20 and arena.one(SWEEPS):
            cuts.append(arena.one(CUT_OFF, "%loracomp.ask_rows%"))
        server.crash_and_restart()

    remark = while_written(arena, 20 * arena.size, harm)
    return f"{sum(cuts)} calls cut off; {remark}"


def alteration_cut(server: Server, arena: Arena) -> str:
    """alter_answers changes the prompt ten times, and is cut off before, during or after its commit."""

    def harm() -> None:
        arena.start_workers(2, BATCH_SIZE=16)
        drawn = random.Random(1)
        for form in range(2, 12):
            with closing(arena.connect()) as altering:
                alter = f"SELECT loracomp.alter_answers('said', prompt => 'form {form} {{body}}')"
                altering.pgconn.send_query(f"BEGIN; {alter}; SELECT pg_sleep(0.1); COMMIT".encode())
                time.sleep(drawn.uniform(0, 0.3))
                if form % 5:
                    arena.one("SELECT pg_terminate_backend(%s)", altering.info.backend_pid)
                else:
                    server.crash_and_restart()

    remark = while_written(arena, arena.size, harm)
    forms = arena.one("SELECT count(DISTINCT split_part(prompt, ' ', 2)) FROM public.asked")
    return f"{forms} of 11 prompts came to be asked; {remark}"


FAULTS = {each.__name__: each for each in (workers_of_answers, server_of_answers, backfill_cut, alteration_cut)}


def while_written(arena: Arena, rows: int, harm: Callable[[], None]) -> str:
    """Declare a table with this many rows, cause faults while an application writes to it, and check the rows at the
    end."""
    with arena.connect() as connection:
        connection.execute(DECLARE.format(rows=rows, tokens=arena.columns["max_new_tokens"]).encode())
    done = Event()
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write, arena, done)
        try:
            harm()
        finally:
            done.set()
    written = writing.result()
    arena.fault_ends()
    arena.one("INSERT INTO public.notes VALUES (0, 'the last text') RETURNING id")
    arena.wait(lambda: not arena.one(OPEN), 300)
    wrong, twice = arena.one(WRONG, arena.model == "real"), arena.one(TWICE)
    assert (wrong, twice) == (0, 0), f"{wrong} rows without their answer, {twice} prompts asked twice"
    arena.accepted = arena.one("SELECT count(*) FROM loracomp.job")
    asked = arena.one("SELECT count(*) FROM public.asked")
    return f"{arena.one('SELECT count(*) FROM public.notes')} rows after {written} statements; {asked} prompts asked"


def write(arena: Arena, done: Event) -> int:
    """Write to the table until the fault is over, even if connections are cut off; returns the number of statements
    that succeeded."""
    texts = count()
    while not done.is_set():
        with suppress(DatabaseUnavailableError), closing(arena.connect()) as connection:
            try:
                write_by(connection, texts, done)
            except psycopg.OperationalError:
                if not connection.broken:
                    raise
        time.sleep(0.05)
    return next(texts)


def write_by(connection: Connection, texts: Iterator[int], done: Event) -> None:
    """Each statement writes a text that was never there."""
    while not done.is_set():
        text = next(texts)
        drawn = random.Random(text)
        row = {"id": drawn.randrange(1, 100), "body": f"text {text}"}
        connection.execute(drawn.choice(WRITES).encode(), row)
        time.sleep(0.005)
