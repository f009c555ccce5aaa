"""Measures the accuracy of a declared table's answers after 0, 16 and 64 corrections, and with an adapter of its own.

    python -m benchmarks.evaluation.declared ../shared/data [--rows 100] [--own 128] [--task subj]

LORACOMP_DATABASE_URL names an empty database. For each task, the benchmark fills a table with validation rows and
declares it as a user would. Some rows, drawn at random, are corrected; accuracy is counted on other rows, which are
never corrected. For comparison, these other rows are also submitted as single jobs, under the policies `base` and
`default`. With --own, an adapter is trained from that many corrections, and single jobs are submitted again, under
`default` and `measured`. The library has no adapter of any of these tasks, although it has twins of some.
`make figures` shows what docs/performance/declared.json keeps.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from loracomp.cli.answers import train_answers
from loracomp.config import Settings, load_settings
from loracomp.database import connections as db
from loracomp.database import schema
from loracomp.database.connections import Connection
from loracomp.database.embedded import database_url
from loracomp.engine.engine import Engine
from loracomp.registry.library import load_library
from loracomp.worker.start import load_engine
from loracomp.worker.worker import Worker

from .few_labels import Kind
from .plan import UNFAMILIAR

TASKS = (*UNFAMILIAR, "amazon_polarity", "mrpc", "scitail")
"""Tasks without an adapter whose rows all have the same choices."""
COUNTS = (16, 64)
KEPT = Path(__file__).parents[2] / "docs" / "performance" / "declared.json"
TABLE = "CREATE TABLE {0} (id integer PRIMARY KEY, prompt text, label text)"
DECLARE = "SELECT loracomp.create_answers('{0}_answer', '{0}', '{{prompt}}', choices => %(choices)s)"
CORRECT = """
UPDATE {0}_answer AS a SET correct = t.label FROM {0} AS t
WHERE t.id = a.id AND a.id <= %(count)s AND a.correct IS NULL
"""
COUNT = """
SELECT round(100 * avg((a.answer = t.label)::integer), 1)::float AS share
FROM {0} AS t JOIN {0}_answer AS a USING (id) WHERE t.id > %(first)s
"""
SUBMIT = """
INSERT INTO loracomp.job (prompt, choices, policy, tags)
SELECT t.prompt, %(choices)s, p.policy, jsonb_build_object('of', %(named)s::text, 'label', t.label)
FROM {0} AS t, unnest(%(policies)s::text[]) AS p (policy) WHERE t.id > %(first)s
"""
BY_POLICY = """
SELECT policy, round(100 * avg((output = tags ->> 'label')::integer), 1)::float AS share
FROM loracomp.job_result WHERE tags ->> 'of' = %(named)s GROUP BY policy
"""


@dataclass(frozen=True)
class Table:
    """The rows of one task in a table of its own; only the first `kept` rows may be corrected."""

    connection: Connection
    engine: Engine
    settings: Settings
    task: str
    kept: int

    def run(self, statement: str, **values: object) -> list[dict[str, Any]]:
        """The rows that a statement returns, in which {0} stands for the table's name."""
        cursor = self.connection.execute(statement.format(self.task).encode(), values)
        return cursor.fetchall() if cursor.description else []

    def drain(self) -> None:
        url = database_url(self.settings)
        Worker(url, self.engine, base_model=self.engine.base_name, settings=self.settings, drain=True).run()

    def share(self, after: int | None = None) -> float:
        """The accuracy in % of the rows after row number `after`; by default, of all rows that are never corrected."""
        return float(self.run(COUNT, first=self.kept if after is None else after)[0]["share"])

    def shares_of_jobs(self, choices: list[str], *policies: str) -> dict[str, float]:
        """The accuracy in % of single jobs with the rows that are never corrected, by policy. A single job learns
        nothing from the table's other rows."""
        named = " ".join([self.task, *policies])
        self.run(SUBMIT, named=named, choices=choices, first=self.kept, policies=list(policies))
        self.drain()
        return {row["policy"]: row["share"] for row in self.run(BY_POLICY, named=named)}

    def share_after(self, count: int) -> float:
        """Correct the first `count` rows and answer all rows again; returns the accuracy in %."""
        self.run(CORRECT, count=count)
        self.drain()
        self.run("SELECT loracomp.alter_answers('{0}_answer', again => true)")
        self.drain()
        return self.share()


def answered(table: Table, data: Path, rows: int, own: int) -> dict[str, object]:
    """Accuracy in % on the task's last `rows` rows, by number of corrections."""
    examples = Kind("validation", (table.task,), table.kept + rows).examples(table.task, data)
    choices = list(examples[0].choices or ())
    table.run(TABLE)
    for number, row in enumerate(examples, 1):
        table.run(
            "INSERT INTO {0} VALUES (%(id)s, %(prompt)s, %(label)s)", id=number, prompt=row.prompt, label=row.label
        )
    table.run(DECLARE, choices=choices)
    table.drain()
    found: dict[str, object] = {"rows": len(examples) - table.kept, "0": table.share()}
    found |= {f"{key}, one by one": share for key, share in table.shares_of_jobs(choices, "base", "default").items()}
    found |= {str(count): table.share_after(count) for count in (*COUNTS, own) if count}
    if own:
        train_answers(f"{table.task}_answer", force=True)
        shares = table.shares_of_jobs(choices, "default", "measured")
        found |= {f"own adapter, {policy}": share for policy, share in shares.items()}
    return found


def main(data: Path, rows: int = 100, own: int = 0, task: Annotated[list[str] | None, typer.Option()] = None) -> None:
    """Print a JSON line for each task, and put it into docs/performance/declared.json."""
    settings = load_settings().model_copy(update={"batch_size": 64})
    schema.initialize(database_url(settings))
    with db.connect(database_url(settings)) as connection:
        load_library(connection, settings=settings)
        engine = load_engine(settings, connection)
        for name in task or TASKS:
            table = Table(connection, engine, settings, name, max(*COUNTS, own))
            found = answered(table, data, rows, own)
            print(json.dumps({"task": name} | found), flush=True)
            # Each task is kept as soon as it is measured, because all of them take hours.
            KEPT.write_text(json.dumps(json.loads(KEPT.read_text()) | {name: found}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
