"""A long table of Bob's beside the tables of others that change all the time: how fast, and whether, it is answered.

There is no model. Bob's rows that pass his filter and rows that don't stand in a random order. He rewrites all of them
now and then, so that the view has many rows to look at. A worker that drains ends when it thinks that nothing is left.
"""

import json
import random
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from job_data import BASE, KEEPER, add_base_model, record
from loracomp.database import connections as db
from loracomp.database.connections import Connection, row_of
from loracomp.database.queries import QUERIES
from loracomp.worker.leases import claim_jobs, what_waits
from rounds import Round
from statements import CHANGES, MADE_AGAIN, OWN_TABLES, WRITES
from town import Ground, connect, login

SIZES = (100, 1_000, 1_000, 5_000, 5_000, 20_000)
PAGE = 200
"""Rows that a call of the keeper asks at a time."""
MORE_CALLS = 30
DISTURBED = 4
"""How often others' tables are changed between two calls of the keeper."""
LONG_CHOICES = [f"{number:03}{'c' * 997}" for number in range(1000)]
LONG_PROMPTS = ("{body}", "{body}", "{{ x" * 20_000 + "{body}", "{body}" * 999, "{{ x" * 1_000_000 + "{body}")
SLOW_S = 10.0
"""Seconds after which a query of the view is too slow. It takes a tenth of a second for 20,000 rows."""
ADD: LiteralString = """
INSERT INTO bobs_rows SELECT i, 'word ' || i, i %% %(every)s + (i / %(run)s) %% 2 FROM generate_series(1, %(rows)s) AS i
"""
EXPECTED = "SELECT id, CASE WHEN mark = ANY (%s) THEN split_part(body, ' ', 2) END AS answer FROM bobs_rows"
SHOWN = "SELECT id, status, answer FROM bobs_view"


