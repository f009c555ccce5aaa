"""Compares measuring examples under every adapter and the base model, as a worker does, with scoring jobs."""

import hashlib
from collections.abc import Sequence
from typing import Any

from benchmarks.databases import batches
from loracomp.database.queries import QUERIES
from loracomp.engine.measuring import Measurement
from loracomp.records import Job
from loracomp.registry.examples import Example, canonical_json
from loracomp.registry.tasks import add_task, import_examples
from loracomp.worker.leases import claim_jobs

from .passes import asking
from .timing import Measured, compare, over, per_second, take_turns
from .workbench import Workbench, drawing, made_up_jobs

TASK = "made up to be measured"
LEASE_S = 3600.0


def measuring(bench: Workbench, turns: int) -> Measured:
    """Compare the rows per second of jobs of kind 'measure' (planned, loaded and scored) with the same number of jobs
    that each have a new mix."""
    asked = made_up_jobs(bench.sizes.measured, seed=4)
    jobs = _claimed(bench, asked)
    adapters = len(bench.library)
    try:
        seconds = take_turns(
            {"measuring": lambda _: _measure(bench, jobs), "scoring": _scoring(bench, asked, adapters + 1)}, turns
        )
    finally:
        bench.connection.execute("DELETE FROM loracomp.job WHERE kind = 'measure'")
    what = f"{len(jobs)} examples measured under {adapters} adapters: rows/s"
    against = "scoring them under new mixes"
    found = over(seconds, "scoring", "measuring")
    details = per_second(seconds, len(jobs) * (adapters + 1))
    return {"figures": [compare("measuring", what, against, ">= 0.9", ratios=found, details=details)]}


def _scoring(bench: Workbench, asked: Sequence[dict[str, Any]], times: int) -> Any:
    """Return a run that scores all prompts `times` times in batches, each row under another mix."""
    size, predictor, draw = bench.sizes.batch, bench.predictor(), drawing(bench.library)
    rows = [*asked] * times
    batches = [asking(predictor, rows[start : start + size], draw) for start in range(0, len(rows), size)]
    return lambda turn: [run(turn) for run in batches]


def _measure(bench: Workbench, jobs: Sequence[Job]) -> None:
    for batch in batches(jobs, bench.settings.batch_size):
        found = bench.engine.run(bench.connection, batch)
        assert [type(each.result) for each in found] == [Measurement] * len(batch)


def _claimed(bench: Workbench, asked: Sequence[dict[str, Any]]) -> tuple[Job, ...]:
    """Return jobs, leased to this process, that measure these prompts as validation rows of a task of their own."""
    add_task(bench.connection, TASK)
    import_examples(bench.connection, TASK, [_example(number, job) for number, job in enumerate(asked)])
    wanted = {"task": TASK, "rows": len(asked), "adapters": 1000, "split": "validation", "base_model": None}
    bench.connection.execute(QUERIES["measure_task"], wanted)
    return claim_jobs(
        bench.connection,
        worker="benchmark",
        base_model=bench.engine.base_name,
        batch_size=len(asked),
        lease_s=LEASE_S,
    )


def _example(number: int, job: dict[str, Any]) -> Example:
    digest = hashlib.sha256(canonical_json([number, job]).encode()).digest()
    return Example("validation", job["prompt"], tuple(job["choices"]), job["choices"][0], digest, f"{TASK}#{number}")
