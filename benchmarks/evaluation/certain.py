"""Measures how many answers of declared tables are certain after 64 and 256 drawn corrections, and how many of these
are right.

    python -m benchmarks.evaluation.certain ../shared/data [--share 0.95] [--task subj]

LORACOMP_DATABASE_URL names an empty database. For each task, the benchmark fills a table with validation rows and
declares it with `certain`. `rows_to_correct` draws rows, which are corrected, and all rows are answered again. Then it
draws other rows a thousand times from the answered ones, as if as many people had drawn their own, and counts how often
the promise is broken: less than the share of all certain answers is right, although the threshold promises it.
`make figures` shows what docs/performance/certain.json keeps.
"""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

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
ANSWERS = """
SELECT a.confidence, a.answer = t.label AS is_right, a.certain FROM {0} AS t JOIN {0}_answer AS a USING (id)
WHERE a.confidence IS NOT NULL ORDER BY a.confidence DESC
"""
THRESHOLD = "SELECT loracomp.threshold(%(confidences)s::float[], %(are_right)s::boolean[], %(share)s) AS threshold"


def count_certain(table: Table, count: int, share: float) -> dict[str, object]:
    """What is certain after `count` corrections in all, in %, and the accuracy of the certain answers; and the same for
    other draws of the corrected rows, also if only 90 % are promised."""
    answers = table.run(ANSWERS)
    confidences = np.array([row["confidence"] for row in answers])
    are_right = np.array([row["is_right"] for row in answers])
    are_certain = np.array([row["certain"] is True for row in answers])
    covered, broken = draw_again(table, confidences, are_right, count, share)
    covered_90, broken_90 = draw_again(table, confidences, are_right, count, 0.9)
    return {
        "right": percent(are_right.mean()),
        "certain": percent(are_certain.mean()),
        "right if certain": percent(are_right[are_certain].mean()) if are_certain.any() else None,
        "certain, mean of draws": covered,
        "broken, of draws": broken,
        "certain at 0.9, mean of draws": covered_90,
        "broken at 0.9, of draws": broken_90,
    }


def percent(share: float) -> float:
    return round(100 * float(share), 1)


def draw_again(
    table: Table, confidences: NDArray[np.float64], are_right: NDArray[np.bool_], count: int, share: float
) -> tuple[float, float]:
    """Of a thousand draws of `count` rows each, in %: the mean share of certain answers, and the share of draws with
    which fewer of the certain answers are right than promised. The answers come with the highest confidence first."""
    random = np.random.default_rng(count)
    certain, broken = [], []
    for _ in range(DECLARATIONS):
        drawn = np.sort(random.choice(len(confidences), min(count, len(confidences)), replace=False))
        given = {"confidences": confidences[drawn].tolist(), "are_right": are_right[drawn].tolist(), "share": share}
        threshold = table.run(THRESHOLD, **given)[0]["threshold"]
        above = confidences > (2 if threshold is None else threshold)
        certain.append(above.mean())
        broken.append(above.any() and are_right[above].mean() < share)
    return percent(np.mean(certain)), percent(np.mean(broken))


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
        found[str(count)] = count_certain(table, count, share)
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
