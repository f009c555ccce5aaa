"""Finds the train rows that an adapter was not trained on, on which it can be measured."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from loracomp.registry.examples import Example
from loracomp_lab.training.config import TrainingConfig
from loracomp_lab.training.rows import split_rows


def not_learnt(
    own: Mapping[str, set[str]], drawn: set[str], before: Iterable[str], seen_before: Sequence[str]
) -> list[str]:
    """Return the hashes (in hex) of the rows that an adapter was not trained on.

    `own` has, for each of its tasks, the rows that were kept aside, and `drawn` the rows that it was trained on.
    If the training started from an earlier adapter, that adapter was trained on the tasks `seen_before`, but not on
    their rows `before`.
    """
    left = set(before)
    # A row that this run kept aside may still have been learnt before, if the earlier adapter was trained on that task.
    unlearnt = (rows & left if task in seen_before else rows for task, rows in own.items())
    return sorted((set().union(*unlearnt) | left) - drawn)


def kept_aside(training: Mapping[str, Any], rows: Sequence[Example]) -> set[bytes]:
    """Return the hashes of the train rows that a training run kept aside: from its record or, if the record has none,
    computed from the run's settings.

    `rows` are all train rows of the task without leaks, in the data set's order.
    """
    if (known := training.get("kept_aside")) is not None:
        return {row.content_hash for row in rows} & set(map(bytes.fromhex, known))
    if "hyper_parameters" not in training:
        return set()
    return {row.content_hash for row in split_rows(rows, TrainingConfig(**training["hyper_parameters"]))[0]}
