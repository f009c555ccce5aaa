"""What a few labelled rows add to the scores of a job's choices.

A composition whose adapters were never trained on a task is usually biased toward one wrong label. Its scores of
labelled rows show how strong this bias is and how far its scores can be trusted; the rows' embeddings and the model's
hidden states show what prompts with the same label have in common (docs/routing.md, "Choices of a new task are
calibrated").
"""

import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from loracomp.composition.cache import ByteLimitedCache
from loracomp.composition.strategies import Mix
from loracomp.engine.answering import Answering, PendingRequest, lease_lost
from loracomp.engine.fitting import Classifier, Numbers, fit_classifier, fit_weights, join_features, state_scale
from loracomp.engine.predictor import Predictor
from loracomp.errors import JobError
from loracomp.model.encoder import Vector
from loracomp.records import MIX_ALONE, LabelledRow, Prediction, Request

KEPT_BYTES = 16 << 20
"""Memory for the scores of rows that are cached for later jobs. The cached fits may take as much again."""
TOKENISED = 100_000
"""Characters of rows, counted with each choice, that are tokenised before a pass; that takes a tenth of a second."""
FATAL = "out_of_memory"
"""Code of the error that ends the job if it occurs while a row is scored, because the row did not cause it."""


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """The scores that a composition gives to the labelled rows that can be scored; n is the number of these rows."""

    rows: npt.NDArray[np.int64]
    """[n], their numbers."""
    scores: Numbers
    """[n, choices]."""
    states: Vector
    """[n, d], the states of their prompts (`model.states`)."""

    @property
    def nbytes(self) -> int:
        """Approximate memory in bytes."""
        return self.rows.nbytes + self.scores.nbytes + self.states.nbytes + 400


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """What was fitted on labelled rows: the weights of the parts of a choice's score, the biases, and a classifier."""

    weights: tuple[float, float, float]
    """Weights of the composition's scores, of the classifier's scores, and of the similarities to described choices (0
    if the choices are not described)."""
    biases: Numbers
    """[choices]."""
    classifier: Classifier
    state_scale: float
    """Factor of the prompts' states in the classifier's features."""

    def label_scores(self, vector: npt.NDArray[np.floating], order: list[int], state: Vector) -> tuple[float, ...]:
        """The classifier's scores of the choices in this order, times their weight, for a prompt."""
        said = self.classifier(join_features(vector, state, self.state_scale))
        return tuple((self.weights[1] * said)[order].tolist())

    @property
    def nbytes(self) -> int:
        """Approximate memory in bytes."""
        kept = (self.biases, self.classifier.means, self.classifier.slopes, self.classifier.left_out)
        return sum(each.nbytes for each in kept) + 1000


@dataclass(slots=True, eq=False)
class Calibration:
    """A request with choices that is being calibrated."""

    request: Request
    vector: npt.NDArray[np.floating]
    rows: Sequence[LabelledRow]
    row_similarities: Vector | None
    """Similarities [rows, choices] of the rows to described choices; None if the choices are not described."""
    wanted: Callable[[], bool]
    background: bool
    """Whether other jobs come first."""
    outcome: Request | JobError | None = None
    """The calibrated request, or the error that prevents it; None while the model scores the rows."""


