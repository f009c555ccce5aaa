"""Which adapters explain the labelled examples of a task that has none, so that routing weighs them by it."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np

from loracomp.database.connections import Connection, rows_of
from loracomp.database.queries import QUERIES
from loracomp.engine.calibration import Numbers, fit_weights

FEWEST = 4
"""Examples with the same choices; with fewer, routing calibrates nothing (`loracomp.calibration_examples`)."""


def record_evidence(connection: Connection, job_ids: Collection[int]) -> None:
    """Fit and write the evidence of each task whose examples these jobs have measured."""
    found = rows_of(connection, QUERIES["labelled_scores"], {"job_ids": list(job_ids)})
    for (task_id, base_model_id), rows in groupby(found, key=itemgetter("task_id", "base_model_id")):
        for evidence in _evidence(list(rows)):
            connection.execute(
                QUERIES["record_evidence"], {"task_id": task_id, "base_model_id": base_model_id, **evidence}
            )


def _evidence(rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The evidence in the rows that have the most frequent choices, if these are enough."""
    ((choices, count),) = Counter(tuple(sorted(row["choices"])) for row in rows).most_common(1)
    used = [row for row in rows if tuple(sorted(row["choices"])) == choices]
    adapters = sorted(set.intersection(*({*row["choice_scores"]} for row in used)), key=int)
    if count < FEWEST or not adapters:
        return
    right = np.array([[choice == row["answer"] for choice in choices] for row in used], np.float64)
    scores = [
        [[row["choice_scores"][adapter][row["choices"].index(choice)] for choice in choices] for row in used]
        for adapter in adapters
    ]
    yield {
        "choices": list(choices),
        "adapter_ids": [int(adapter) for adapter in adapters],
        "log_likelihoods": [log_likelihood(np.array(each), right) for each in scores],
    }


def log_likelihood(scores: Numbers, right: Numbers) -> float:
    """Log-likelihood of the right answers, in nats, after a weight of the scores and biases of the choices are fitted.

    `scores` [rows, choices] are of one adapter; `right` [rows, choices] is one-hot. An adapter that was never trained
    on a task prefers one choice to all others, which says nothing of what it has learnt: hence the biases.
    """
    weight, _, *biases = fit_weights(np.stack([scores, np.zeros_like(scores)], axis=2), right)
    fitted = weight * scores + np.array(biases)
    return float((right * (fitted - np.logaddexp.reduce(fitted, axis=1, keepdims=True))).sum())
