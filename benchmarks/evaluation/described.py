"""Measures what descriptions and corrections are worth on tables of topics that the library knows nothing of.

    python -m benchmarks.evaluation.described [--draws 3]

LORACOMP_DATABASE_URL names an empty database. topics.json has texts that were written by hand for this: support
tickets, headlines, and messages of users, with the descriptions that a user would give. Each set is a table, declared
with descriptions and without. Then 16 rows, drawn at random, are corrected, all rows are answered again, and the others
are counted. For comparison, the same rows are also answered without the model: by the nearest description, and by a
logistic regression on the embeddings of the same 16 rows. Writes docs/performance/described.json, which `make figures`
shows.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import typer
from sklearn.linear_model import LogisticRegression

from loracomp.config import load_settings
from loracomp.database import connections as db
from loracomp.database import schema
from loracomp.database.embedded import database_url
from loracomp.registry.library import load_library
from loracomp.worker.start import load_engine

from .declared import Table

TOPICS = json.loads(Path(__file__).with_name("topics.json").read_text())
KEPT = Path(__file__).parents[2] / "docs" / "performance" / "described.json"
LABELLED = 16
CREATE = "CREATE TABLE {0} (id integer PRIMARY KEY, text text, label text)"
DECLARE = """
SELECT loracomp.create_answers(
    '{0}_answer', '{0}', %(prompt)s, choices => %(choices)s, descriptions => %(descriptions)s
)
"""
ROW = "INSERT INTO {0} VALUES (%(id)s, %(text)s, %(label)s)"


def rows_of(topics: dict[str, Any], draw: int) -> list[tuple[str, str]]:
    """The rows (label, text) in a random order."""
    rows = [(label, text) for label, texts in topics["rows"].items() for text in texts]
    return [rows[at] for at in np.random.default_rng(draw).permutation(len(rows))]


def of_tables(table: Table, topics: dict[str, Any], rows: Sequence[tuple[str, str]], *, described: bool) -> list[float]:
    """Accuracies in % of a table: of all rows, and of the rows that stay uncorrected after the corrections."""
    table.run(CREATE)
    for number, (label, text) in enumerate(rows, 1):
        table.run(ROW, id=number, text=text, label=label)
    meanings = topics["choices"]
    given = {"prompt": topics["prompt"], "choices": [*meanings]}
    table.run(DECLARE, **given, descriptions=[*meanings.values()] if described else None)
    table.drain()
    shares = [table.share(after=0), table.share_after(LABELLED)]
    table.run("DROP TABLE {0} CASCADE")
    return shares


def of_embeddings(table: Table, topics: dict[str, Any], rows: Sequence[tuple[str, str]]) -> list[float]:
    """The same for the choice with the nearest description, and for a logistic regression on the corrected rows."""
    meanings = topics["choices"]
    choices, labels = [*meanings], np.array([label for label, _ in rows])
    embed = table.engine.encoder.embed
    vectors = np.array(embed([text for _, text in rows]))
    meant = np.array(embed([f"{choice}: {meaning}" for choice, meaning in meanings.items()]))
    nearest = np.array(choices)[(vectors @ meant.T).argmax(axis=1)]
    fitted = LogisticRegression(C=10, max_iter=1000).fit(vectors[:LABELLED], labels[:LABELLED])
    regression = fitted.predict(vectors[LABELLED:]) == labels[LABELLED:]
    return [100 * float(np.mean(nearest == labels)), 100 * float(np.mean(regression))]


def main(draws: int = 3) -> None:
    """Write the accuracies of each set, means over draws of the corrected rows."""
    settings = load_settings().model_copy(update={"batch_size": 64})
    schema.initialize(database_url(settings))
    found = {}
    with db.connect(database_url(settings)) as connection:
        load_library(connection, settings=settings)
        engine = load_engine(settings, connection)
        for name, topics in TOPICS.items():
            table = Table(connection, engine, settings, name, LABELLED)
            of_draws = []
            for draw in range(draws):
                rows = rows_of(topics, draw)
                ways = {
                    "plain": of_tables(table, topics, rows, described=False),
                    "described": of_tables(table, topics, rows, described=True),
                    "embedding": of_embeddings(table, topics, rows),
                }
                of_draws.append(ways)
                print(json.dumps({"set": name, "draw": draw} | ways), flush=True)
            means = {way: np.mean([each[way] for each in of_draws], axis=0).round(1).tolist() for way in of_draws[0]}
            found[name] = {"rows": len(rows), "choices": len(topics["choices"]), "draws": draws} | means
    KEPT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
