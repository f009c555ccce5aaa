"""Draws how the time of a pass grows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

PANELS = {
    "batch": "jobs in a batch, all different",
    "distinct": "different compositions, batch of {largest}",
    "in_a_mix": "adapters in a mix, batch of {growing}",
    "rank": "rank of the adapters, batch of {growing}",
}


def draw_growth(measured: Mapping[str, Any], path: Path) -> None:
    """Plot jobs/s with mixes relative to the base model alone. The same figures always give the same file."""
    mpl.rcParams.update({"svg.hashsalt": "loracomp", "font.size": 9})
    figure = Figure(figsize=(11, 2.8), layout="constrained")
    for panel, (name, title) in zip(figure.subplots(1, len(PANELS), sharey=True), PANELS.items(), strict=True):
        _draw(panel, measured["curves"][name])
        panel.set_title(title.format(**measured["sizes"]), loc="left", fontsize=9)
    figure.supylabel("jobs/s, base model alone = 1", fontsize=9)
    figure.savefig(path, metadata={"Date": None}, bbox_inches="tight")


def _draw(panel: Any, points: Sequence[Mapping[str, float]]) -> None:
    x, ratio = [point["x"] for point in points], [point["ratio"] for point in points]
    spread = [[point["ratio"] - point["low"] for point in points], [point["high"] - point["ratio"] for point in points]]
    panel.errorbar(x, ratio, yerr=spread, fmt="o-", color="#1f77b4", markersize=4, capsize=2)
    panel.axhline(1, color="#555555", linewidth=0.8, linestyle=":")
    panel.set_xscale("log", base=2)
    panel.set_xticks(x, [f"{each:g}" for each in x])
    panel.set_ylim(0, 1.2)
    panel.grid(axis="y", linewidth=0.4, alpha=0.5)
    panel.spines[["top", "right"]].set_visible(False)