class Calibrator:
    """Calibrates choices' scores; caches its fits for later jobs with the same composition, choices and rows.

    `begin` takes a request at any time. Each `step` scores some labelled rows in one pass. The calibrations take turns,
    so that a job with long rows holds up no other job for longer than a pass.
    """

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._scored: ByteLimitedCache[bytes, Scored] = ByteLimitedCache(KEPT_BYTES)
        self._fitted: ByteLimitedCache[tuple[bytes, bytes, bytes], Fitted] = ByteLimitedCache(KEPT_BYTES)
        self._scorings: dict[bytes, _Scoring] = {}
        """The rows that are being scored, in the order of their turns."""

    def begin(
        self,
        request: Request,
        vector: npt.NDArray[np.floating],
        rows: Sequence[LabelledRow],
        mix: Mix,
        wanted: Callable[[], bool] = lambda: True,
        *,
        row_similarities: Vector | None = None,
        background: bool = False,
    ) -> Calibration:
        """Calibrate a request: its outcome then has biases of its choices, a classifier for its `vector` and state, and
        the scores' weights. If the rows were scored before, the outcome is there at once.

        A row with the request's own prompt is left out, because its label would give the answer away. A row that cannot
        be scored, for example because it is too long, is left out too. With fewer than two rows left, the outcome is
        the request, unchanged. JobError codes: 'out_of_memory', and 'lease_lost' if `wanted`, which is called between
        forward passes, returns False.
        """
        asked = self._asked(request)
        key = _key(asked, rows)
        calibration = Calibration(request, vector, rows, row_similarities, wanted, background)
        if (scored := self._scored.get(key)) is not None:
            calibration.outcome = self._calibrated(calibration, key, scored)
            return calibration
        if key not in self._scorings:
            self._scorings[key] = _Scoring(self._predictor.begin(), asked, rows, mix)
        self._scorings[key].waiting.append(calibration)
        return calibration

    def step(self, *, in_background: bool = True) -> Sequence[Calibration]:
        """Score some rows; returns the calibrations that need them. Some of them may then have an outcome.

        Rows that only jobs in the background need come last, and not at all unless `in_background`.
        """
        for key, scoring in list(self._scorings.items()):
            scoring.let_go()
            if not scoring.waiting:
                del self._scorings[key]
        everyday = [key for key, scoring in self._scorings.items() if not scoring.in_background]
        turns = everyday or (list(self._scorings) if in_background else [])
        if not turns:
            return ()
        key = turns[0]
        scoring = self._scorings.pop(key)
        scored = scoring.step()
        if scored is None:
            self._scorings[key] = scoring  # after the others
            return scoring.waiting
        if not isinstance(scored, JobError):
            self._scored.put(key, scored, scored.nbytes)
        for each in scoring.waiting:
            each.outcome = scored if isinstance(scored, JobError) else self._calibrated(each, key, scored)
        return scoring.waiting

    def clear(self) -> None:
        """Forget the calibrations that have begun."""
        self._scorings.clear()

    def _asked(self, request: Request) -> Request:
        """The request that is scored for each row: without what its own prompt adds, and with its choices sorted."""
        assert request.choices is not None
        choices = tuple(sorted(request.choices))
        return replace(
            request,
            choices=choices,
            description_similarities=(),
            score_weights=MIX_ALONE,
            series=None,
            submitted_by=None,
            reads_state=True,
        )

    def _calibrated(self, calibration: Calibration, key: bytes, scored: Scored) -> Request:
        """The calibrated request. `scored` are its labelled rows, with the scores of its choices sorted."""
        request, rows = calibration.request, calibration.rows
        assert request.choices is not None
        choices = tuple(sorted(request.choices))
        order = [choices.index(choice) for choice in request.choices]
        others = _others(request.prompt, rows)[scored.rows]
        used = scored.rows[others]
        if len(used) < 2:
            return request
        similar = calibration.row_similarities
        similar = None if similar is None else similar[np.ix_(used, np.argsort(order))]
        fit_key = (key, used.tobytes(), b"" if similar is None else hashlib.sha256(similar.tobytes()).digest())
        fitted = self._fitted.get(fit_key)
        if fitted is None:
            known = [rows[at] for at in used.tolist()]
            fitted = _fit(choices, known, scored.scores[others], scored.states[others], similar)
            self._fitted.put(fit_key, fitted, fitted.nbytes + used.nbytes)
        return replace(
            request,
            choice_biases=tuple(fitted.biases[order].tolist()),
            classifier=partial(fitted.label_scores, calibration.vector, order),
            reads_state=True,
            score_weights=fitted.weights,
            series=None,
        )


