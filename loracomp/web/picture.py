"""Draws a job as a picture: turns its stored trace into the data that the template draws."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from loracomp.database.connections import Connection, row_of, rows_of
from loracomp.database.queries import QUERIES
from loracomp.errors import NotFoundError

LANES = 8
"""Number of tasks that are drawn; the others are only counted."""
COLOURS = 6
STEPS = ("claim", "ready", "encode", "route", "load", "compose", "calibrate", "predict", "record")
"""Steps in the order in which a job passes through them. A job waits twice (`ready`): before encode and before
compose."""

Row = Mapping[str, Any]


def read_job(connection: Connection, job: int) -> dict[str, Any]:
    """The data for a page about a job. Raises NotFoundError if the job does not exist or belongs to somebody else."""
    values = {"id": job}
    found = rows_of(connection, QUERIES["job_trace"], values)
    if not found:
        raise NotFoundError(f"job {job} does not exist, or is not yours")
    examples = rows_of(connection, QUERIES["retrieved_examples"], values)
    adapters = rows_of(connection, QUERIES["composed_adapters"], values)
    return {
        "job": found[0],
        "examples": examples,
        "explanation": row_of(connection, QUERIES["explain_job"], values)["explanation"],
        "attempts": rows_of(connection, QUERIES["job_attempts"], values),
        **picture(found[0], examples, adapters),
    }


def picture(job: Row, examples: Sequence[Row], adapters: Sequence[Row]) -> dict[str, Any]:
    """The data to draw, from a row of loracomp.job_trace, its retrieved examples and its composed adapters."""
    lanes = list(_lanes(job, examples, adapters))
    seen = [10 * example["similarity"] for example in examples]
    least = math.floor(min(seen, default=0)) / 10
    return {
        "lanes": lanes[:LANES],
        "other_lanes": len(lanes[LANES:]),
        "least": least,
        "most": max(least + 0.1, math.ceil(max(seen, default=10)) / 10),
        "choices": list(_choices(job)),
        "steps": [(step, job["timings"][step]) for step in STEPS if step in (job["timings"] or {})],
    }


def _lanes(job: Row, examples: Sequence[Row], adapters: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """A lane for each task, most probable first: its examples, its probability, its adapter and weight."""
    routed = dict(zip(job["tasks"] or (), job["probabilities"] or (), strict=False))
    composed = {adapter["task"]: adapter for adapter in adapters}
    counts = Counter(example["task"] for example in examples)
    for number, task in enumerate(dict.fromkeys([*routed, *composed, *counts])):
        adapter = composed.get(task)
        yield {
            "task": task,
            "colour": number + 1 if number < COLOURS else 0,
            "similarities": [example["similarity"] for example in examples if example["task"] == task],
            "share": counts[task] / max(1, len(examples)),
            "probability": routed.get(task) or 0.0,
            "adapter": adapter and adapter["named"],
            "weight": adapter["weight"] if adapter else 0.0,
        }


def _choices(job: Row) -> Iterator[dict[str, Any]]:
    """The choices that have a score, best first, with their probabilities by softmax."""
    parts = {
        "choice": "choices",
        "score": "choice_scores",
        "bias": "choice_biases",
        "label": "label_scores",
        "description": "descriptions",
        "similarity": "description_similarities",
    }
    rows = zip_longest(*(job[column] or () for column in parts.values()))
    scored = [
        dict(zip(parts, row, strict=True)) | {"is_answer": number == job["choice_index"]}
        for number, row in enumerate(rows, start=1)
    ]
    scored = [each for each in scored if each["score"] is not None]
    best = max((each["score"] for each in scored), default=0)
    total = sum(math.exp(each["score"] - best) for each in scored)
    for each in sorted(scored, key=lambda each: -each["score"]):
        yield each | {"probability": math.exp(each["score"] - best) / total}
