"""What a few labelled rows add to the scores of a job's choices.

A composition whose adapters were never trained on a task is usually biased toward one wrong label. Its scores of
labelled rows show how strong this bias is and how far its scores can be trusted; the rows' embeddings show what prompts
with the same label have in common (docs/routing.md, "Choices of a new task are calibrated").
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from loracomp.composition.composer import ByteLimitedCache
from loracomp.composition.strategies import Mix
from loracomp.engine.fitting import Classifier, Numbers, fit_classifier, fit_weights
from loracomp.engine.predictor import Predictor
from loracomp.errors import JobError
from loracomp.model.encoder import Vector
from loracomp.records import MIX_ALONE, LabelledRow, Prediction, Request

KEPT_BYTES = 16 << 20
"""Memory for the scores of rows that are kept for later jobs. The fits that are kept may take as much again."""
FATAL = ("out_of_memory", "lease_lost")
"""Errors in scoring a row that end the job, because the row did not cause them."""


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """What was fitted on labelled rows: the weights of the parts of a choice's score, the biases, and a classifier."""

    weights: tuple[float, float, float]
    """Of the composition's scores, the classifier's, and the similarities to described choices (0 without these)."""
    biases: Numbers
    """[choices]."""
    classifier: Classifier

    @property
    def nbytes(self) -> int:
        """Approximate memory that it takes."""
        kept = (self.biases, self.classifier.means, self.classifier.slopes, self.classifier.left_out)
        return sum(each.nbytes for each in kept) + 1000


class Calibrator:
    """Calibrates choices' scores; keeps what it fits for jobs with the same composition, choices and rows."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._scores: ByteLimitedCache[bytes, Numbers] = ByteLimitedCache(KEPT_BYTES)
        self._fitted: ByteLimitedCache[tuple[bytes, bytes, bytes], Fitted] = ByteLimitedCache(KEPT_BYTES)

    def calibrated(
        self,
        request: Request,
        vector: npt.NDArray[np.floating],
        rows: Sequence[LabelledRow],
        mix: Mix,
        wanted: Callable[[], bool] = lambda: True,
        *,
        row_similarities: Vector | None = None,
    ) -> Request:
        """The request with biases of its choices, a classifier's scores for its `vector`, and the scores' weights.

        If the choices are described, `row_similarities` [rows, choices] are those of the rows to them.
        A row with the request's own prompt is left out, because its label would give the answer away. A row that cannot
        be scored, for example because it is too long, is left out too. With fewer than two rows left, the request is
        returned unchanged. `wanted` is called between forward passes. Raises JobError 'out_of_memory', or
        'lease_lost' if `wanted` returns False.
        """
        assert request.choices is not None
        choices = tuple(sorted(request.choices))
        order = [choices.index(choice) for choice in request.choices]
        asked = replace(request, choices=choices, description_similarities=(), score_weights=MIX_ALONE, series=None)
        key = _key(asked, rows)
        scores = self._scores.get(key)
        if scores is None:
            scores = self._scored(asked, rows, mix, wanted)
            self._scores.put(key, scores, scores.nbytes + 200)
        used = np.flatnonzero(_others(request.prompt, rows) & ~np.isnan(scores[:, 0]))
        if len(used) < 2:
            return request
        similar = None if row_similarities is None else row_similarities[np.ix_(used, np.argsort(order))]
        fit_key = (key, used.tobytes(), b"" if similar is None else hashlib.sha256(similar.tobytes()).digest())
        fitted = self._fitted.get(fit_key)
        if fitted is None:
            fitted = _fit(choices, [rows[at] for at in used.tolist()], scores[used], similar)
            self._fitted.put(fit_key, fitted, fitted.nbytes + used.nbytes)
        return replace(
            request,
            choice_biases=tuple(fitted.biases[order].tolist()),
            label_scores=tuple((fitted.weights[1] * fitted.classifier(vector))[order].tolist()),
            score_weights=fitted.weights,
            series=None,
        )

    def _scored(self, request: Request, rows: Sequence[LabelledRow], mix: Mix, wanted: Callable[[], bool]) -> Numbers:
        """The scores [rows, choices] of rows' choices; NaN for a row that cannot be scored."""
        assert request.choices is not None
        scores = np.full((len(rows), len(request.choices)), np.nan)
        # A row's label may have been changed since routing.
        usable = [at for at, row in enumerate(rows) if row.label in request.choices]
        requests = [replace(request, prompt=rows[at].prompt) for at in usable]
        outcomes = self._predictor.answer(requests, [mix] * len(requests), lambda _: wanted())
        if error := next((each for each in outcomes if isinstance(each, JobError) and each.code in FATAL), None):
            raise JobError(f"scoring the labelled rows of its task: {error}", code=error.code, retry=error.retry)
        for at, outcome in zip(usable, outcomes, strict=True):
            if isinstance(outcome, Prediction):
                scores[at] = outcome.choice_scores
        return scores


def _key(request: Request, rows: Sequence[LabelledRow]) -> bytes:
    """A digest of all that the rows' scores depend on, so that a worker keeps no text of an erased example."""
    # The settings of sampling are left out, because choices are scored and nothing is sampled.
    shared = replace(request, prompt="", temperature=0.0, top_p=1.0, seed=0)
    digest = hashlib.sha256(repr((shared, [(row.prompt, row.label) for row in rows])).encode())
    for row in rows:
        digest.update(row.vector.tobytes())
    return digest.digest()


def _others(prompt: str, rows: Sequence[LabelledRow]) -> npt.NDArray[np.bool_]:
    """Which rows have a prompt that differs from this one in more than the white space around it."""
    return np.array([row.prompt.strip() != prompt.strip() for row in rows])


def _fit(choices: Sequence[str], rows: Sequence[LabelledRow], scores: Numbers, similar: Vector | None = None) -> Fitted:
    """Fit on rows with these scores [rows, choices] under the composition, and similarities to described choices."""
    right = np.eye(len(choices))[[choices.index(row.label) for row in rows]]
    classifier = fit_classifier(np.array([row.vector for row in rows], np.float64), right)
    parts = [scores, classifier.left_out, *([] if similar is None else [similar.astype(np.float64)])]
    weights = fit_weights(np.stack(parts, axis=2), right)
    of_mix, of_labels, of_descriptions = (*weights[: len(parts)].tolist(), 0.0)[:3]
    return Fitted((of_mix, of_labels, of_descriptions), weights[len(parts) :], classifier)
