"""Evidence: how well each adapter explains the labelled examples of a task without an adapter, for routing."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np

from loracomp.database.connections import Connection
from loracomp.database.queries import QUERIES
from loracomp.engine.fitting import Numbers, fit_weights

FEWEST = 4
"""Fewest examples with the same choices that evidence needs, because with fewer routing does not calibrate
(`loracomp.calibration_examples`)."""


def record_evidence(connection: Connection, job_ids: Collection[int]) -> None:
    """Fit and write the evidence of each task whose examples these jobs have measured. Raises psycopg's errors."""
    found = connection.execute(QUERIES["labelled_scores"], {"job_ids": list(job_ids)}).fetchall()
    of_task = ("task_id", "base_model_id", "read_at")
    for task, rows in groupby(found, key=itemgetter(*of_task)):
        if evidence := fit_evidence(rows):
            about = dict(zip(of_task, task, strict=True))
            connection.execute(QUERIES["record_evidence"], about | evidence)


def fit_evidence(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Columns of `task_evidence` from a task's rows of `labelled_scores`, if enough have the same choices.

    Only adapters that were measured on all of these rows are compared.
    """
    by_choices = defaultdict(list)
    for row in rows:
        by_choices[tuple(sorted(row["choices"]))].append(row)
    choices, used = max(by_choices.items(), key=lambda each: len(each[1]))
    adapters = sorted(set.intersection(*({*row["choice_scores"]} for row in used)), key=int)
    if len(used) < FEWEST or not adapters:
        return None
    right = np.array([[choice == row["label"] for choice in choices] for row in used], np.float64)
    scores = [
        [[row["choice_scores"][adapter][row["choices"].index(choice)] for choice in choices] for row in used]
        for adapter in adapters
    ]
    found = zip(adapters, (log_likelihood(np.array(each), right) for each in scores), strict=True)
    likely = {int(adapter): value for adapter, value in found if value is not None}
    if not likely:
        return None
    return {"choices": list(choices), "adapter_ids": list(likely), "log_likelihoods": list(likely.values())}


def log_likelihood(scores: Numbers, right: Numbers) -> float | None:
    """Log-likelihood of the right answers, in nats, after a weight of the scores and biases of the choices are fitted.

    None if nothing can be fitted, because another worker has recorded the scores, which may be any numbers.

    `scores` [rows, choices] are of one adapter; `right` [rows, choices] is one-hot. The biases are
    fitted because an adapter that was never trained on a task is usually biased toward one choice, which says nothing
    about what it has learnt.
    """
    try:
        weight, _, *biases = fit_weights(np.stack([scores, np.zeros_like(scores)], axis=2), right)
    except np.linalg.LinAlgError:
        return None
    fitted = weight * scores + np.array(biases)
    found = float((right * (fitted - np.logaddexp.reduce(fitted, axis=1, keepdims=True))).sum())
    return found if -1e9 <= found <= 0.001 else None
