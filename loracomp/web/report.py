"""A report on some days, from schema bi and list_answers: numbers and names, no prompts and no generated texts."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Any

from loracomp.database.connections import Connection, allowed_rows, rows_of
from loracomp.database.queries import QUERIES
from loracomp.errors import UsageError

MOST = 40
"""Rows and columns of a heat map."""

Row = Mapping[str, Any]


def read_report(
    connection: Connection, days: int, *, answers: str | None = None, tag: str | None = None
) -> dict[str, Any]:
    """All that the report shows of the last `days` days, and of a tag `key` or `key=value`.

    `answers` is a declaration: corrections and the heat map are then of it alone.

    Declarations are None for a role that may not list them, such as an analyst's.
    """
    if not 1 <= days <= 366:
        raise UsageError(f"days must be between 1 and 366, and is {days}")
    since = datetime.now(UTC).date() - timedelta(days=days - 1)
    key, _, value = (tag or "").partition("=")
    values = {"since": since, "tag": key, "value": value or None}
    declared = allowed_rows(connection, QUERIES["list_answers"], values={"name": answers})
    transfer = rows_of(connection, QUERIES["transfer"])
    return {
        "since": since,
        "until": datetime.now(UTC),
        "days": list(_days(rows_of(connection, QUERIES["jobs_by_day"], values))),
        "failures": rows_of(connection, QUERIES["failures"], values),
        "waits": rows_of(connection, QUERIES["waits"], values),
        "accuracy": rows_of(connection, QUERIES["accuracy"], values),
        "usage": rows_of(connection, QUERIES["adapter_usage"], values),
        "companions": rows_of(connection, QUERIES["companions"], values),
        "answers": answers,
        "declared": declared,
        "heat": heat_map([row for row in transfer if answers is None or row["task"] in _tasks(declared)]),
        "tag": tag,
        "tagged": rows_of(connection, QUERIES["answers_of_tag"], values) if tag else [],
        "age_s": rows_of(connection, QUERIES["report_age"])[0]["age_s"],
    }


def _tasks(declared: Sequence[Row] | None) -> list[str]:
    return [row["task"] for row in declared or ()]


def _days(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Numbers of jobs by status, a dict for each day."""
    return [
        {"day": day, "succeeded": 0, "failed": 0, "cancelled": 0, **{row["status"]: row["jobs"] for row in of_day}}
        for day, of_day in groupby(rows, key=lambda row: row["day"])
    ]


def heat_map(transfer: Sequence[Row]) -> dict[str, Any]:
    """Mean gains of adapters (rows) on tasks (columns), in nats, with the largest of them; at most MOST of each."""
    gains = {(row["adapter"], row["task"]): row["mean_gain"] for row in transfer}
    adapters = list(dict.fromkeys(adapter for adapter, _ in gains))[:MOST]
    tasks = sorted({task for _, task in gains})[:MOST]
    return {
        "tasks": tasks,
        "rows": [(adapter, [gains.get((adapter, task)) for task in tasks]) for adapter in adapters],
        "largest": max(map(abs, gains.values()), default=0),
    }
