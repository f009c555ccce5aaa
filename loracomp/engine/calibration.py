"""Biases of choices: what is added to their scores so that each is chosen as often as it is right in labelled rows.

A composition that was never trained on a task mostly prefers a wrong label to all others. Its scores of a few labelled
rows show by how much (docs/routing.md, "Choices of a new task are calibrated").
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import compress
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from loracomp.composition.resident import ByteLimitedCache
from loracomp.composition.strategies import Mix
from loracomp.engine.predictor import Predictor
from loracomp.errors import JobError
from loracomp.records import Answer, LabelledRow, Request

Scores: TypeAlias = npt.NDArray[np.float64]
KEPT_BYTES = 16 << 20
"""Memory for scores of rows that are kept for later jobs, and as much for biases."""
FATAL = ("out_of_memory", "lease_lost")
"""Errors of a row's scoring that are the job's: the rows are not to blame."""


def fit_biases(scores: Scores, answers: npt.NDArray[np.int64], *, smoothing: float = 3, decay: float = 0.03) -> Scores:
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
        self._scores: ByteLimitedCache[bytes, Scores] = ByteLimitedCache(KEPT_BYTES)
        self._biases: ByteLimitedCache[tuple[bytes, bytes], Scores] = ByteLimitedCache(KEPT_BYTES)

    def with_biases(
        self,
        request: Request,
        rows: Sequence[LabelledRow],
        mix: Mix,
        wanted: Callable[[], bool] = lambda: True,
    ) -> Request:
        """The request with biases of its choices, fitted on the rows' scores.

        A row with the request's own prompt is left out, so that a labelled row that is asked does not know its own
        label; so is a row that cannot be scored, such as one that is too long. `wanted` is called between forward
        passes. Raises JobError 'out_of_memory', or 'lease_lost' if `wanted` returns False.
        """
        assert request.choices is not None
        choices = tuple(sorted(request.choices))
        decides = (
            request.composition, request.normalization, request.contrast, request.chat_template, request.system_text,
            choices, rows,
        )  # fmt: skip
        # A digest, so that a worker keeps no text of an example that is erased.
        key = hashlib.sha256(repr(decides).encode()).digest()
        scores = self._scores.get(key)
        if scores is None:
            scores = self._scored(replace(request, choices=choices), rows, mix, wanted)
            self._scores.put(key, scores, scores.nbytes + 200)
        used = _others(request.prompt, rows) & ~np.isnan(scores[:, 0])
        biases = self._biases.get((key, used.tobytes()))
        if biases is None:
            right = np.array([choices.index(row.answer) for row in compress(rows, used)], np.int64)
            biases = fit_biases(scores[used], right) if right.size else np.zeros(len(choices))
            self._biases.put((key, used.tobytes()), biases, biases.nbytes + used.nbytes + 300)
        of_choice = dict(zip(choices, biases.tolist(), strict=True))
        return replace(request, choice_biases=tuple(of_choice[choice] for choice in request.choices))

    def _scored(self, request: Request, rows: Sequence[LabelledRow], mix: Mix, wanted: Callable[[], bool]) -> Scores:
        """The scores [rows, choices] of rows' choices; NaN for a row that cannot be scored."""
        assert request.choices is not None
        scores = np.full((len(rows), len(request.choices)), np.nan)
        # A row's answer may have been changed since routing.
        places = [place for place, row in enumerate(rows) if row.answer in request.choices]
        asked = [replace(request, prompt=rows[place].prompt, choice_biases=()) for place in places]
        answers = self._predictor.answer(asked, [mix] * len(asked), lambda _: wanted())
        if error := next((each for each in answers if isinstance(each, JobError) and each.code in FATAL), None):
            raise JobError(f"scoring the labelled rows of its task: {error}", code=error.code, retry=error.retry)
        for place, answer in zip(places, answers, strict=True):
            if isinstance(answer, Answer):
                scores[place] = answer.choice_scores
        return scores


def _others(prompt: str, rows: Sequence[LabelledRow]) -> npt.NDArray[np.bool_]:
    """Which rows have another prompt; white space around a prompt makes no other."""
    return np.array([row.prompt.strip() != prompt.strip() for row in rows])
