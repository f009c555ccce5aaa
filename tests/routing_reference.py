"""Routing's weights in NumPy, written from the definition and not from the SQL."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
SPARE = 1e-9


@dataclass(frozen=True)
class Settings:
    routing_temperature: float = 0.1
    routing_top_p: float = 0.95
    max_adapters: int = 8
    weighting: str = "similarity"
    min_share: float = 0.0
    gain_prior: float = 0.1
    gain_margin: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Weighted:
    """Tasks in the order of falling probability."""

    tasks: list[int]
    probabilities: Floats
    kept: npt.NDArray[np.bool_]
    weights: Floats


def nucleus_of(masses: Floats, top_p: float) -> int:
    """Return the size of the smallest set that reaches top_p, of these falling masses, which sum to 1."""
    return int(np.searchsorted(np.cumsum(masses), top_p - SPARE)) + 1


def weigh(tasks: list[int], similarities: list[float], settings: Settings) -> Weighted:
    if not tasks:
        return Weighted([], np.zeros(0), np.zeros(0, bool), np.zeros(0))
    best_first = np.argsort(-np.array(similarities), kind="stable")
    names, scores = np.array(tasks)[best_first], np.array(similarities)[best_first]
    shares = np.exp((scores - scores[0]) / settings.routing_temperature)
    shares /= shares.sum()
    found = list(dict.fromkeys(names.tolist()))  # best first: so ties keep that order
    masses = np.array([shares[names == name].sum() for name in found])
    order = np.argsort(-np.round(masses, 12), kind="stable")
    probabilities = masses[order] / masses.sum()
    kept = np.arange(len(found)) < min(nucleus_of(probabilities, settings.routing_top_p), settings.max_adapters)
    shares_of_kept = probabilities / probabilities[kept].sum()
    kept &= (shares_of_kept >= settings.min_share - SPARE) | (np.arange(len(found)) == 0)
    weights = np.where(kept, probabilities if settings.weighting == "similarity" else 1.0, 0)
    return Weighted([found[i] for i in order], probabilities, kept, weights / weights.sum())


def expect(similarities: list[float], gains: Floats, settings: Settings) -> Floats:
    """Return the expected gain of each adapter from the examples' gains [examples, adapters], which are NaN if not
    measured. The result is NaN for an adapter without gains."""
    shares = np.exp((np.array(similarities) - max(similarities)) / settings.routing_temperature)
    shares /= shares.sum()
    known = ~np.isnan(gains)
    expected = shares @ np.where(known, gains, 0) / (shares @ known + settings.gain_prior)
    return np.where(known.any(axis=0), expected, np.nan)


def weigh_by_gain(gains: Floats, settings: Settings) -> Floats:
    """Return the weights of adapters by their expected gains, which are NaN if unknown. All weights are 0 if no gain is
    above the margin."""
    best_first = np.argsort(-np.nan_to_num(gains, nan=-np.inf), kind="stable")
    kept = np.zeros(len(gains), bool)
    kept[best_first[: settings.max_adapters]] = True
    kept &= np.nan_to_num(gains, nan=-np.inf) > settings.gain_margin
    worth = np.where(kept, gains - min(settings.gain_margin, 0), 0)
    if kept.any():
        kept &= (worth >= (settings.min_share - SPARE) * worth.sum()) | (np.arange(len(gains)) == best_first[0])
    worth = np.where(kept, worth, 0)
    return worth / (worth.sum() or 1)
