"""Times runs in turns, so that other load on the machine affects all of them equally."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import median, quantiles
from time import perf_counter
from typing import Any

Seconds = Mapping[str, Sequence[float]]
"""For each run, by name, the seconds of each turn."""


@dataclass(frozen=True)
class Figure:
    """A ratio between two runs that were measured alternately."""

    name: str
    what: str
    against: str
    goal: str
    """What the ratio should be, such as '>= 0.95'."""
    ratio: float
    """Median over the turns."""
    low: float
    high: float
    """low and high are the quartiles over the turns."""
    n: int
    details: Mapping[str, float]
    """Medians of both runs, and other numbers that explain the ratio; names end with the unit."""

    @property
    def holds(self) -> bool:
        sign, number = self.goal.split()
        return self.ratio >= float(number) if sign == ">=" else self.ratio <= float(number)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "holds": self.holds}


Measured = dict[str, Any]
"""Results of a part of the benchmark: `figures`, and for some parts `steps` (step -> ms) or `curves`."""


def take_turns(runs: Mapping[str, Callable[[int], object]], turns: int) -> Seconds:
    """Run all runs in turns and return their seconds. Each run gets the turn's number.

    Turn 0 warms up and is not counted; every second turn has the reverse order.
    """
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
    """Yields a list that contains the seconds of the `with` block once it has ended."""
    taken: list[float] = []
    start = perf_counter()
    yield taken
    taken.append(perf_counter() - start)


def compare(
    name: str, what: str, against: str, goal: str, *, ratios: Sequence[float], details: Mapping[str, float]
) -> Figure:
    """Make a Figure from the ratios of all turns: their median and quartiles."""
    low, _, high = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    details = {name: round(value, 4) for name, value in details.items()}
    return Figure(name, what, against, goal, median(ratios), low, high, len(ratios), details)


def over(seconds: Seconds, one: str, other: str) -> list[float]:
    """Return, for each turn, the seconds of run `one` divided by the seconds of run `other`."""
    return [a / b for a, b in zip(seconds[one], seconds[other], strict=True)]


def per_second(seconds: Seconds, count: int) -> dict[str, float]:
    """Return the median rates per second of runs that each process `count` items."""
    return {f"{name}, 1/s": count / median(each) for name, each in seconds.items()}


def milliseconds(seconds: Seconds) -> dict[str, float]:
    """Return the median milliseconds of runs."""
    return {f"{name}, ms": 1000 * median(each) for name, each in seconds.items()}
