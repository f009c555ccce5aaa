"""What a few labelled rows add to the scores of a job's choices.

A composition that was never trained on a task mostly prefers a wrong label to all others. Its scores of labelled rows
show by how much, and how far it can be believed; the rows' embeddings show what prompts with one label have in common
(docs/routing.md, "Choices of a new task are calibrated").
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from loracomp.composition.composer import ByteLimitedCache
from loracomp.composition.strategies import Mix
from loracomp.engine.answering import Predictor
from loracomp.errors import JobError
from loracomp.records import Answer, LabelledRow, Request

Numbers: TypeAlias = npt.NDArray[np.float64]
KEPT_BYTES = 16 << 20
"""Memory for scores of rows that are kept for later jobs, and as much for what is fitted on them."""
FATAL = ("out_of_memory", "lease_lost")
"""Errors of a row's scoring that are the job's: the rows are not to blame."""
RIDGE = 0.3
"""Penalty of the classifier's squared slopes. This and the next three were chosen on train rows (docs/decisions.md)."""
EXPECTED = (1.0, 2.0)
"""Weights of the composition's and of the classifier's scores, before any row is seen."""
DOUBT = (0.5, 0.3, 0.5)
"""Penalties of the squared differences from these weights, and of the squared biases, in nats over all rows."""
SMOOTHING = 3
"""Shares of right answers are counted as if each choice were right in so many more rows."""


@dataclass(frozen=True, slots=True, eq=False)
class Classifier:
    """A ridge regression of each choice (1 where it is right, else 0) on the rows' embeddings."""

    means: Numbers
    """[dimensions] of the embeddings."""
    slopes: Numbers
    """[dimensions, choices]"""
    shares: Numbers
    """[choices] of the right answers."""
    left_out: Numbers
    """[rows, choices] what a classifier fitted on the other rows says of each row."""

    def __call__(self, vector: npt.NDArray[np.floating]) -> Numbers:
        """A score for each choice: near 1 where it is likely right, near 0 elsewhere."""
        said: Numbers = self.shares + (vector - self.means) @ self.slopes
        return said


def fit_classifier(vectors: Numbers, right: Numbers) -> Classifier:
    """Fit on embeddings [rows, dimensions] and right answers [rows, choices], one-hot; at least two rows."""
    means, shares = vectors.mean(axis=0), right.mean(axis=0)
    centred = vectors - means
    inverse = np.linalg.inv(centred @ centred.T + RIDGE * np.eye(len(vectors)))
    duals = inverse @ (right - shares)
    # A row's error without the row itself follows from its error and its leverage.
    errors = RIDGE * duals / (RIDGE * inverse.diagonal() - 1 / len(vectors))[:, None]
    return Classifier(means, centred.T @ duals, shares, right - errors)


def fit_weights(parts: Numbers, right: Numbers) -> Numbers:
    """Weights [2] of two kinds of scores, then biases [choices], under which the right answers are most likely.

    `parts` [rows, choices, 2] are the scores, and `right` [rows, choices] is one-hot. The likelihood is that of the
    softmax over weighted scores plus biases, with SMOOTHING and less the penalties of DOUBT.
    """
    rows, choices, _ = parts.shape
    design = np.concatenate([parts, np.broadcast_to(np.eye(choices), (rows, choices, choices))], axis=2)
    wanted = np.einsum("rc,rcw->w", right, design)
    wanted[2:] = rows * (wanted[2:] + SMOOTHING) / (rows + SMOOTHING * choices)
    expected, doubt = np.array([*EXPECTED, *[0.0] * choices]), np.array([*DOUBT[:2], *[DOUBT[2]] * choices])

    def loss(weights: Numbers) -> float:
        likely = np.logaddexp.reduce(design @ weights, axis=1).sum() - wanted @ weights
        return float(likely + doubt @ (weights - expected) ** 2)

    weights, reached = expected, loss(expected)
    for _ in range(50):  # Newton's steps; the loss is convex
        scores = design @ weights
        likely = np.exp(scores - np.logaddexp.reduce(scores, axis=1, keepdims=True))
        mean = np.einsum("rc,rcw->rw", likely, design)
        slope = mean.sum(axis=0) - wanted + 2 * doubt * (weights - expected)
        curvature = np.einsum("rc,rcw,rcv->wv", likely, design, design) - mean.T @ mean + 2 * np.diag(doubt)
        step = np.linalg.solve(curvature, slope)
        while (left := loss(weights - step)) > reached and abs(step).max() > 1e-9:
            step = step / 2
        weights, reached = weights - step, left
        if abs(step).max() < 1e-6:
            break
    return weights


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """How much the composition's and the classifier's scores count, and a bias for each choice."""

    weights: tuple[float, float]
    biases: Numbers
    classifier: Classifier

    @property
    def nbytes(self) -> int:
        """About how much memory it takes."""
        kept = (self.biases, self.classifier.means, self.classifier.slopes, self.classifier.left_out)
        return sum(each.nbytes for each in kept) + 1000


