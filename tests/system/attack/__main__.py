"""`make attack`: three logins send random statements while workers serve another submitter.

A submitter, an analyst and a worker's login attack. It fails if a job or a declared row of the other submitter was late
or lost, if one of that submitter's statements failed, if a worker ended, if a role, a right or a function of loracomp
has changed, or if a report, a view or an administrator's function raises an error afterwards.
"""

import multiprocessing
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from statistics import median
from typing import Annotated, Any

import psycopg
import typer
from psycopg import sql
from psycopg.conninfo import make_conninfo
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from arena import Arena, own_server
from intruder import PATIENCE, Intruder, attack
from statements import OTHER_MODEL, OWN_TABLES

ROLES = {"mallory": "submitter", "ana": "analyst", "wendy": "worker", "walter": "worker", "bob": "submitter"}
"""Mallory, Ana and Wendy attack, Walter's workers serve, and Bob is served."""
ATTACKERS = ("mallory", "ana", "wendy")
LATE_S = 5.0
RIGHTS = """
SELECT array_agg(line) FROM (
    SELECT concat_ws(' ', 'role', rolname, rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls)
    FROM pg_roles
    UNION ALL SELECT concat_ws(' ', 'member', roleid::regrole, member::regrole) FROM pg_auth_members
    UNION ALL SELECT concat_ws(' ', 'schema', nspname, nspowner::regrole, a.grantee::regrole, a.privilege_type)
    FROM pg_namespace CROSS JOIN aclexplode(nspacl) AS a WHERE nspname IN ('loracomp', 'bi', 'loracomp_parts')
    UNION ALL SELECT concat_ws(' ', 'function', oid::regprocedure, proowner::regrole, proacl, prosrc, prosqlbody)
    FROM pg_proc WHERE pronamespace::regnamespace::text IN ('loracomp', 'bi') AND prokind = 'f'
    UNION ALL SELECT concat_ws(' ', 'table', oid::regclass, relowner::regrole, relacl)
    FROM pg_class WHERE relnamespace::regnamespace::text IN ('loracomp', 'bi')
) AS s (line)
"""
ENDED_JOBS = """
SELECT j.id, extract(epoch FROM j.finished_at)::float8 AS ended
FROM loracomp.job AS j JOIN loracomp.prediction AS p ON p.job_id = j.id
WHERE j.submitted_by = 'bob' AND j.status = 'succeeded'
"""
ENDED_ROWS = """
SELECT id, extract(epoch FROM answered_at)::float8 AS ended FROM public.bobs_answers WHERE status = 'answered'
"""
DID = """
SELECT
    (SELECT count(*) FROM loracomp.job WHERE submitted_by <> 'bob') AS "jobs of others",
    (SELECT count(*) FROM loracomp.declaration) AS declarations,
    (SELECT count(*) FROM loracomp.audit_event WHERE reason = 'corrected') AS corrections,
    (SELECT count(*) FROM loracomp.job WHERE attempts > 1) AS "tried again",
    (SELECT count(*) FROM loracomp.job WHERE expired_leases > 0) AS "leases that expired"
"""
"""Counts that show how much the attack could disturb."""
VIEWS = """
SELECT n.nspname AS schema, c.relname AS name FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname IN ('loracomp', 'bi') AND c.relkind IN ('v', 'r', 'p')
"""
AFTERWARDS = (
    "SELECT loracomp.refresh_reports()",
    "SELECT * FROM loracomp.check_health()",
    "SELECT * FROM loracomp.database_metrics()",
    "SELECT * FROM loracomp.worker_demand()",
    "SELECT * FROM loracomp.list_answers()",
    "SELECT * FROM loracomp.list_measurements()",
    "SELECT * FROM loracomp.list_tasks()",
    "SELECT * FROM loracomp.maintain()",
    "SELECT count(loracomp.explain_job(id)) FROM loracomp.job",
    "SELECT loracomp.purge_jobs('0 seconds', force => true)",
)
"""What administrators do."""


