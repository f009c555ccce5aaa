"""Two fits on a few labelled rows: a classifier on their features, and the weights of scores with a bias for each
choice."""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Numbers: TypeAlias = npt.NDArray[np.float64]
Floats: TypeAlias = npt.NDArray[np.floating]
RIDGE = 0.3
"""Ridge penalty on the classifier's squared slopes. It, EXPECTED, DOUBT and BIAS_DOUBT were chosen on train rows
(docs/decisions.md)."""
EXPECTED = (1.0, 2.0, 10.0)
"""Prior weights, which hold before any row is seen: of the composition's scores, of the classifier's scores, and of the
similarities to described choices."""
DOUBT = (0.5, 0.3, 0.01)
"""Penalties on the squared differences between the fitted weights and EXPECTED. They are added to the loss in nats,
which is summed over the rows."""
BIAS_DOUBT = 0.5
"""Penalty on the squared biases, in the same loss."""
SMOOTHING = 3
"""Number of additional rows in which each choice counts as right when the shares of right answers are computed."""


@dataclass(frozen=True, slots=True, eq=False)
class Classifier:
    """A ridge regression of each choice (1 where it is right, else 0) on the rows' features."""

    means: Numbers
    """[dimensions], means of the rows' features."""
    slopes: Numbers
    """[dimensions, choices]"""
    shares: Numbers
    """[choices] of the right answers."""
    left_out: Numbers
    """[rows, choices], leave-one-out scores: of each row, by a classifier that was fitted on the other rows."""

    def __call__(self, features: Floats) -> Numbers:
        """A score for each choice: near 1 where it is likely right, near 0 elsewhere."""
        said: Numbers = self.shares + (features - self.means) @ self.slopes
        return said


def state_scale(vectors: Floats, states: Floats) -> float:
    """The factor that gives prompts' states [rows, d] the total variance of the prompts' vectors [rows, dimensions].

    The factor is 0 if the states don't differ.
    """
    spread = float(states.var(axis=0, dtype=np.float64).sum())
    return float(vectors.var(axis=0, dtype=np.float64).sum() / spread) ** 0.5 if spread > 0 else 0.0


def join_features(vectors: Floats, states: Floats, scale: float) -> Numbers:
    """What a classifier knows of prompts: their vectors [..., dimensions] and their states [..., d], side by side."""
    return np.concatenate([vectors.astype(np.float64), scale * states.astype(np.float64)], axis=-1)


def fit_classifier(features: Numbers, right: Numbers) -> Classifier:
    """Fit on features [rows, dimensions] and right answers [rows, choices], one-hot; at least two rows."""
    means, shares = features.mean(axis=0), right.mean(axis=0)
    centred = features - means
    inverse = np.linalg.inv(centred @ centred.T + RIDGE * np.eye(len(features)))
    duals = inverse @ (right - shares)
    # A row's error without the row itself follows from its error and its leverage.
    errors = RIDGE * duals / (RIDGE * inverse.diagonal() - 1 / len(features))[:, None]
    return Classifier(means, centred.T @ duals, shares, right - errors)


def fit_weights(parts: Numbers, right: Numbers) -> Numbers:
    """Weights [kinds] of two or three kinds of scores, then biases [choices], under which the right answers are most
    likely.

    `parts` [rows, choices, kinds] are the scores, in the order of EXPECTED, and `right` [rows, choices] is one-hot. The
    probabilities are the softmax over weighted scores plus biases. The shares of right answers are computed with
    SMOOTHING, and the penalties DOUBT and BIAS_DOUBT are subtracted.
    """
    rows, choices, kinds = parts.shape
    shares = (right.sum(axis=0) + SMOOTHING) / (rows + SMOOTHING * choices)
    wanted = np.concatenate([np.einsum("rc,rck->k", right, parts), rows * shares])
    expected = np.array([*EXPECTED[:kinds], *[0.0] * choices])
    doubt = np.array([*DOUBT[:kinds], *[BIAS_DOUBT] * choices])

    def scored(weights: Numbers) -> Numbers:
        added: Numbers = parts @ weights[:kinds] + weights[kinds:]
        return added

    def loss(weights: Numbers) -> float:
        likely = np.logaddexp.reduce(scored(weights), axis=1).sum() - wanted @ weights
        return float(likely + doubt @ (weights - expected) ** 2)

    weights, reached = expected, loss(expected)
    for _ in range(50):  # Newton's steps; the loss is convex
        scores = scored(weights)
        likely = np.exp(scores - np.logaddexp.reduce(scores, axis=1, keepdims=True))
        slope, curvature = _derivatives(parts, likely)
        slope += 2 * doubt * (weights - expected) - wanted
        curvature += 2 * np.diag(doubt)
        step = np.linalg.solve(curvature, slope)
        while (left := loss(weights - step)) > reached and abs(step).max() > 1e-9:
            step = step / 2
        weights, reached = weights - step, left
        if abs(step).max() < 1e-6:
            break
    return weights


def _derivatives(parts: Numbers, likely: Numbers) -> tuple[Numbers, Numbers]:
    """Slope and curvature, by weights and biases, of the rows' summed log of the softmax's denominator.

    `likely` [rows, choices] is the softmax. The largest product multiplies the biases with each other; its time grows
    with rows times choices squared.
    """
    kinds = parts.shape[2]
    weighted = likely[:, :, None] * parts
    mean = np.concatenate([weighted.sum(axis=1), likely], axis=1)
    curvature: Numbers = -mean.T @ mean
    curvature[:kinds, :kinds] += np.einsum("rck,rcj->kj", weighted, parts)
    curvature[kinds:, :kinds] += weighted.sum(axis=0)
    curvature[:kinds, kinds:] += weighted.sum(axis=0).T
    curvature[kinds:, kinds:] += np.diag(likely.sum(axis=0))
    return mean.sum(axis=0), curvature
