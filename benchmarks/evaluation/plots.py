"""The page's pictures, drawn from the same views as its tables."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

Rows = list[dict[str, str]]

PARTS = {
    "library": "tasks of the library",
    "held_out": "the same, other words",
    "handwritten": "written by hand",
    "own_excluded": "own task kept out",
    "unseen": "tasks with twins",
    "unfamiliar": "unfamiliar tasks",
}
COLOURS = {"reference": "#555555", "mix": "#1f77b4", "control": "#d08a2e"}
ACCURACY = """
SELECT a.part, a.scope, a.policy, a.tasks, a.accuracy, a.low, a.high,
    CASE
        WHEN a.is_mix THEN 'mix' WHEN a.policy IN (
            'base', 'own_task', 'own_task_contrast', 'nearest', 'nearest_contrast'
        ) THEN 'reference' ELSE 'control'
    END AS kind
FROM report.accuracy AS a
WHERE a.scope IN ('task', 'all') AND NOT (a.part = 'own_excluded' AND a.policy = 'own_task')
ORDER BY report.place(a.policy), a.policy, a.part, a.scope, a.task
"""
CONFUSION = """
SELECT m.task, m.top_task, m.family, count(*)::double precision / sum(count(*)) OVER (PARTITION BY m.task) AS share
FROM report.measured AS m WHERE m.part = 'routing' AND m.top_task IS NOT NULL
GROUP BY m.task, m.top_task, m.family ORDER BY m.family, m.task, m.top_task
"""


def draw_plots(query: Callable[[str], Rows], folder: Path) -> None:
    """Write accuracy.svg and confusion.svg. The same figures always give the same files."""
    mpl.rcParams.update({"svg.hashsalt": "loracomp", "font.size": 9})
    for name, draw, rows in (
        ("accuracy", draw_accuracy, query(ACCURACY)),
        ("confusion", draw_confusion, query(CONFUSION)),
    ):
        if rows:
            draw(rows).savefig(folder / f"{name}.svg", metadata={"Date": None}, bbox_inches="tight")


def draw_accuracy(rows: Rows) -> Figure:
    """A panel for each part: means with their intervals, and each task as a dot."""
    parts = [part for part in PARTS if any(row["part"] == part for row in rows)]
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    figure = Figure(figsize=(2.9 * len(parts) + 1.2, 0.3 * len(policies) + 1.1), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(parts), sharex=True, sharey=True))
    for panel, part in zip(panels, parts, strict=True):
        _draw_part(panel, [row for row in rows if row["part"] == part], policies)
    panels[0].set_yticks(range(len(policies)), policies)
    panels[0].invert_yaxis()
    figure.supxlabel("accuracy in %: mean over tasks with its 95 % interval; a dot is a task", fontsize=9)
    return figure


def _draw_part(panel: Any, rows: Rows, policies: list[str]) -> None:
    jitter = np.random.default_rng(0)
    for row in rows:
        y, x, colour = policies.index(row["policy"]), 100 * float(row["accuracy"]), COLOURS[row["kind"]]
        if row["scope"] == "task":
            dot = {"color": colour, "alpha": 0.35, "markersize": 5, "markeredgewidth": 0}
            panel.plot(x, y + jitter.uniform(-0.22, 0.22), ".", **dot)
        else:
            spread = [[x - 100 * float(row["low"])], [100 * float(row["high"]) - x]]
            panel.errorbar(x, y, xerr=spread, fmt="o", color=colour, markersize=5, capsize=2, zorder=3)
            if row["policy"] == "base":
                panel.axvline(x, color=colour, linewidth=0.8, linestyle=":", zorder=0)
    panel.set_title(f"{PARTS[rows[0]['part']]} ({max(int(row['tasks']) for row in rows)})", loc="left", fontsize=9)
    panel.grid(axis="x", linewidth=0.4, alpha=0.5)
    panel.spines[["top", "right"]].set_visible(False)


def draw_confusion(rows: Rows) -> Figure:
    """A matrix: which task (columns) is most probable for the rows of each task (rows), in %; sorted by family."""
    families = {row["task"]: row["family"] for row in rows}
    tasks = list(families)
    shares = np.zeros((len(tasks), len(tasks)))
    for row in rows:
        if row["top_task"] in families:
            shares[tasks.index(row["task"]), tasks.index(row["top_task"])] = 100 * float(row["share"])
    size = 0.3 * len(tasks) + 1.8
    figure = Figure(figsize=(size, size), layout="constrained")
    panel = figure.subplots()
    panel.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    for (y, x), share in np.ndenumerate(shares):
        if share >= 1:
            colour = "white" if share > 55 else "black"
            panel.text(x, y, f"{share:.0f}", ha="center", va="center", fontsize=6.5, color=colour)
    for place in range(1, len(tasks)):
        if families[tasks[place]] != families[tasks[place - 1]]:
            panel.axhline(place - 0.5, color="#888888", linewidth=0.8)
            panel.axvline(place - 0.5, color="#888888", linewidth=0.8)
    panel.set_xticks(range(len(tasks)), tasks, rotation=90)
    panel.set_yticks(range(len(tasks)), tasks)
    panel.set(xlabel="most probable task", ylabel="rows of")
    panel.tick_params(length=0)
    panel.set_title("% of each task's rows", loc="left", fontsize=9)
    return figure
