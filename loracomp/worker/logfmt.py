"""Structured log lines: an event with its fields, as `event key=value ...` for people or as JSON for machines."""

import json
import logging
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import psycopg

from loracomp.records import Job


@dataclass(frozen=True, slots=True)
class Event:
    """What happened. As text: `event key=value ...`; values with spaces or quotes in them are quoted."""

    name: str
    fields: dict[str, Any]

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{key}={_text(value)}" for key, value in self.fields.items())])


def logfmt(event: str, **fields: object) -> Event:
    """A message for a logger, in either format. Jobs stand in `job`, or in `jobs` as a list. Errors: as `told`."""
    return Event(event, {key: told(value) if isinstance(value, Exception) else value for key, value in fields.items()})


def told(error: BaseException) -> str:
    """What may be logged and stored of an error: of the database's its sentence alone, for the rest may quote a row."""
    sentence = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    return sentence or str(error)


def without_quotes(error: BaseException) -> BaseException:
    """The same to be logged with its traceback: each error that led to it says what may be `told`, no more."""
    if isinstance(error, psycopg.Error):
        return type(error)(told(error)).with_traceback(error.__traceback__)
    if error.__cause__ is not None:
        error.__cause__ = without_quotes(error.__cause__)
    elif error.__context__ is not None:
        error.__context__ = without_quotes(error.__context__)
    return error


def job_ids(jobs: Iterable[Job]) -> list[int]:
    """Their ids, in their order."""
    return [job.id for job in jobs]


def configure(log_format: str, level: str) -> None:
    """Send what loggers say to standard error: 'text' or 'json', from a level such as 'info' on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if log_format == "json" else _Text("%(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"{_time(record)} {record.levelname.lower()} {super().format(record)}"


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {"time": _time(record), "level": record.levelname.lower(), "logger": record.name}
        if isinstance(record.msg, Event):
            entry |= {"event": record.msg.name, **record.msg.fields}
        else:
            entry["event"] = record.getMessage()
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)


def _time(record: logging.LogRecord) -> str:
    """In UTC, to the millisecond."""
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _text(value: object) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if text and not set(text) & set(' "\n=') else json.dumps(text, ensure_ascii=False)
