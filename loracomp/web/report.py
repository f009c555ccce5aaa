"""A report on some days, from schema bi and list_answers: numbers and names, no prompts and no generated texts."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from loracomp.database.connections import Connection, allowed_rows, row_of, rows_of
from loracomp.database.queries import QUERIES
from loracomp.errors import NotFoundError, UsageError

ADAPTERS, TASKS = 100, 24
"""Rows and columns of a heat map; so many columns fit on paper."""

Row = Mapping[str, Any]


def read_report(
    connection: Connection, days: int, *, answers: str | None = None, tag: str | None = None
) -> dict[str, Any]:
    """Read everything that the report shows about the last `days` days, and about a tag `key` or `key=value`.

    If `answers` names a declaration, the report shows corrections and the heat map only for it.

    Declarations are None for a role that may not list them, such as an analyst's.
    """
    if not 1 <= days <= 366:
        raise UsageError(f"days must be between 1 and 366, and is {days}")
    until = datetime.now(UTC)
    since = until.date() - timedelta(days=days - 1)
    key, _, value = (tag or "").partition("=")
    values = {"since": since, "until": until.date(), "tag": key, "value": value or None}
    declared = allowed_rows(connection, QUERIES["list_answers"], values={"name": answers, "counted": True})
    if declared == [] and answers is not None:
        raise NotFoundError(f"{answers} is not a declaration of yours: `loracomp answers list` lists them")
    tasks = None if answers is None else [row["task"] for row in declared or ()]
    transfer = rows_of(connection, QUERIES["transfer"])
    return {
        "since": since,
        "until": until,
        "days": rows_of(connection, QUERIES["jobs_by_day"], values),
        "failures": rows_of(connection, QUERIES["failures"], values),
        "waits": rows_of(connection, QUERIES["waits"], values),
        "accuracy": rows_of(connection, QUERIES["accuracy"], values),
        "usage": rows_of(connection, QUERIES["adapter_usage"], values),
        "companions": rows_of(connection, QUERIES["companions"], values),
        "tagged": rows_of(connection, QUERIES["answers_of_tag"], values),
        "answers": answers,
        "declared": declared,
        "heat": heat_map([row for row in transfer if tasks is None or row["task"] in tasks]),
        "tag": tag,
        "age_s": row_of(connection, QUERIES["report_age"])["age_s"],
    }


def heat_map(transfer: Sequence[Row]) -> dict[str, Any]:
    """Mean gains in nats of adapters (rows) on the tasks (columns) on which most adapters were measured, and the
    largest gain."""
    gains = {(row["adapter"], row["task"]): row["mean_gain"] for row in transfer}
    adapters = list(dict.fromkeys(adapter for adapter, _ in gains))
    measured = Counter(task for _, task in gains)
    tasks = sorted(task for task, _ in measured.most_common(TASKS))
    return {
        "tasks": tasks,
        "rows": [(adapter, [gains.get((adapter, task)) for task in tasks]) for adapter in adapters[:ADAPTERS]],
        "largest": max(map(abs, gains.values()), default=0),
        "more": (len(adapters[ADAPTERS:]), len(measured) - len(tasks)),
    }
