"""Chains of adapters, each trained from where an earlier one ended, and what their records say of rows.

Nothing is trained. Rows occur several times, and in several tasks of a run. What the runs were shown is known, so their
adapter must not be measured on it. The lab and the database read each record alike, whatever is missing in it.

Tasks of different runs of a chain share no rows, because the record of an earlier adapter names the rows that it kept
aside, and not those that it was shown.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from psycopg.types.json import Jsonb

from loracomp.composition.strategies import LoraFactors
from loracomp.database import connections as db
from loracomp.database.connections import Connection
from loracomp.errors import UsageError
from loracomp.model.loading import BaseModel
from loracomp.registry.examples import Example
from loracomp_lab.measuring import MeasuredAdapter
from loracomp_lab.training import train
from loracomp_lab.training.config import training_config
from loracomp_lab.training.rows import choose_rows
from rounds import Round
from town import Ground

CHAINS = 20
TASKS = ("a", "b", "c")
SHARED, APART = ("abcdefghijkl",) * 3, ("abcdef", "ghijkl", "mnopqr")
LEARNT = "SELECT loracomp.has_learnt_from(%s, %s, %s, 'train', %s) AS is_so"


@dataclass
class Trained:
    """An adapter's record, and the content hashes of all rows that it and those before it were shown."""

    training: dict[str, Any]
    shown: set[bytes] = field(default_factory=set)


def lineages(ground: Ground, seed: int, size: float = 1) -> Round:
    draw, made = random.Random(seed), Round()
    with ground.empty() as url, db.connect(url, vectors=False) as owner:
        for _ in range(round(size * CHAINS)):
            runs = draw.randint(1, 3)
            letters = dict(
                zip(TASKS, ("abcdefghijkl",) * 3 if runs == 1 else ("abcdef", "ghijkl", "mnopqr"), strict=True)
            )
            rows = {task: [row_of(task, letter) for letter in draw.choices(letters[task], k=15)] for task in TASKS}
            adapter: Trained | None = None
            for _ in range(runs):
                adapter = run(ground.base, rows, draw, adapter if draw.random() < 0.8 else None) or adapter
                if adapter:
                    made.counts["adapters"] += 1
                    made.failures += measured_though_learnt(adapter, rows)
                    made.failures += read_otherwise(owner, adapter.training, rows, draw)
    made.counts.update(chains=round(size * CHAINS), rounds=1)
    return made


def row_of(task: str, letter: str) -> Example:
    """The row of a letter is the same in each task."""
    return Example("train", letter, ("yes", "no"), "yes", hashlib.sha256(letter.encode()).digest(), f"{task}/{letter}")


def run(base: BaseModel, rows: dict[str, list[Example]], draw: random.Random, before: Trained | None) -> Trained | None:
    """What `train_adapter` would record of rows; None if none is left to train on."""
    parts = draw.sample(TASKS, draw.randint(1, 2))
    config = training_config(
        held_out=draw.randint(1, 5), max_rows=draw.choice((None, 1, 5)), seed=draw.randrange(9), epochs=1
    )
    source: Any = SimpleNamespace(
        task=parts[0], parts=parts, leaks=SimpleNamespace(source_refs=(), sharing=0, compared_with=())
    )
    start: Any = before and SimpleNamespace(lineage=before.training, kept_aside=before.training["kept_aside"])
    try:
        chosen = choose_rows([lambda *_, task=task: rows[task] for task in parts], base, config)
    except UsageError:
        return None
    record = train._origin(source, start) | {"task": parts[0], "kept_aside": train._kept_aside(source, chosen, start)}
    hashes = {row.digest: row.content_hash for task in parts for row in rows[task]}
    shown = {hashes[row.digest] for epoch in chosen.epochs for row in epoch}
    return Trained(record, shown | (before.shown if before else set()))


def measured_though_learnt(adapter: Trained, rows: dict[str, list[Example]]) -> Iterator[str]:
    known = as_measured(adapter.training)
    for row in (row for task in adapter.training["tasks_seen"] for row in rows[task]):
        if row.content_hash in adapter.shown and not known.has_learnt_from(row):
            yield f"row {row.source_ref} was shown and may be measured: {adapter.training}"


def read_otherwise(
    owner: Connection, training: dict[str, Any], rows: dict[str, list[Example]], draw: random.Random
) -> Iterator[str]:
    """How the lab and the database differ on a record that may lack something."""
    task = training["task"]
    for name in ("tasks_seen", "kept_aside"):
        if draw.random() < 0.5:
            training = {**training, name: []} if draw.random() < 0.5 else {**training, name: None}
    training = {name: value for name, value in training.items() if value is not None}
    for row in (draw.choice(rows[each]) for each in TASKS):
        is_learnt = as_measured({"task": task, **training}).has_learnt_from(row)
        asked = [Jsonb(training), task, row.source_ref.partition("/")[0], row.content_hash]
        (found,) = owner.execute(LEARNT, asked)
        if found["is_so"] != is_learnt:
            yield f"{row.source_ref} is learnt: {found['is_so']} in the database, {is_learnt} in the lab; {training}"


def as_measured(training: dict[str, Any]) -> MeasuredAdapter:
    return MeasuredAdapter(training["task"], "", LoraFactors(1, "", 1.0, {}), training)
