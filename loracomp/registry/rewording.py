"""Checks whether routing finds a task whose prompts are worded otherwise, and imports examples in other wordings.

Routing needs the encoder alone, so a check of 200 prompts takes a few seconds.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from loracomp.database.connections import Connection, rows_of, translated_errors
from loracomp.database.queries import QUERIES
from loracomp.errors import NotFoundError
from loracomp.model.encoder import Encoder, Shown
from loracomp.registry.embeddings import check_encoder
from loracomp.registry.examples import Example
from loracomp.registry.tasks import draw
from loracomp.registry.wordings import Frame, Wording, is_reworded, reword

AS_STORED = "as stored"
"""The name of the wording that a task's examples have."""
IMPORTED = 300
"""Maximum number of reworded examples in one import, about as many as each task of the shipped library has."""


@dataclass(frozen=True, slots=True)
class Found:
    """How many prompts in one wording find their task, that is, get more than half of their mix from its adapter."""

    wording: str
    prompts: int
    finding: int
    instead: str | None
    """The other task that most often has the largest weight in the mixes of the remaining prompts; None if mixes
    without any other task are more frequent."""


def read_examples(connection: Connection, task: str) -> list[Example]:
    """A task's examples that have a text and that no rewording made. Raises NotFoundError if there are none."""
    rows = rows_of(connection, QUERIES["stored_examples"], {"task": task})
    if not rows and task not in {row["name"] for row in rows_of(connection, QUERIES["list_tasks"])}:
        raise NotFoundError(f"there is no task {task}: `loracomp task list` shows the existing ones")
    examples = (Example(**row | {"choices": row["choices"] and tuple(row["choices"])}) for row in rows)
    found = [example for example in examples if not is_reworded(example)]
    if not found:
        raise NotFoundError(f"task {task} has no examples with a text: `loracomp task import` imports examples")
    return found


def rows_to_check(examples: Sequence[Example], most: int) -> list[Example]:
    """Draw rows that routing doesn't search (validation, test); train rows if there are no others."""
    apart = [example for example in examples if example.split != "train"]
    return draw(apart or examples, most)


def write(rows: Sequence[Example], frame: Frame, wordings: Sequence[Wording]) -> dict[str, list[Example]]:
    """The rows by the name of their wording: as stored, and in each other wording. A wording is left out if it changes
    no row, or if an earlier wording makes the same prompts."""
    written = {AS_STORED: list(rows)}
    for wording in wordings:
        reworded = [each for row in rows if (each := reword(row, frame, wording))]
        if reworded and _prompts(reworded) not in map(_prompts, written.values()):
            written[wording.name] = reworded
    return written


def _prompts(rows: Sequence[Example]) -> list[str]:
    return [row.prompt for row in rows]


def check_wordings(
    connection: Connection,
    encoder: Encoder,
    task: str,
    written: Mapping[str, Sequence[Example]],
    base_model: str | None = None,
) -> list[Found]:
    """Route the examples of each wording under the default policy, and count those that find the task.

    Nothing is stored, and no model answers. Raises RefusedError unless `encoder` is the database's.
    """
    check_encoder(connection, encoder)
    shown = [(row.prompt, row.choices) for rows in written.values() for row in rows]
    routes = iter(_route(connection, encoder, shown, base_model))
    return [_count(task, name, [next(routes) for _ in rows]) for name, rows in written.items()]


def _route(
    connection: Connection, encoder: Encoder, shown: Sequence[Shown], base_model: str | None
) -> list[dict[str, float]]:
    """For each prompt with its choices, the weights of tasks, largest first. The base model alone has none."""
    given = {"embeddings": list(encoder.encode(shown)), "base_model": base_model}
    weights: list[dict[str, float]] = [{} for _ in shown]
    with translated_errors():
        for row in connection.execute(QUERIES["route_vectors"], given):
            weights[row["ordinal"] - 1][row["task"]] = row["weight"]
    return weights


def _count(task: str, wording: str, routes: Sequence[dict[str, float]]) -> Found:
    missed = [weights for weights in routes if 2 * weights.get(task, 0) <= sum(weights.values())]
    instead = Counter(next((name for name in weights if name != task), None) for weights in missed)
    return Found(
        wording=wording,
        prompts=len(routes),
        finding=len(routes) - len(missed),
        instead=instead.most_common(1)[0][0] if instead else None,
    )


def reword_examples(examples: Sequence[Example], frame: Frame, wordings: Sequence[Wording]) -> list[Example]:
    """Put train rows in other words, at most IMPORTED in all. The wordings take turns; few rows are put in several."""
    offered = [wording for wording in wordings if not wording.kept_apart]
    rows = draw([example for example in examples if example.split == "train"], IMPORTED)
    pairs = ((row, offered[(at + turn) % len(offered)]) for turn in range(len(offered)) for at, row in enumerate(rows))
    reworded = filter(None, (reword(row, frame, wording) for row, wording in pairs))
    return list(islice(reworded, IMPORTED))
