"""The result of a round of a part, and the parts by name. Only the seed decides what a round does, so it can be
repeated."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from town import Ground


@dataclass
class Round:
    """The result of a round: how much was tried, and what was found."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


Part: TypeAlias = Callable[[Ground, int, float], Round]
"""A function that runs the round of a seed; with a size below 1 it tries less."""


def parts() -> dict[str, Part]:
    """Return the parts in the order of README.md."""
    from backlogs import backlogs
    from boundaries import boundaries
    from corrections import corrections
    from failing import steps
    from histories import histories
    from libraries import libraries
    from lineages import lineages
    from locks import locks
    from models import models
    from restores import restores
    from turns import turns

    return {
        "boundaries": boundaries, "locks": locks, "steps": steps,
        "histories": histories, "backlogs": backlogs, "corrections": corrections, "turns": turns, "lineages": lineages,
        "restores": restores, "libraries": libraries, "models": models,
    }  # fmt: skip


def command(name: str, seed: int) -> str:
    """Return the command that repeats a round."""
    return f"make attack PART={name} SEED={seed}"
