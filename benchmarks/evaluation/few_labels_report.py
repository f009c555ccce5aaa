"""Makes the table of few labelled rows in docs/figures.md from docs/performance/few_labels.json."""

from collections.abc import Mapping
from typing import Any

from benchmarks.pages import as_markdown

PARTS = {"unfamiliar": "five unfamiliar tasks", "kept_out": "twelve library tasks, families kept out"}
WAYS = {
    "base": "`base`",
    "majority": "most frequent answer",
    "classifier": "classifier alone",
    "nearest": "five nearest labels",
    "biased": "mix, biases alone",
    "product": "product",
    "measured": "mix and classifier",
}
"""Headings of the columns, by the methods' names in the file."""
GOALS = {"unfamiliar_16": 15, "unfamiliar_64": 24, "kept_out_16": 12, "kept_out_64": 18}
"""Goals: points by which mix and classifier should exceed `base`, by the parts' names in the file."""


def few_labels_tables(kept: Mapping[str, Any]) -> dict[str, str]:
    """The table, as a dictionary whose key names the table in docs/figures.md."""
    return {"few-labels": as_markdown(means(kept))}


def means(kept: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row for each part and number of labelled rows: the mean over tasks of each method, in %."""
    header = ("test rows", "labelled", *WAYS.values(), "more than `base`", "goal", "more than the best single one")
    rows = [header]
    for name, part in kept.items():
        of, _, count = name.rpartition("_")
        singles = {way: part["right"][way][0] for way in part["more"] if way not in ("base", "product")}
        best = max(singles, key=singles.__getitem__)
        right = (f"{part['right'][way][0]:.1f}" for way in WAYS)
        base, single = (_points(part["more"][way]) for way in ("base", best))
        goal = f"+{GOALS[name]}" if name in GOALS else ""
        rows.append((f"{PARTS[of]} ({part['rows']:,})", count, *right, base, goal, single))
    return rows


def _points(interval: tuple[float, float, float]) -> str:
    mean, low, high = interval
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"