class _Scoring:
    """Labelled rows that the model scores, and the calibrations that wait for them."""

    def __init__(self, answering: Answering, request: Request, rows: Sequence[LabelledRow], mix: Mix) -> None:
        """`request` is asked of each row, with the row's prompt."""
        assert request.choices is not None
        self.waiting: list[Calibration] = []
        self._answering = answering
        self._request = request
        self._choices = request.choices
        self._rows = rows
        self._mix = mix
        # A row's label may have been changed since routing.
        self._left = deque(at for at, row in enumerate(rows) if row.label in self._choices)
        self._pending: dict[int, PendingRequest] = {}

    @property
    def in_background(self) -> bool:
        """Whether no other job needs the rows."""
        return all(each.background for each in self.waiting)

    def let_go(self) -> None:
        """End the calibrations that are no longer wanted."""
        for each in self.waiting:
            if not each.wanted():
                each.outcome = lease_lost()
        self.waiting = [each for each in self.waiting if each.outcome is None]

    def step(self) -> Scored | JobError | None:
        """Score some rows in a pass. Returns them after the last one."""
        if not self._answering:
            self._tokenise()
        self._answering.step()
        failed = (each.outcome for each in self._pending.values() if isinstance(each.outcome, JobError))
        if error := next((each for each in failed if each.code == FATAL), None):
            return JobError(f"scoring the labelled rows of its task: {error}", code=error.code, retry=error.retry)
        if self._answering or self._left:
            return None
        found = [
            (at, each.outcome.choice_scores, each.state)
            for at, each in self._pending.items()
            if isinstance(each.outcome, Prediction)
        ]
        rows, scores, states = zip(*found, strict=True) if found else ((), (), ())
        return Scored(np.array(rows, np.int64), np.array(scores), np.array(states))

    def _tokenise(self) -> None:
        """Hand some of the remaining rows to the model."""
        characters = 0
        while self._left and characters < TOKENISED:
            at = self._left.popleft()
            characters += len(self._choices) * len(self._rows[at].prompt)
            self._pending[at] = self._answering.add(replace(self._request, prompt=self._rows[at].prompt), self._mix)


def _key(request: Request, rows: Sequence[LabelledRow]) -> bytes:
    """A digest of everything on which the rows' scores depend. A worker keeps it instead of the texts, because an
    example may be erased."""
    # The settings of sampling are left out, because choices are scored and nothing is sampled.
    shared = replace(request, prompt="", temperature=0.0, top_p=1.0, seed=0)
    digest = hashlib.sha256(repr((shared, [(row.prompt, row.label) for row in rows])).encode())
    for row in rows:
        digest.update(row.vector.tobytes())
    return digest.digest()


def _others(prompt: str, rows: Sequence[LabelledRow]) -> npt.NDArray[np.bool_]:
    """Which rows have a prompt that differs from this one in more than the white space around it."""
    return np.array([row.prompt.strip() != prompt.strip() for row in rows])


def _fit(
    choices: Sequence[str], rows: Sequence[LabelledRow], scores: Numbers, states: Vector, similar: Vector | None
) -> Fitted:
    """Fit on rows with these scores [rows, choices] and states [rows, d] under the composition. `similar` are the rows'
    similarities [rows, choices] to described choices."""
    right = np.eye(len(choices))[[choices.index(row.label) for row in rows]]
    vectors = np.array([row.vector for row in rows], np.float64)
    scale = state_scale(vectors, states)
    classifier = fit_classifier(join_features(vectors, states, scale), right)
    parts = [scores, classifier.left_out, *([] if similar is None else [similar.astype(np.float64)])]
    weights = fit_weights(np.stack(parts, axis=2), right)
    of_mix, of_labels, of_descriptions = (*weights[: len(parts)].tolist(), 0.0)[:3]
    return Fitted((of_mix, of_labels, of_descriptions), weights[len(parts) :], classifier, scale)
