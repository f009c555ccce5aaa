"""What a round of a part comes to, and the parts by name. A round is made by its seed alone, so it can be repeated."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from town import Ground


@dataclass
class Round:
    """How much was tried, and what was found."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


Part: TypeAlias = Callable[[Ground, int, float], Round]
"""A round by its seed; of a size less than 1 it does less."""


def parts() -> dict[str, Part]:
    """Those of README.md, in its order."""
    from boundaries import boundaries
    from failing import steps
    from histories import histories
    from locks import locks
    from models import models

    return {"boundaries": boundaries, "locks": locks, "steps": steps, "histories": histories, "models": models}


def command(name: str, seed: int) -> str:
    """What repeats a round."""
    return f"make attack PART={name} SEED={seed}"
