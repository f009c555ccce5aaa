"""Makes the table of docs/scaling.md on many adapters."""

from typing import Any

GROWS = 2
"""The table shows only calls that take at least this many times as long with the most adapters as with the fewest."""
SHORT_MS = 100
"""The table shows only calls that take at least this many milliseconds with the most adapters."""
LEAST_MS = 0.1
"""Shorter times count as this many milliseconds, so that noise does not look like growth."""
Figures = dict[str, dict[str, Any]]


def growing(figures: Figures) -> list[tuple[str, ...]]:
    """Return the milliseconds of the calls that get slower, by the number of adapters, and how much slower they get;
    the slowest come first."""
    sizes = sorted(figures, key=int)
    most = figures[sizes[-1]]["ms"]
    rows = [name for name in most if times(figures, name) >= GROWS and most[name] >= SHORT_MS]
    return [
        ("milliseconds, by active adapters", *(f"{int(size):,}" for size in sizes), "times"),
        *(
            (
                as_code(name),
                *(spoken(figures[size]["ms"].get(name)) for size in sizes),
                f"{times(figures, name):.1f}",
            )
            for name in sorted(rows, key=lambda name: -most[name])
        ),
    ]


def times(figures: Figures, name: str) -> float:
    """Return how many times as long a call takes with the most adapters as with the fewest."""
    sizes = sorted((size for size in figures if name in figures[size]["ms"]), key=int)
    fewest, most = (max(figures[size]["ms"][name], LEAST_MS) for size in (sizes[0], sizes[-1]))
    return most / fewest


def as_code(name: str) -> str:
    return f"`{name}`" if name.startswith("bi.") else name


def spoken(milliseconds: float | None) -> str:
    return "" if milliseconds is None else f"{milliseconds:,.0f}" if milliseconds >= 10 else f"{milliseconds:.1f}"
