"""A login that sends random statements, in its session and in transactions that it leaves open."""

import random
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import psycopg
from hypothesis import HealthCheck, Phase, given, seed, settings
from psycopg import sql
from psycopg.pq import TransactionStatus
from psycopg.types.json import Jsonb

from job_data import RECORD_ROW, prediction_row
from loracomp.database import connections as db
from statements import OTHER_MODEL, Statement, reach_of, statements

OPEN_TRANSACTIONS = 4
PATIENCE = "-c statement_timeout=10s -c lock_timeout=2s"
"""Options of a connection, so that RESET ALL comes back to them."""
CLAIM = sql.SQL("SELECT id, lease_token FROM loracomp.claim_jobs('odd', %s, 4, '5 seconds')")
FAIL = sql.SQL("SELECT loracomp.fail_jobs(%s, %s, %s, %s, '{t}')")
RECORD = sql.SQL(RECORD_ROW)
ODD_FIELDS: tuple[Any, ...] = (
    1e308,
    -1e308,
    "x" * 20_000,
    [[[]]],
    {"encode": "1e-400"},
    -1,
    None,
    "NaN",
    {"predict": 1e300},
)
ODD_CODES = ("x" * 16_000, "code", "", "\u202e")


@dataclass
class Intruder:
    """Random actions of a login. Transactions that it left open are also ended at random: committed, rolled back, or
    cut off."""

    url: str
    role: str
    number: int
    """Seed of all its choices."""
    said: Counter[str] = field(default_factory=Counter)
    """Number of statements by what the server answered: ok, or an error's code."""
    broken: list[str] = field(default_factory=list)
    """Answers that no statement may get: internal errors of the server, and words of another's planted function."""

    def attack(self, count: int) -> None:
        """Send this number of statements."""
        self._random = random.Random(self.number)
        self._open: list[db.Connection] = []
        self._session = self._connect()

        @seed(self.number)
        @settings(
            max_examples=count, deadline=None, database=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(statements(reach_of(self._session), self.role))
        def sent(statement: Statement) -> None:
            self._send(statement)

        sent()
        for connection in (*self._open, self._session):
            connection.close()

    def _send(self, statement: Statement) -> None:
        if self._random.random() < 0.3:
            self._in_a_transaction(statement)
        else:
            if self._session.closed or self._random.random() < 0.05:  # or else one odd setting would stay to the end
                self._session.close()
                self._session = self._connect()
            self._execute(self._session, statement)
        if self.role == "worker" and self._random.random() < 0.2:
            self._work()

    def _in_a_transaction(self, statement: Statement) -> None:
        while len(self._open) >= OPEN_TRANSACTIONS:
            self._end(self._open.pop(self._random.randrange(len(self._open))))
        if not self._open or self._random.random() < 0.5:
            self._open.append(self._connect())
            self._open[-1].autocommit = False
        self._execute(self._random.choice(self._open), statement)

    def _end(self, connection: db.Connection) -> None:
        with suppress(psycopg.Error):
            self._random.choice((connection.commit, connection.rollback, connection.close))()
        connection.close()

    def _execute(self, connection: db.Connection, statement: Statement) -> list[Any]:
        query, values = statement
        try:
            cursor = connection.execute(query, values or None)
            rows = cursor.fetchmany(100) if cursor.description else []
        except psycopg.Error as error:
            self.said[error.sqlstate or type(error).__name__] += 1
            if (error.sqlstate or "").startswith("XX"):
                self.broken.append(f"{error}: {query.as_string(None)} {values!r}"[:500])
            if connection.info.transaction_status == TransactionStatus.INERROR and self._random.random() < 0.5:
                connection.rollback()
        except (UnicodeError, ValueError, OverflowError):
            self.said["not sent"] += 1  # psycopg can't write or read such a value
        else:
            self.said["ok"] += 1
            return rows
        return []

    def _work(self) -> None:
        """Claim the attackers' own jobs, and record an answer that is odd in one place, or an odd failure."""
        for job in self._execute(self._session, (CLAIM, (OTHER_MODEL,))):
            if self._random.random() < 0.7:
                row = prediction_row(job["id"])
                row[self._random.choice(sorted(row))] = self._random.choice(ODD_FIELDS)
                values: Any = {"row": Jsonb(row), "token": job["lease_token"]}
                self._execute(self._session, (RECORD, values))
            else:
                codes = [self._random.choice(ODD_CODES)]
                self._execute(self._session, (FAIL, ([job["id"]], [job["lease_token"]], codes, codes)))

    def _connect(self) -> db.Connection:
        return db.connect(self.url, vectors=False)


def attack(url: str, role: str, number: int, statements: int) -> Intruder:
    """Let a login attack, in a separate process; returns the server's answers."""
    intruder = Intruder(url, role, number)
    intruder.attack(statements)
    return Intruder(url, role, number, intruder.said, intruder.broken)