class Calibrator:
    """Calibrates choices' scores; keeps what it fits for jobs with the same composition, choices and rows."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._scores: ByteLimitedCache[bytes, Numbers] = ByteLimitedCache(KEPT_BYTES)
        self._fitted: ByteLimitedCache[tuple[bytes, bytes], Fitted] = ByteLimitedCache(KEPT_BYTES)

    def calibrated(
        self,
        request: Request,
        vector: npt.NDArray[np.floating],
        rows: Sequence[LabelledRow],
        mix: Mix,
        wanted: Callable[[], bool] = lambda: True,
    ) -> Request:
        """The request with biases of its choices, what a classifier says of its `vector`, and how much each counts.

        A row with the request's own prompt is left out, so that a labelled row that is asked does not know its own
        label; so is a row that cannot be scored, such as one that is too long. With fewer than two rows left, the
        request is returned unchanged. `wanted` is called between forward passes. Raises JobError 'out_of_memory', or
        'lease_lost' if `wanted` returns False.
        """
        assert request.choices is not None
        choices = tuple(sorted(request.choices))
        key = _key(replace(request, choices=choices), rows)
        scores = self._scores.get(key)
        if scores is None:
            scores = self._scored(replace(request, choices=choices), rows, mix, wanted)
            self._scores.put(key, scores, scores.nbytes + 200)
        used = np.flatnonzero(_others(request.prompt, rows) & ~np.isnan(scores[:, 0]))
        if len(used) < 2:
            return request
        fitted = self._fitted.get((key, used.tobytes()))
        if fitted is None:
            fitted = _fit(choices, [rows[place] for place in used.tolist()], scores[used])
            self._fitted.put((key, used.tobytes()), fitted, fitted.nbytes + used.nbytes)
        places = [choices.index(choice) for choice in request.choices]
        of_mix, of_labels = fitted.weights
        return replace(
            request,
            choice_biases=tuple(fitted.biases[places].tolist()),
            label_scores=tuple((of_labels * fitted.classifier(vector))[places].tolist()),
            score_weights=(of_mix, of_labels),
        )

    def _scored(self, request: Request, rows: Sequence[LabelledRow], mix: Mix, wanted: Callable[[], bool]) -> Numbers:
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


def _key(request: Request, rows: Sequence[LabelledRow]) -> bytes:
    """What decides the scores of the rows: a digest, so that a worker keeps no text of an example that is erased."""
    # Nothing is drawn for choices, so what samples a text decides nothing.
    shared = replace(request, prompt="", temperature=0.0, top_p=1.0, seed=0)
    digest = hashlib.sha256(repr((shared, [(row.prompt, row.answer) for row in rows])).encode())
    for row in rows:
        digest.update(row.vector.tobytes())
    return digest.digest()


def _others(prompt: str, rows: Sequence[LabelledRow]) -> npt.NDArray[np.bool_]:
    """Which rows have another prompt; white space around a prompt makes no other."""
    return np.array([row.prompt.strip() != prompt.strip() for row in rows])


def _fit(choices: Sequence[str], rows: Sequence[LabelledRow], scores: Numbers) -> Fitted:
    """Fit on rows with these scores [rows, choices] under the composition."""
    right = np.eye(len(choices))[[choices.index(row.answer) for row in rows]]
    classifier = fit_classifier(np.array([row.vector for row in rows], np.float64), right)
    weights = fit_weights(np.stack([scores, classifier.left_out], axis=2), right)
    return Fitted((float(weights[0]), float(weights[1])), weights[2:], classifier)
