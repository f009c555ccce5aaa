"""Accuracy of mixes under other settings, on train rows that training kept aside and that the library doesn't ship.

    python -m benchmarks.mix_settings ../shared/data --rows 60
    python -m benchmarks.mix_settings ../shared/data --rows 60 --contrasts

Each setting is a policy. All policies answer the same rows, as jobs, in a database that is made for it. It prints the
tables of docs/evaluation_details.md. With --contrasts only a few policies answer; what they would answer under each
contrast c is computed from the stored scores: the mix's score minus c times the base model's.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from psycopg.types.json import Jsonb

from loracomp.config import load_settings
from loracomp.database import connections as db
from loracomp.database.embedded import database_url
from loracomp.lab.catalogue import load_entry
from loracomp.lab.evaluation import start_evaluation
from loracomp.registry.library import load_library
from loracomp.registry.tasks import import_examples

from .databases import create_database
from .evaluation.__main__ import Models
from .kept_rows import chosen_tasks, kept_aside

SETTINGS: dict[str, dict[str, Any]] = {
    "base": {"router": "base"},
    "own_task": {"router": "own_task"},
    "nearest": {"max_adapters": 1},
    **{f"linear, temperature {t}": {"strategy": "linear", "temperature": t} for t in (0.1, 0.05, 0.03, 0.02)},
    **{f"cat, temperature {t}": {"strategy": "cat", "temperature": t} for t in (0.1, 0.05, 0.02)},
    "linear, top_p 0.5": {"strategy": "linear", "top_p": 0.5},
    "cat, top_p 0.5": {"strategy": "cat", "top_p": 0.5},
}
CONTRASTED = ("base", "own_task", "nearest", "cat, temperature 0.1", "linear, temperature 0.1")
CONTRASTS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
DATABASE = "mix_settings"
SPLIT = "train"
ACCURACY = """
SELECT a.policy, a.own_task AS task, a.accuracy FROM bi.evaluation_accuracy AS a
WHERE a.evaluation = 'mix_settings' AND a.scope = 'task'
"""
WITH_CONTRAST = """
WITH answer AS (
    SELECT j.policy, j.task, j.example_id, j.choices, j.expected, p.choice_scores
    FROM loracomp.job AS j JOIN loracomp.prediction AS p ON p.job_id = j.id WHERE j.evaluation = 'mix_settings'
), by_task AS (
    SELECT a.policy, c.contrast, avg((chosen.choice = a.expected)::integer) AS accuracy
    FROM answer AS a
    JOIN answer AS base ON base.policy = 'base' AND base.example_id = a.example_id
    CROSS JOIN unnest(%s::double precision[]) AS c (contrast)
    CROSS JOIN LATERAL (
        SELECT s.choice FROM unnest(a.choices, a.choice_scores, base.choice_scores) AS s (choice, score, base_score)
        ORDER BY s.score - c.contrast * s.base_score DESC LIMIT 1
    ) AS chosen
    WHERE a.policy <> 'base'
    GROUP BY a.policy, c.contrast, a.task
)
SELECT policy, array_agg(accuracy ORDER BY contrast) AS accuracies
FROM (SELECT policy, contrast, avg(accuracy) AS accuracy FROM by_task GROUP BY policy, contrast) AS mean
GROUP BY policy
"""
# Tasks with rows left to evaluate: of a small task, the library may ship all rows that training kept aside.
ASKABLE = """
SELECT t.task FROM unnest(%s::text[]) AS t (task)
WHERE EXISTS (SELECT FROM loracomp.evaluated_examples(t.task, %s)) ORDER BY t.task
"""
ADAPTERS = """
SELECT j.policy, avg(cardinality(p.adapter_ids)) AS adapters, avg(p.norm_ratio) AS norm
FROM loracomp.job AS j JOIN loracomp.prediction AS p ON p.job_id = j.id
WHERE j.evaluation = 'mix_settings' GROUP BY j.policy
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rows", type=int, default=60, help="rows a task; 60")
    parser.add_argument("--tasks", help="defaults to all that the library has an adapter for")
    parser.add_argument("--contrasts", action="store_true", help="how much of the base model's scores to take off")
    options = parser.parse_args()
    policies = CONTRASTED if options.contrasts else tuple(SETTINGS)
    settings = load_settings()
    url = create_database(database_url(settings), DATABASE, replace=True)
    settings = settings.model_copy(update={"database_url": url})
    tasks = chosen_tasks(options)
    with db.connect(url) as connection:
        load_library(connection, settings=settings)
        for name, values in SETTINGS.items():
            connection.execute("SELECT loracomp.set_policy(%s, %s)", [name, Jsonb(values)])
        for task in tasks:
            import_examples(connection, task, kept_aside(load_entry(task), options.data))
        tasks = [row["task"] for row in connection.execute(ASKABLE, [tasks, SPLIT])]
        start_evaluation(connection, DATABASE, tasks=tasks, policies=policies, split=SPLIT, rows_a_task=options.rows)
        Models(settings).answer(connection, url)
        print_table(connection, tasks, policies)
        if options.contrasts:
            print_contrasts(connection, policies)


def print_table(connection: db.Connection, tasks: list[str], policies: Sequence[str]) -> None:
    rows = connection.execute(ACCURACY).fetchall()
    share = {(row["policy"], row["task"]): float(row["accuracy"]) for row in rows}
    size = {row["policy"]: row for row in connection.execute(ADAPTERS).fetchall()}
    print(f"| setting | {' | '.join(tasks)} | mean | adapters | norm |\n|{'---|' * (len(tasks) + 4)}")
    for policy in policies:
        cells = [100 * share[policy, task] for task in tasks]
        norm = size[policy]["norm"]
        print(
            f"| {policy} | {' | '.join(f'{cell:.1f}' for cell in cells)} | {sum(cells) / len(cells):.1f} "
            f"| {size[policy]['adapters'] or 0:.2f} | {'-' if norm is None else f'{norm:.2f}'} |"
        )


def print_contrasts(connection: db.Connection, policies: Sequence[str]) -> None:
    found = connection.execute(WITH_CONTRAST, [list(CONTRASTS)]).fetchall()
    means = {row["policy"]: row["accuracies"] for row in found}
    print(f"\n| contrast | {' | '.join(map(str, CONTRASTS))} |\n|{'---|' * (len(CONTRASTS) + 1)}")
    for policy in policies:
        if policy in means:
            print(f"| {policy} | {' | '.join(f'{100 * float(mean):.1f}' for mean in means[policy])} |")


if __name__ == "__main__":
    main()
