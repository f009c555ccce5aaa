"""Structured log lines: an event with fields, as `event key=value ...` for people or as JSON for programs."""

import json
import logging
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import psycopg


@dataclass(frozen=True, slots=True)
class Event:
    """An event with its fields. As text: `event key=value ...`; values with spaces or quotes are quoted."""

    name: str
    fields: dict[str, Any]

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{key}={_text(value)}" for key, value in self.fields.items())])


def logfmt(event: str, **fields: object) -> Event:
    """A message for a logger. By convention `job` is a job's id and `jobs` a list of ids. An exception is logged as
    `message_of` writes it."""
    return Event(
        event, {key: message_of(value) if isinstance(value, Exception) else value for key, value in fields.items()}
    )


def message_of(error: BaseException) -> str:
    """The text of an error that may be logged and stored. Of psycopg's errors it is only the message, because details
    may quote rows."""
    sentence = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    return sentence or str(error)


def without_quotes(error: BaseException) -> BaseException:
    """The error with its traceback, for logging. It and its causes have only the message that `message_of` returns."""
    if isinstance(error, psycopg.Error):
        return type(error)(message_of(error)).with_traceback(error.__traceback__)
    if error.__cause__ is not None:
        error.__cause__ = without_quotes(error.__cause__)
    elif error.__context__ is not None:
        error.__context__ = without_quotes(error.__context__)
    return error


def configure(log_format: str, level: str) -> None:
    """Log to standard error, in format 'text' or 'json', events of this level or above, such as 'info'."""
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
    """The record's time in UTC, in ISO format with milliseconds."""
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _text(value: object) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if text and not set(text) & set(' "\n=') else json.dumps(text, ensure_ascii=False)
