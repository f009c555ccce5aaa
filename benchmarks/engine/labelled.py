"""Compares jobs of a task that has labelled rows with jobs of the same prompts without labelled rows, from encoding to
answer."""

import hashlib
from collections.abc import Sequence
from functools import partial
from itertools import count
from typing import Any

from psycopg.types.json import Jsonb

from loracomp.database.queries import QUERIES
from loracomp.engine.inflight import InFlight
from loracomp.records import Job, Prediction
from loracomp.registry.embeddings import embed_examples
from loracomp.registry.examples import Example
from loracomp.registry.tasks import add_task, import_examples
from loracomp.worker.leases import claim_jobs

from .measuring import LEASE_S
from .timing import Measured, compare, milliseconds, over, take_turns
from .workbench import Workbench, made_up_jobs

TASK = "made up to be labelled"
CHOICES = ("positive", "negative")
POLICIES = ("measured", "default")
DIGESTS = "SELECT digest FROM loracomp.adapter WHERE id = ANY (%s)"


def labelled(bench: Workbench, turns: int) -> Measured:
    """Compare the time of a batch under policy `measured`, whose labelled rows were scored in turn 0, with policy
    `default`."""
    rows = made_up_jobs(bench.sizes.measured, seed=6)
    asked = rows[: bench.sizes.batch]
    try:
        _label(bench, rows)
        # The engine remembers what it computed for a prompt, so each batch has prompts of its own.
        numbers = count()
        jobs = {
            policy: [_claimed(bench, _again(asked, next(numbers)), policy) for _ in range(turns + 1)]
            for policy in POLICIES
        }
        seconds = take_turns({policy: partial(_answer, bench, own) for policy, own in jobs.items()}, turns)
        assert all(map(_is_calibrated, _answer(bench, jobs["measured"], turns)))
    finally:
        bench.connection.execute("DELETE FROM loracomp.job WHERE finished_at IS NULL")
        bench.connection.execute("DELETE FROM loracomp.task WHERE name = %s", [TASK])
    what = f"{len(asked)} jobs with {len(rows)} labelled rows, after the first: time"
    ratios, details = over(seconds, "measured", "default"), milliseconds(seconds)
    return {"figures": [compare("labelled", what, "policy `default`", "<= 1.1", ratios=ratios, details=details)]}


def _claimed(bench: Workbench, asked: Sequence[dict[str, Any]], policy: str) -> tuple[Job, ...]:
    """Return jobs that are leased to this process, because labelled rows are given only to the worker that holds the
    job."""
    bench.connection.execute(
        "INSERT INTO loracomp.job (prompt, choices, policy)"
        " SELECT j.prompt, j.choices, %s FROM jsonb_to_recordset(%s) AS j (prompt text, choices text[])",
        [policy, Jsonb(asked)],
    )
    return claim_jobs(
        bench.connection,
        worker="benchmark",
        base_model=bench.engine.base_name,
        batch_size=len(asked),
        lease_s=LEASE_S,
    )


def _again(jobs: Sequence[dict[str, Any]], number: int) -> list[dict[str, Any]]:
    return [{"prompt": f"{job['prompt']} Again {number:03}.", "choices": CHOICES} for job in jobs]


def _answer(bench: Workbench, jobs: Sequence[Sequence[Job]], turn: int) -> list[InFlight]:
    return bench.engine.run(bench.connection, jobs[turn])


def _is_calibrated(flight: InFlight) -> bool:
    return isinstance(flight.result, Prediction) and bool(flight.result.label_scores)


def _label(bench: Workbench, rows: Sequence[dict[str, Any]]) -> None:
    """Add these rows to the task, each measured under all adapters of the library."""
    add_task(bench.connection, TASK)
    examples = [_example(number, row["prompt"]) for number, row in enumerate(rows)]
    import_examples(bench.connection, TASK, examples)
    embed_examples(bench.connection, bench.engine.encoder, TASK)
    scores = len(rows) * len(bench.library)
    found = bench.connection.execute(DIGESTS, [[adapter.id for adapter in bench.library]])
    digests = [row["digest"] for row in found]
    measured = {
        "task": TASK,
        "base_model": bench.engine.base_name,
        "choice_normalization": "tokens",
        "content_hashes": [each.content_hash for each in examples],
        "base_scores": [-1.0] * len(rows),
        "bases_are_right": [False] * len(rows),
        "adapter_digests": digests,
        "gains": [0.1] * scores,
        "are_right": [True] * scores,
    }
    bench.connection.execute(QUERIES["add_measurements"], measured)


def _example(number: int, prompt: str) -> Example:
    digest = hashlib.sha256(f"{number} {prompt}".encode()).digest()
    return Example("train", prompt, CHOICES, CHOICES[number % 2], digest, f"{TASK}#{number}")