@dataclass
class Bob:
    """Bob inserts jobs and rows of a declared table at a steady pace, corrects some, and records when he sent each."""

    url: str
    jobs: dict[int, float] = field(default_factory=dict)
    """When each job's INSERT was sent, in seconds since 1970."""
    rows: dict[int, float] = field(default_factory=dict)
    slowest_s: float = 0
    """Of his statements."""
    errors: Counter[str] = field(default_factory=Counter)

    def live(self, until: Callable[[], bool]) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            number = 0
            while not until():
                number += 1
                began = time.time()
                try:
                    self._write(connection, number)
                except psycopg.Error as error:
                    self.errors[str(error)] += 1
                self.slowest_s = max(self.slowest_s, time.time() - began)
                time.sleep(0.25)

    def _write(self, connection: psycopg.Connection[Any], number: int) -> None:
        began = time.time()
        if number % 2:
            inserted = connection.execute(
                "INSERT INTO loracomp.job (prompt, max_new_tokens)"
                " SELECT 'ask ' || i, 1 FROM generate_series(1, 2) AS i RETURNING id"
            )
            self.jobs |= {id_: began for (id_,) in inserted}
        else:
            connection.execute("INSERT INTO bobs_notes VALUES (%s, 'text ' || %s::int)", (number, number))
            self.rows[number] = began
        if number % 8 == 0 and number > 20:
            connection.execute("UPDATE bobs_answers SET correct = 'right' WHERE id = %s", (number - 20,))
            connection.execute("SELECT * FROM loracomp.list_answers()")


def main(
    statements: Annotated[int, typer.Option(help="Statements of each login.", min=1)] = 2000,
    workers: Annotated[int, typer.Option(help="Workers that serve.", min=1)] = 4,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the random statements. Defaults to a new one, which is printed.")
    ] = None,
    login: Annotated[list[str] | None, typer.Option(help=f"Who attacks: {', '.join(ATTACKERS)}.")] = None,
) -> None:
    """Exits with 1 if anything was found."""
    number = random.SystemRandom().randrange(10**6) if seed is None else seed
    console = Console(stderr=True)
    console.print(f"seed {number}")
    with own_server() as server, server.arena(1) as arena:
        prepare(arena)
        found = attacked(arena, statements, workers, number, login or ATTACKERS, console)
    console.print("\n".join(found) or "nothing found", highlight=False, markup=False)
    if found:
        raise typer.Exit(1)


def attacked(
    arena: Arena, statements: int, workers: int, number: int, logins: Sequence[str], console: Console
) -> list[str]:
    """Everything that was found, one line each."""
    # Slow enough for a backlog, so that statements hit jobs that a worker holds.
    arena.start_workers(workers, url=make_conninfo(arena.url, user="walter"), BATCH_SIZE=4, MODEL_S=0.3)
    before = arena.one(RIGHTS)
    bob = Bob(make_conninfo(arena.url, user="bob"))
    began = time.monotonic()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(logins), mp_context=context) as pool, Progress(console=console) as progress:
        bar = progress.add_task("attack", total=None)
        attacks: list[Future[Intruder]] = [
            pool.submit(
                attack, make_conninfo(arena.url, user=name, options=PATIENCE), ROLES[name], number + place, statements
            )
            for place, name in enumerate(logins)
        ]

        def is_over() -> bool:
            progress.advance(bar)
            return all(each.done() for each in attacks)

        bob.live(is_over)
    intruders = {name: each.result() for name, each in zip(logins, attacks, strict=True)}
    console.print(told(intruders, f"attack, {time.monotonic() - began:.0f} s, seed {number}"))
    time.sleep(LATE_S)
    return [
        *judged(arena, bob, console),
        *(f"{name} was told: {answer}" for name, intruder in intruders.items() for answer in intruder.broken),
        *(f"is other than before: {line[:300]}" for line in set(arena.one(RIGHTS)) ^ set(before)),
        *(f"afterwards: {line}" for line in afterwards(arena)),
    ]


