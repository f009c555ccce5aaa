"""One line a log entry: an event, then key=value pairs, for people and for machines."""

import json
from collections.abc import Iterable

from loracomp.records import Job


def logfmt(event: str, **fields: object) -> str:
    """`event key=value ...`; values with spaces or quotes in them are quoted."""
    return " ".join([event, *(f"{key}={_value(value)}" for key, value in fields.items())])


def job_ids(jobs: Iterable[Job]) -> str:
    """Ids joined by commas."""
    return ",".join(str(job.id) for job in jobs)


def _value(value: object) -> str:
    text = str(value)
    return text if text and not set(text) & set(' "\n=') else json.dumps(text, ensure_ascii=False)
