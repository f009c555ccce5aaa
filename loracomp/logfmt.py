"""Structured log lines: an event with its fields, as `event key=value ...` for people or as JSON for machines."""

import json
import logging
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from loracomp.records import Job


@dataclass(frozen=True, slots=True)
class Event:
    """What happened. As text: `event key=value ...`; values with spaces or quotes in them are quoted."""

    name: str
    fields: dict[str, Any]

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{key}={_text(value)}" for key, value in self.fields.items())])


def logfmt(event: str, **fields: object) -> Event:
    """A message for a logger, in either format. Jobs stand in `job`, or in `jobs` as a list."""
    return Event(event, fields)


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
