"""Biases of choices: what is added to their scores so that each is chosen as often as it is right in labelled rows.

A composition that was never trained on a task mostly prefers a wrong label to all others. Its scores of a few labelled
rows show by how much (docs/routing.md, "Choices of a new task are calibrated").
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from loracomp.composition.resident import ByteLimitedCache
from loracomp.composition.strategies import Mix
from loracomp.engine.predictor import Predictor
from loracomp.errors import JobError
from loracomp.records import Answer, LabelledRow, Request

KEPT_BYTES = 16 << 20
"""Memory for biases that are kept for later jobs."""
FATAL = ("out_of_memory", "lease_lost")
"""Errors of a row's scoring that are the job's: the rows are not to blame."""


def fit_biases(
    scores: npt.NDArray[np.float64], answers: npt.NDArray[np.int64], *, smoothing: float = 3, decay: float = 0.03
) -> npt.NDArray[np.float64]:
    """Biases [choices] under which the mean probability of each choice is its share of the right answers.

    `scores` [rows, choices] are log-likelihoods in nats, and `answers` [rows] the indexes of the right choices. The
    shares are counted as if each choice were right in `smoothing` more rows. The biases maximise the mean over rows of
    (shares x biases - log of the sum of exp(scores + biases)), less `decay` times the sum of their squares.
    """
    choices = scores.shape[1]
    shares = np.bincount(answers, minlength=choices) + smoothing
    shares, biases = shares / shares.sum(), np.zeros(choices)
    for _ in range(300):  # the loss is convex, and its curvature at most 0.5 + 2 decay
        shifted = scores + biases
        likely = np.exp(shifted - np.logaddexp.reduce(shifted, axis=1, keepdims=True))
        biases = biases - (likely.mean(axis=0) - shares + 2 * decay * biases)
    return biases


class Calibrator:
    """Fits biases under a job's composition, and keeps them for jobs with the same composition, choices and rows."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._kept: ByteLimitedCache[bytes, dict[str, float]] = ByteLimitedCache(KEPT_BYTES)

    def with_biases(
        self,
        request: Request,
        rows: Sequence[LabelledRow],
        mix: Mix,
        wanted: Callable[[], bool] = lambda: True,
    ) -> Request:
        """The request with biases of its choices, fitted on the rows' scores.

        Rows that cannot be scored, such as one that is too long, are left out. `wanted` is called between forward
        passes. Raises JobError 'out_of_memory', or 'lease_lost' if `wanted` returns False.
        """
        assert request.choices is not None
        decides = (
            request.composition, request.normalization, request.contrast, request.chat_template, request.system_text,
            sorted(request.choices), rows,
        )  # fmt: skip
        # A digest, so that a worker keeps no text of an example that is erased.
        key = hashlib.sha256(repr(decides).encode()).digest()
        biases = self._kept.get(key)
        if biases is None:
            biases = self._fitted(request, rows, mix, wanted)
            self._kept.put(key, biases, sum(2 * len(choice) + 200 for choice in biases))
        return replace(request, choice_biases=tuple(biases[choice] for choice in request.choices))

    def _fitted(
        self, request: Request, rows: Sequence[LabelledRow], mix: Mix, wanted: Callable[[], bool]
    ) -> dict[str, float]:
        assert request.choices is not None
        rows = [row for row in rows if row.answer in request.choices]  # it may have been changed since routing
        asked = [replace(request, prompt=row.prompt, choice_biases=()) for row in rows]
        answers = self._predictor.answer(asked, [mix] * len(asked), lambda _: wanted())
        if error := next((each for each in answers if isinstance(each, JobError) and each.code in FATAL), None):
            raise JobError(f"scoring the labelled rows of its task: {error}", code=error.code, retry=error.retry)
        scored = [
            (answer.choice_scores, request.choices.index(row.answer))
            for row, answer in zip(rows, answers, strict=True)
            if isinstance(answer, Answer)
        ]
        if not scored:
            return dict.fromkeys(request.choices, 0.0)
        scores, right = zip(*scored, strict=True)
        return dict(zip(request.choices, fit_biases(np.array(scores), np.array(right)).tolist(), strict=True))
