"""Measures units: submits an evaluation for each, and appends its answers to the results, one line a job."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from time import perf_counter

from loracomp.database.connections import Connection
from loracomp_lab.evaluation import start_evaluation

from .plan import STAGES, Unit, lacking
from .results import Row, add_rows, count_rows, path_of, read_rows

# SKIP cancels jobs whose rows already have a result; TAKE_UP retries jobs that an earlier run left unanswered.
SKIP = """
SELECT loracomp.cancel_job(j.id, 'measured before')
FROM loracomp.job AS j JOIN loracomp.example AS e ON e.id = j.example_id
WHERE j.tags ->> 'evaluation' = %(evaluation)s AND j.status = 'queued'
    AND split_part(e.source_ref, '#', 2) = ANY (%(measured)s::text[])
"""
TAKE_UP = """
SELECT loracomp.retry_job(j.id)
FROM loracomp.job AS j JOIN loracomp.example AS e ON e.id = j.example_id
WHERE j.tags ->> 'evaluation' = %(evaluation)s AND j.status IN ('cancelled', 'failed')
    AND split_part(e.source_ref, '#', 2) <> ALL (%(measured)s::text[])
"""
CANCEL_OTHERS = """
SELECT loracomp.cancel_job(j.id, 'no longer needed')
FROM loracomp.job AS j
WHERE j.status IN ('queued', 'running') AND j.tags ->> 'evaluation' <> ALL (%(evaluations)s::text[])
"""
LINES = """
SELECT
    j.task, t.family, j.policy,
    s.router,
    s.router = 'retrieval' AND s.weighting = 'similarity' AND s.max_adapters > 1 AS is_mix,
    split_part(e.source_ref, '#', 2) AS row,
    array_to_string(j.exclude_tasks, ' ') AS excluded,
    array_position(j.choices, j.expected) AS expected_index,
    p.choice_index,
    CASE WHEN j.kind = 'predict' THEN (p.output = j.expected)::integer END AS correct,
    p.example_tasks[1] AS nearest_task,
    round(p.similarities[1]::numeric, 3) AS nearest_similarity,
    p.tasks[1] AS top_task,
    m.mix,
    cardinality(p.adapter_ids) AS adapters,
    round((SELECT -sum(u.p * ln(u.p)) / ln(2) FROM unnest(p.probabilities) AS u (p) WHERE u.p > 0)::numeric, 3)
        AS entropy_bits,
    -- Only results of earlier releases have these two.
    NULL AS norm_ratio,
    NULL AS cosine,
    round(x.expected_gain::numeric, 4) AS expected_gain,
    round(l.log_probability::numeric, 4) AS log_probability,
    p.device
FROM loracomp.job AS j
JOIN loracomp.example AS e ON e.id = j.example_id
JOIN loracomp.task AS t ON t.name = j.task
JOIN loracomp.policy AS s ON s.name = j.policy
JOIN loracomp.prediction AS p ON p.job_id = j.id
LEFT JOIN LATERAL (
    SELECT string_agg(format('%%s %%s', c.task, round(c.weight::numeric, 3)), ' + ' ORDER BY c.weight DESC, c.task)
        AS mix
    FROM unnest(p.composed_tasks, p.adapter_weights) AS c (task, weight)
) AS m ON TRUE
LEFT JOIN LATERAL (
    SELECT sum(u.weight * u.gain) AS expected_gain
    FROM unnest(p.weights, p.expected_gains) AS u (weight, gain) WHERE u.weight > 0 AND p.calibration_examples IS NULL
) AS x ON TRUE
LEFT JOIN LATERAL (
    -- The log-probability of the right choice among all choices.
    SELECT p.choice_scores[array_position(j.choices, j.expected)] - max(u.score)
        - ln(sum(exp(greatest(u.score - h.highest, -700)))) AS log_probability
    FROM unnest(p.choice_scores) AS u (score)
    CROSS JOIN (SELECT max(v.score) AS highest FROM unnest(p.choice_scores) AS v (score)) AS h
) AS l ON TRUE
WHERE j.tags ->> 'evaluation' = %(evaluation)s AND j.status = 'succeeded'
"""
FAILED = """
SELECT count(*) AS jobs, min(j.error) AS error
FROM loracomp.job AS j WHERE j.tags ->> 'evaluation' = ANY (%(evaluations)s::text[]) AND j.status = 'failed'
"""
LEFT = "SELECT count(*) AS jobs FROM loracomp.job WHERE status IN ('queued', 'running')"
AnswerJobs = Callable[[], object]
"""Answers all queued jobs, or returns early if it is told to stop."""


def measure(
    connection: Connection,
    folder: Path,
    units: Sequence[Unit],
    answer: AnswerJobs,
    *,
    rows: int | None,
    control_rows: int,
) -> Iterator[str]:
    """Measure the missing rows of units, up to `rows` a task, and write the results; yields a sentence after each step.

    Each step leaves complete results, so that a stopped run can be continued on this machine or another one.
    """
    connection.execute(CANCEL_OTHERS, {"evaluations": [unit.evaluation for unit in units]})
    for (part, task), group in groupby(units, key=lambda unit: (unit.part.name, unit.task)):
        together = list(group)
        missing = lacking(together, count_rows(folder, together), rows, control_rows)
        if missing:
            start = perf_counter()
            added = _ask(connection, folder, missing, answer)
            yield f"{part}, {task}: {added} jobs, {perf_counter() - start:.0f} s"
            evaluations = [unit.evaluation for unit, _ in missing]
            failed = connection.execute(FAILED, {"evaluations": evaluations}).fetchall()[0]
            if failed["jobs"]:
                yield f"{failed['jobs']} jobs failed; run the same command again to retry them: {failed['error']}"
            if left := connection.execute(LEFT).fetchall()[0]["jobs"]:
                yield f"stopped with {left} jobs left: run the same command to go on"
                return


def stages(rows: int | None) -> list[int | None]:
    """STAGES up to `rows` rows for each task."""
    if rows is None:
        return list(STAGES)
    return [*(stage for stage in STAGES if stage is not None and stage < rows), rows]


def _ask(connection: Connection, folder: Path, missing: Iterable[tuple[Unit, int]], answer: AnswerJobs) -> int:
    """Measure the units of a task; returns how many lines were written."""
    units = [unit for unit, _ in missing]
    for unit, rows in missing:
        _start(connection, folder, unit, rows)
    before = count_rows(folder, units)
    answer()
    part, task = units[0].part.name, units[0].task
    add_rows(folder, part, task, [line for unit in units for line in _lines(connection, unit)])
    return sum(count_rows(folder, units).values()) - sum(before.values())


def _start(connection: Connection, folder: Path, unit: Unit, rows: int) -> None:
    part = unit.part
    start_evaluation(
        connection,
        unit.evaluation,
        tasks=[unit.task],
        policies=[unit.policy],
        split="validation",
        rows_a_task=rows,
        exclude_own=part.exclude_own,
        kind=part.kind,
    )
    lines = read_rows(path_of(folder, part.name, unit.task))
    measured = [line["row"] for line in lines if line["policy"] == unit.policy]
    for statement in (SKIP, TAKE_UP):
        connection.execute(statement, {"evaluation": unit.evaluation, "measured": measured})


def _lines(connection: Connection, unit: Unit) -> list[Row]:
    found = connection.execute(LINES, {"evaluation": unit.evaluation}).fetchall()
    own = {"part": unit.part.name, "digest": unit.digest}
    return [own | {name: _text(value) for name, value in line.items()} for line in found]


def _text(value: object) -> str:
    if value is None:
        return ""
    return str(int(value)) if isinstance(value, bool) else str(value)
