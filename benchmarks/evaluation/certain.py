"""Measures how many answers of declared tables are certain after 64 and 256 drawn corrections, and how many of these
are right.

    python -m benchmarks.evaluation.certain ../shared/data [--share 0.95] [--task subj]

LORACOMP_DATABASE_URL names an empty database. For each task, the benchmark fills a table with validation rows and
declares it with `certain`. `rows_to_correct` draws rows, which are corrected, and all rows are answered again. Then
half of the 256 corrected rows count as drawn. They are chosen anew a thousand times, as if a thousand people had drawn
their own, and the benchmark counts how often less than the promised share of the certain answers is right.
`make figures` shows what docs/performance/certain.json keeps.
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from loracomp.config import load_settings
from loracomp.database import connections as db
from loracomp.database import schema
from loracomp.database.embedded import database_url
from loracomp.registry.library import load_library
from loracomp.worker.start import load_engine

from .declared import TABLE, TASKS, Table
from .few_labels import Kind

COUNTS = (64, 256)
DECLARATIONS = 1000
KEPT = Path(__file__).parents[2] / "docs" / "performance" / "certain.json"
DECLARE = """
SELECT loracomp.create_answers('{0}_answer', '{0}', '{{prompt}}', choices => %(choices)s, certain => %(share)s)
"""
CORRECT = """
UPDATE {0}_answer AS a SET correct = t.label
FROM {0} AS t, loracomp.rows_to_correct('{0}_answer', %(count)s) AS r
WHERE t.id = a.id AND a.id = r.key[1]::integer
"""
COUNT = """
SELECT
    round(100.0 * avg((a.answer = t.label)::integer), 1)::float AS "right",
    round(100.0 * avg((a.certain IS TRUE)::integer), 1)::float AS certain,
    round(100.0 * avg((a.answer = t.label)::integer) FILTER (WHERE a.certain), 1)::float AS "right if certain"
FROM {0} AS t JOIN {0}_answer AS a USING (id)
"""
DRAW_AGAIN = """
UPDATE loracomp.answer_row AS r SET draw_number = CASE WHEN o.place <= %(count)s THEN o.place END
FROM (
    SELECT r.declaration_id, r.key, row_number() OVER (ORDER BY random()) AS place
    FROM loracomp.answer_row AS r JOIN loracomp.declaration AS d ON d.id = r.declaration_id
    WHERE d.view = '{0}_answer'::regclass AND r.correct IS NOT NULL
) AS o
WHERE r.declaration_id = o.declaration_id AND r.key = o.key
"""


def draw_again(table: Table, count: int, share: float) -> dict[str, float]:
    """Draw `count` of the corrected rows a thousand times; returns the mean share of certain answers, and the share of
    draws with which fewer of these are right than promised, in %."""
    certain, broken = 0.0, 0
    for _ in range(DECLARATIONS):
        table.run(DRAW_AGAIN, count=count)
        (found,) = table.run(COUNT)
        certain += found["certain"]
        broken += found["right if certain"] is not None and found["right if certain"] < 100 * share
    return {"certain": round(certain / DECLARATIONS, 1), "broken": round(100 * broken / DECLARATIONS, 1)}


def measured(table: Table, data: Path, share: float) -> dict[str, object]:
    """The counts for one task, by number of corrections."""
    examples = Kind("validation", (table.task,), 500).examples(table.task, data)
    table.run(TABLE)
    for number, row in enumerate(examples, 1):
        given = {"id": number, "prompt": row.prompt, "label": row.label}
        table.run("INSERT INTO {0} VALUES (%(id)s, %(prompt)s, %(label)s)", **given)
    table.run(DECLARE, choices=list(examples[0].choices or ()), share=share)
    table.drain()
    found: dict[str, object] = {"rows": len(examples)}
    corrected = 0
    for count in COUNTS:
        table.run(CORRECT, count=min(count, len(examples)) - corrected)
        corrected = min(count, len(examples))
        table.drain()
        table.run("SELECT loracomp.alter_answers('{0}_answer', again => true)")
        table.drain()
        (found[str(count)],) = table.run(COUNT)
    found["drawn again"] = draw_again(table, COUNTS[-1] // 2, share)
    return found


def main(data: Path, share: float = 0.95, task: Annotated[list[str] | None, typer.Option()] = None) -> None:
    """Print a JSON line for each task, and put it into docs/performance/certain.json."""
    settings = load_settings().model_copy(update={"batch_size": 64})
    schema.initialize(database_url(settings))
    with db.connect(database_url(settings)) as connection:
        load_library(connection, settings=settings)
        engine = load_engine(settings, connection)
        for name in task or TASKS:
            found = measured(Table(connection, engine, settings, name, 0), data, share)
            print(json.dumps({"task": name, "share": share} | found), flush=True)
            kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
            KEPT.write_text(json.dumps(kept | {name: {"share": share} | found}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
