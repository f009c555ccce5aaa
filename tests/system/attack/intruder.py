"""A login that sends random statements: in its session, and in transactions that it leaves open."""

import random
import warnings
from collections import Counter, deque
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import psycopg
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import HypothesisWarning
from psycopg import sql
from psycopg.pq import TransactionStatus
from psycopg.types.json import Jsonb

from job_data import RECORD_ROW, prediction_row
from loracomp.database import connections as db
from statements import OTHER_MODEL, Statement, reach_of, statements

OPEN_TRANSACTIONS = 4
PATIENCE = "-c statement_timeout=5s -c lock_timeout=1s"
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
INTERNAL = ("XX", "08", "53", "58")
EXPECTED = ("25", "40", "42501", "55P03", "57014", "57P01", "57P05", "0A000")
"""Codes of a session that may not write, of transactions that met others, of rights, locks and timeouts."""
OF_A_TYPE = ("for type ", "stack depth", "out of range", "too large", "invalid byte sequence", 'type "vector')
"""In what a type refuses before a function is called, or a session whose search_path does not have it."""


@dataclass
class Intruder:
    """What a login does at random. What it left open is ended at random too: committed, rolled back, or cut off."""

    url: str
    role: str
    number: int
    """Seed of all its choices."""
    secret: str
    """A text that only others may read."""
    said: Counter[str] = field(default_factory=Counter)
    """Number of statements by what the server answered: ok, or an error's code."""
    broken: list[str] = field(default_factory=list)
    """Answers that no statement may get: internal errors, and refusals that don't say what is wrong with what."""
    recent: deque[str] = field(default_factory=lambda: deque(maxlen=70))

    def attack(self, count: int, every: int, go_on: Callable[[], bool]) -> None:
        """Send so many statements; after each `every` of them, ask whether to go on."""
        self._random = random.Random(self.number)
        self._open: list[db.Connection] = []
        self._session = self._connect()
        for number, statement in enumerate(drawn(statements(reach_of(self._session), self.role), count, self.number)):
            if number and number % every == 0 and not go_on():
                break
            self._send(statement)
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
        query, values, *fields = statement
        self.recent.append(f"{query.as_string(None)} {values!r}"[:400])
        try:
            cursor = connection.execute(query, values or None)
            rows = cursor.fetchmany(100) if cursor.description else []
        except psycopg.Error as error:
            self.said[error.sqlstate or type(error).__name__] += 1
            self._look_for_secrets(error.diag.message_primary, error.diag.message_detail, error.diag.context)
            if wrong := fault(error, fields[0] if fields else None, [each for each in values if isinstance(each, str)]):
                self.broken.append(f"{wrong}: {self.recent[-1]}")
            if connection.info.transaction_status == TransactionStatus.INERROR and self._random.random() < 0.5:
                connection.rollback()
        except (UnicodeError, ValueError, OverflowError, NotImplementedError):
            self.said["not sent"] += 1  # psycopg can't write or read such a value
        else:
            self.said["ok"] += 1
            self._look_for_secrets(rows)
            return rows
        return []

    def _look_for_secrets(self, *told: Any) -> None:
        """Workers may read what they claim and what their jobs need; others must read nothing of Bob's."""
        if self.role != "worker" and self.secret in (found := repr(told)):
            at = found.index(self.secret)
            self.broken.append(f"a secret is told, {found[max(0, at - 100) : at + 100]}: {self.recent[-1]}")

    def _work(self) -> None:
        """Claim jobs of those who attack, and give them an answer that is odd in one place, or an odd failure."""
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


def drawn(strategy: st.SearchStrategy[Any], most: int, number: int) -> list[Any]:
    """Values of a strategy by a seed, about as many."""
    values: list[Any] = []

    @seed(number)
    @settings(
        max_examples=most, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(strategy)
    def draw(value: Any) -> None:
        values.append(value)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HypothesisWarning)  # a strategy that has long texts has a long repr
        draw()
    return values


def fault(error: psycopg.Error, fields: frozenset[str] | None, values: Collection[str] = ()) -> str | None:
    """What is wrong with an answer. A refused call must name a constraint, a column or an argument, or be in our words.

    `fields`: the arguments of what was called; None if that is not ours. `values`: the texts that were given; quoting
    one of them, such as the name of a table that does not exist, names what is wrong as well.
    """
    code, diagnosis = error.sqlstate or "", error.diag
    message = diagnosis.message_primary or str(error)
    if code.startswith(INTERNAL) and not code.startswith("53400"):
        return f"{code} {message}"
    if not code or fields is None or code.startswith(EXPECTED) or any(each in message for each in OF_A_TYPE):
        return None
    named = diagnosis.constraint_name or diagnosis.column_name or any(field in message for field in fields)
    quoted = any(len(_plain(value)) > 3 and _plain(value) in _plain(message) for value in values)
    ours = code in ("P0001", "P0002") or diagnosis.message_hint
    return None if named or quoted or ours else f"{code} {message[:150]}"


def _plain(name: str) -> str:
    """A name without the quotes that Postgres adds or drops when it writes the name."""
    return name.replace('"', "").strip()