@dataclass
class Backlog:
    """Bob's table, his neighbours, and a worker with its keeper."""

    url: str
    draw: random.Random
    owner: Connection
    people: dict[str, Connection]
    done: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def begin(self, rows: int) -> None:
        self.rows, self.passing = rows, self.draw.choice(([1], [1], [1, 2], [0], [0, 1, 2]))
        self.neighbours = OWN_TABLES[: self.draw.choice((0, 0, 1, 3))]
        for name in self.neighbours:
            self.declare(name)
        bob = self.people["bob"]
        bob.execute("CREATE TABLE bobs_rows (id integer PRIMARY KEY, body text, mark integer)")
        about = {
            "rows": rows,
            "every": self.draw.choice((1, 1, 2)),
            "run": self.draw.choice((10, rows // 2, rows // 2)),
        }
        bob.execute(ADD, about)
        bob.execute(
            "SELECT loracomp.create_answers('bobs_view', 'bobs_rows', 'Say {body}', filter => %s::jsonb)",
            [json.dumps({"mark": self.passing})],
        )
        self.done.append(f"bob declares his rows: {about}, passing {self.passing}")

    def declare(self, name: str) -> None:
        """Alice declares a table, which may be gone or spoilt; sometimes with long choices, or a prompt that is as
        long as may be, or longer."""
        table, view = sql.Identifier("public", name), sql.Identifier("public", f"view of {name}")
        names = {"view": sql.Literal(view.as_string()), "source": sql.Literal(table.as_string()), "name": view}
        choices = self.draw.choice((None, None, LONG_CHOICES))
        statement = sql.SQL(MADE_AGAIN).format(table=table, choices=sql.Literal(choices), **names)
        self.people["alice"].execute(statement)
        self.done.append(f"alice declares {name} with {len(choices or ())} long choices")
        prompt = self.draw.choice(LONG_PROMPTS)
        with suppress(psycopg.Error):  # it may be too long
            self.people["alice"].execute("SELECT loracomp.alter_answers(%s, %s)", [view.as_string(), prompt])
            self.done.append(f"alice gives {name} a prompt of {len(prompt)} characters")

    def disturb(self) -> None:
        """Alice writes to a table or changes it; it may be gone, or the statement may not fit it any more."""
        if not self.neighbours:
            return
        table = self.draw.choice(self.neighbours)
        if self.draw.random() < 0.1:
            self.declare(table)
            return
        text = self.draw.choice((*WRITES, *CHANGES))
        known = {"table": sql.Identifier("public", table), "body": sql.Literal("a"), "number": sql.Literal(3)}
        statement = sql.SQL(text).format(**known)
        try:
            self.people["alice"].execute(statement)
        except psycopg.Error as error:
            self.done.append(f"alice: {statement.as_string(None)[:200]}: {error.sqlstate}")
        else:
            self.done.append(f"alice: {statement.as_string(None)[:200]}")

    def rewrite(self) -> None:
        bob = self.people["bob"]
        self.counts["rows"] += self.rows
        bob.execute("UPDATE bobs_rows SET body = body || ' more', mark = %s - mark", [self.draw.choice((1, 2, 3))])
        for table in self.draw.sample(("answer_hint", "answer_row", "job"), self.draw.randint(0, 3)):
            self.owner.execute(f"ANALYZE loracomp.{table}".encode())
        self.done.append("bob rewrites all his rows")

    def ask_again(self) -> None:
        self.people["bob"].execute("SELECT loracomp.alter_answers('bobs_view', again => true)")
        self.done.append("bob asks all rows again")

    def look(self) -> None:
        """The view is as fast as ever, however much of it waits."""
        for query in ("SELECT status, count(*) FROM bobs_view GROUP BY status", "SELECT * FROM bobs_view WHERE id = 7"):
            began = time.monotonic()
            self.people["bob"].execute(query.encode())
            took = time.monotonic() - began
            assert took < SLOW_S, f"{query}: {took:.1f} s"

    def work(self) -> bool:
        """Let the keeper take each of its steps, and a worker answer a batch; returns whether there was any to do."""
        handled = sum(int(*row_of(self.owner, QUERIES[step]).values()) for step in KEEPER)
        jobs = claim_jobs(self.owner, worker="w", base_model=BASE, batch_size=2 * PAGE, lease_s=60)
        rows = [{"job_id": job.id, "output": word(job.prompt), "adapter_sha256": []} for job in jobs]
        record(self.owner, {job.id: job.lease_token for job in jobs}, rows)
        self.counts["jobs"] += len(jobs)
        return bool(handled or jobs)

    def unanswered(self) -> list[Any]:
        bob = self.people["bob"]
        answers = {row["id"]: (row["status"], row["answer"]) for row in bob.execute(SHOWN)}
        wrong = [
            (row["id"], answers.get(row["id"]), row["answer"])
            for row in bob.execute(EXPECTED, [self.passing])
            if answers.get(row["id"]) != (row["answer"] and ("answered", row["answer"]))
        ]
        return wrong

    def finish(self) -> None:
        """Bob's rows are answered in about as many calls of the keeper as they have pages, whatever the others do."""
        most = 4 * (self.rows // PAGE) + MORE_CALLS
        for call in range(most):
            if not self.work() and not any(what_waits(self.owner, BASE)):
                wrong = self.unanswered()
                assert not wrong, f"a worker that drains ends, and {len(wrong)} rows are wrong: {wrong[:5]}"
                return
            if call % 10 == 9 and not self.unanswered():
                return  # only others' rows wait
            for _ in range(DISTURBED):
                self.disturb()
        wrong = self.unanswered()
        assert not wrong, f"after {most} calls of the keeper {len(wrong)} rows of bob's wait: {wrong[:5]}"


def word(prompt: str) -> str:
    words = prompt.split()
    return words[2] if words[:2] == ["Say", "word"] else words[-1]


def backlogs(ground: Ground, seed: int, size: float = 1) -> Round:
    """One long table. Its log of statements is what a failure is told with."""
    made, draw = Round(), random.Random(seed)
    with ground.empty() as url, db.connect(url) as owner:
        add_base_model(owner)
        owner.execute("SET statement_timeout = '20s'")
        owner.execute(f"GRANT CREATE ON SCHEMA public TO {login('alice')}, {login('bob')}".encode())
        people = {name: connect(url, name, f"-c statement_timeout={SLOW_S:.0f}s") for name in ("alice", "bob")}
        backlog = Backlog(url, draw, owner, people)
        try:
            backlog.begin(draw.choice(SIZES if size >= 1 else SIZES[:3]))
            backlog.finish()
            for move in draw.choices([backlog.rewrite, backlog.ask_again], k=draw.randint(0, 2)):
                move()
                backlog.look()
                backlog.finish()
        except (AssertionError, psycopg.Error) as error:
            made.failures += [f"{type(error).__name__}: {error}", *backlog.done[-40:]]
        finally:
            for connection in people.values():
                connection.close()
    made.counts.update(backlog.counts)
    made.counts.update(rounds=1)
    return made