def prepare(arena: Arena) -> None:
    """Logins, a second base model, and tables with declarations of both submitters."""
    with arena.connect() as owner:
        for name, role in ROLES.items():
            owner.execute(f"CREATE ROLE {name} LOGIN IN ROLE loracomp_{role}")
        owner.execute(f"GRANT CREATE ON SCHEMA public TO bob, {', '.join(ATTACKERS)}")
        owner.execute(
            "INSERT INTO loracomp.base_model"
            " (name, source, fingerprint, architecture, context_length, parameter_count, modules, is_default)"
            f" VALUES ('{OTHER_MODEL}', 'nowhere', repeat('1', 64), 'Toy', 128, 1, '{{}}', false)"
        )
        owner.execute("SELECT loracomp.set_reported_tags('{country}')")
    with psycopg.connect(make_conninfo(arena.url, user="mallory"), autocommit=True) as mallory:
        for name in OWN_TABLES:
            table = sql.Identifier("public", name)
            mallory.execute(sql.SQL("CREATE TABLE {} (id integer PRIMARY KEY, body text)").format(table))
            mallory.execute(
                sql.SQL("INSERT INTO {} SELECT i, 'text ' || i FROM generate_series(1, 50) i").format(table)
            )
        mallory.execute("SELECT loracomp.create_answers('said', 'notes', 'note {body}', max_new_tokens => 1)")
    with psycopg.connect(make_conninfo(arena.url, user="bob"), autocommit=True) as bob:
        bob.execute("CREATE TABLE bobs_notes (id integer PRIMARY KEY, body text)")
        bob.execute("SELECT loracomp.create_answers('bobs_answers', 'bobs_notes', 'form {body}', max_new_tokens => 1)")


def told(intruders: dict[str, Intruder], title: str) -> Table:
    """How many statements each login sent, and what the server answered."""
    table = Table(title=title, title_justify="left")
    for column in ("login", "statements", "done", "refused", "codes"):
        table.add_column(column, justify="left" if column in ("login", "codes") else "right", overflow="fold")
    for name, intruder in intruders.items():
        total, done = sum(intruder.said.values()), intruder.said["ok"]
        codes = ", ".join(f"{code} {times}" for code, times in intruder.said.most_common(9) if code != "ok")
        table.add_row(name, str(total), str(done), str(total - done), codes)
    return table


def judged(arena: Arena, bob: Bob, console: Console) -> list[str]:
    """Checks Bob's jobs and rows, and the workers that serve him."""
    found = [f"bob's statement failed {times} times: {error}" for error, times in bob.errors.items()]
    with arena.connect() as owner:
        (did,) = owner.execute(DID).fetchall()
        console.print(", ".join(f"{name} {number}" for name, number in did.items()), highlight=False)
        ends = {
            name: {row["id"]: row["ended"] for row in owner.execute(query)}
            for name, query in (("job", ENDED_JOBS), ("declared row", ENDED_ROWS))
        }
    for name, sent in (("job", bob.jobs), ("declared row", bob.rows)):
        waits = {number: ends[name][number] - began for number, began in sent.items() if number in ends[name]}
        late = {number: seconds for number, seconds in waits.items() if seconds > LATE_S}
        console.print(
            f"{name}s of bob: {len(sent)}, {len(sent) - len(waits)} without an answer, {len(late)} late;"
            f" median {median(waits.values() or [0]):.2f} s, slowest {max(waits.values(), default=0):.2f} s"
        )
        found += [f"a {name} has no answer: {number}" for number in sent.keys() - waits.keys()]
        found += [f"a {name} took {seconds:.1f} s: {number}" for number, seconds in late.items()]
    console.print(f"bob's slowest statement: {bob.slowest_s:.2f} s")
    if bob.slowest_s > LATE_S:
        found.append(f"a statement of bob's took {bob.slowest_s:.1f} s")
    return found + [
        f"a worker ended with {process.poll()}: {arena.log(process)[-1500:]}"
        for process in arena.workers
        if process.poll() is not None
    ]


def afterwards(arena: Arena) -> list[str]:
    """Calls of administrators and reads of all views, as each role that may, that raise an error."""
    with arena.connect() as owner:
        owner.execute("SET statement_timeout = '120s'")
        failed = [line for statement in AFTERWARDS for line in raised(owner, sql.SQL(statement))]
        relations = owner.execute(VIEWS).fetchall()
        for name in ROLES:
            owner.execute(sql.SQL("SET SESSION AUTHORIZATION {}").format(sql.Identifier(name)))
            for relation in relations:
                read = sql.SQL("SELECT count(x::text) FROM {} AS x").format(
                    sql.Identifier(relation["schema"], relation["name"])
                )
                failed += [f"{name}: {line}" for line in raised(owner, read) if "permission denied" not in line]
            owner.execute("RESET SESSION AUTHORIZATION")
    return failed


def raised(connection: Any, statement: sql.Composable) -> list[str]:
    """The error of a statement, whose effects are undone."""
    try:
        with connection.transaction(force_rollback=True):
            connection.execute(statement)
    except psycopg.Error as error:
        return [f"{statement.as_string(None)[:200]}: {error}"]
    return []


if __name__ == "__main__":
    typer.run(main)
