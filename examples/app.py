"""Two functions of a web application: one opens a ticket, and one reads how urgent loracomp finds it.

The first pair uses psycopg, the second SQLAlchemy. examples/tickets.sql creates the table and declares ticket_urgency.
"""

from typing import Any

import psycopg
import sqlalchemy
from psycopg.rows import dict_row
from sqlalchemy import func, insert, select

OPEN = "INSERT INTO tickets (text) VALUES (%s) RETURNING id"
URGENCY = "SELECT coalesce(correct, answer) AS urgency, status, reason FROM ticket_urgency WHERE id = %s"


def open_ticket(database: psycopg.Connection, text: str) -> int:
    """Add a ticket; a worker answers it within a moment."""
    with database.transaction():
        (ticket,) = database.execute(OPEN, [text]).fetchone()
    return ticket


def urgency(database: psycopg.Connection, ticket: int) -> dict[str, Any]:
    """A ticket's urgency (None if it has no answer yet), status, and the reason if it can't be answered."""
    return database.cursor(row_factory=dict_row).execute(URGENCY, [ticket]).fetchone()


tickets = sqlalchemy.table("tickets", *map(sqlalchemy.column, ("id", "text")))
answers = sqlalchemy.table("ticket_urgency", *map(sqlalchemy.column, ("id", "answer", "correct", "status", "reason"))).c


def open_ticket_too(database: sqlalchemy.Engine, text: str) -> int:
    """Like open_ticket."""
    with database.begin() as connection:
        return connection.scalar(insert(tickets).values(text=text).returning(tickets.c.id))


def urgency_too(database: sqlalchemy.Engine, ticket: int) -> dict[str, Any]:
    """Like urgency."""
    known = func.coalesce(answers.correct, answers.answer).label("urgency")
    with database.connect() as connection:
        rows = connection.execute(select(known, answers.status, answers.reason).where(answers.id == ticket))
        return dict(rows.mappings().one())
