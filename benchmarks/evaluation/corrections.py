"""Compares which rows to correct first: random ones, the least confident ones, or ones spread over the embeddings.

    python -m benchmarks.evaluation.corrections FOLDER

FOLDER has the scores that few_labels has written. A third of a task's rows are test rows. Of the others, 16 at a time
are corrected, and the policy `measured` then answers the test rows with these corrections. The method is chosen on
tasks of the library, without the adapters of their families, and confirmed on validation rows of the unfamiliar tasks.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import typer

from .few_labels import FIXED, Rows, _normalised, _of_prompts, _scored, measured
from .plan import UNFAMILIAR

DRAWS = 40
"""How often the rows of a task are divided at random and corrected."""
TOGETHER = 16
"""Number of rows that are chosen and corrected at a time."""
COUNTS = (16, 64)
"""Numbers of corrections after which the test rows are answered."""
Numbers = npt.NDArray[np.int64]
Chooser = Callable[[Rows, npt.NDArray[np.float64], Numbers, np.random.Generator], Numbers]
"""Chooses TOGETHER rows, given all rows, their confidences, and the numbers of the rows chosen before."""


def drawn(rows: Rows, _confidence: npt.NDArray[np.float64], before: Numbers, deal: np.random.Generator) -> Numbers:
    """Random rows."""
    return deal.permutation(_left(rows, before))[:TOGETHER]


def unsure(rows: Rows, confidence: npt.NDArray[np.float64], before: Numbers, _: np.random.Generator) -> Numbers:
    """The least confident rows."""
    left = _left(rows, before)
    return left[np.argsort(confidence[left], kind="stable")][:TOGETHER]


def spread(rows: Rows, _confidence: npt.NDArray[np.float64], before: Numbers, deal: np.random.Generator) -> Numbers:
    """Rows that are each farthest from all rows chosen before; the first one is random."""
    return _farthest(rows, before, deal, _left(rows, before))


def unsure_spread(
    rows: Rows, confidence: npt.NDArray[np.float64], before: Numbers, deal: np.random.Generator
) -> Numbers:
    """Rows that are spread over the least confident half."""
    left = _left(rows, before)
    return _farthest(
        rows, before, deal, left[np.argsort(confidence[left], kind="stable")][: max(TOGETHER, len(left) // 2)]
    )


def _halves(other: Chooser) -> Chooser:
    """Half random rows, half chosen by another method, because rows_to_correct needs some random rows."""

    def halves(rows: Rows, confidence: npt.NDArray[np.float64], before: Numbers, deal: np.random.Generator) -> Numbers:
        first = drawn(rows, confidence, before, deal)[: TOGETHER // 2]
        rest = other(rows, confidence, np.concatenate([before, first]), deal)[: TOGETHER // 2]
        return np.concatenate([first, rest])

    return halves


WAYS: dict[str, Chooser] = {
    "drawn": drawn,
    "unsure": unsure,
    "spread": spread,
    "unsure_spread": unsure_spread,
    "half_unsure": _halves(unsure),
    "half_spread": _halves(spread),
}


def _left(rows: Rows, before: Numbers) -> Numbers:
    return np.setdiff1d(np.arange(len(rows["labels"])), before)


def _farthest(rows: Rows, before: Numbers, deal: np.random.Generator, among: Numbers) -> Numbers:
    vectors = _of_prompts(rows)
    chosen = list(before) or [int(deal.choice(among))]
    made = [] if len(before) else list(chosen)
    nearest = (vectors @ vectors[chosen].T).max(axis=1)
    while len(made) < TOGETHER:
        candidates = np.setdiff1d(among, [*before, *made])
        made.append(int(candidates[nearest[candidates].argmin()]))
        nearest = np.maximum(nearest, vectors @ vectors[made[-1]])
    return np.array(made)


def right_after(way: Chooser, pool: Rows, test: Rows, deal: np.random.Generator) -> list[float]:
    """Accuracies on the rows `test`, one for each number of corrections in COUNTS. The corrected rows are from
    `pool`."""
    chosen, scores, found = np.array([], np.int64), pool["mix"], []
    while len(chosen) < max(COUNTS):
        confidence = np.exp(_normalised(scores)).max(axis=1)
        chosen = np.concatenate([chosen, way(pool, confidence, chosen, deal)])
        corrected = _at(pool, chosen)
        scores = measured(corrected, pool)
        if len(chosen) in COUNTS:
            found.append(float((measured(corrected, test).argmax(axis=1) == test["labels"]).mean()))
    return found


def _at(rows: Rows, numbers: Numbers) -> Rows:
    return {name: values[numbers] for name, values in rows.items()}


def compared(path: Path) -> dict[str, npt.NDArray[np.float64]]:
    """Accuracy by method: [draws, counts]."""
    rows = _scored(path)
    found: dict[str, Any] = {way: [] for way in WAYS}
    for draw in range(DRAWS):
        order = np.random.default_rng(draw).permutation(len(rows["labels"]))
        test, pool = np.split(order, [len(order) // 3])
        for name, way in WAYS.items():
            deal = np.random.default_rng([draw, 1])
            found[name].append(right_after(way, _at(rows, pool), _at(rows, test), deal))
    return {way: np.array(each) for way, each in found.items()}


def main(folder: Path) -> None:
    """Print means over tasks, and the difference of each method from random rows with its standard error."""
    for kind, tasks in (("train", FIXED), ("validation", UNFAMILIAR)):
        of = [compared(folder / f"{kind}_{task}.npz") for task in tasks]
        for way in WAYS:
            more = np.array([(each[way] - each["drawn"]).mean(axis=0) for each in of])  # [tasks, counts]
            means = np.array([each[way].mean(axis=0) for each in of]).mean(axis=0)
            errors = more.std(axis=0, ddof=1) / len(tasks) ** 0.5
            said = (
                f"{count}: {100 * mean:.1f} % ({100 * less:+.1f}, error {100 * error:.1f})"
                for count, mean, less, error in zip(COUNTS, means, more.mean(axis=0), errors, strict=True)
            )
            print(f"{kind}, {len(tasks)} tasks, {way}: {'; '.join(said)}", flush=True)


if __name__ == "__main__":
    typer.run(main)
