"""Times of runs that take turns, so that what else the machine does meets all of them alike."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import median, quantiles
from time import perf_counter
from typing import Any

Seconds = Mapping[str, Sequence[float]]
"""What ran -> the seconds of each of its turns."""


@dataclass(frozen=True)
class Figure:
    """A ratio, measured side by side in one run."""

    name: str
    what: str
    against: str
    goal: str
    """Such as '>= 0.95'."""
    ratio: float
    """Median over the turns."""
    low: float
    high: float
    """Quartiles over the turns."""
    n: int
    details: Mapping[str, float]
    """Medians of both sides, and what else explains the ratio; names end in their unit."""

    @property
    def holds(self) -> bool:
        sign, number = self.goal.split()
        return self.ratio >= float(number) if sign == ">=" else self.ratio <= float(number)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "holds": self.holds}


Measured = dict[str, Any]
"""What a part of the benchmark found: `figures`, and `steps` (step -> ms) or `curves` where it has them."""


def take_turns(runs: Mapping[str, Callable[[int], object]], turns: int) -> Seconds:
    """Seconds of each run in each turn, by its number; turn 0 does not count, every other one goes backwards."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(turns + 1):
        for name in list(runs)[:: -1 if turn % 2 else 1]:
            with timed() as taken:
                runs[name](turn)
            if turn:
                seconds[name] += taken
    return seconds


@contextmanager
def timed() -> Iterator[list[float]]:
    """A list that holds the block's seconds once it has ended."""
    taken: list[float] = []
    start = perf_counter()
    yield taken
    taken.append(perf_counter() - start)


def compare(
    name: str, what: str, against: str, goal: str, *, ratios: Sequence[float], details: Mapping[str, float]
) -> Figure:
    """A figure out of each turn's ratio."""
    low, _, high = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    details = {name: round(value, 4) for name, value in details.items()}
    return Figure(name, what, against, goal, median(ratios), low, high, len(ratios), details)


def over(seconds: Seconds, one: str, other: str) -> list[float]:
    """Of each turn, seconds of one run over those of another."""
    return [a / b for a, b in zip(seconds[one], seconds[other], strict=True)]


def per_second(seconds: Seconds, count: int) -> dict[str, float]:
    """Median rates of runs that do `count` things each."""
    return {f"{name}, 1/s": count / median(each) for name, each in seconds.items()}


def milliseconds(seconds: Seconds, count: int = 1) -> dict[str, float]:
    """Median milliseconds of one of `count` things."""
    return {f"{name}, ms": 1000 * median(each) / count for name, each in seconds.items()}
