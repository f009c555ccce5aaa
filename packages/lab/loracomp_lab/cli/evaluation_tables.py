"""Prints the results of an evaluation as tables."""

from collections.abc import Callable, Iterator
from typing import Any

from loracomp.cli import common
from loracomp_lab.accuracy import Rows
from loracomp_lab.evaluation import REFERENCES

# The columns of each table that are printed into a pipe.
_COLUMNS = {
    "accuracy": "scope family own_task policy tasks n accuracy accuracy_low accuracy_high",
    "pairs": "policy_a policy_b tasks tasks_ahead tasks_behind n only_a only_b difference difference_low "
    "difference_high p",
}


def print_results(results: dict[str, Rows]) -> None:
    """Print each policy's accuracy by task, by family and overall, and its difference from REFERENCES."""
    shown = results | {"pairs": [row for row in results["pairs"] if row["scope"] == "all"]}
    for number, name in enumerate(name for name in _TABLES if shown[name]):
        title, tables = _TABLES[name]
        if number:
            common.say("")
        if common.console.is_terminal:
            for cells in tables(shown[name]):
                common.emit_table(cells, list(cells[0]), title)
        else:
            common.emit(shown[name], title=title, as_json=False, columns=_COLUMNS[name].split())


def _accuracy(rows: Rows) -> Iterator[Rows]:
    """Print a column for each policy, in several tables if the terminal is too narrow."""
    lines: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        lines.setdefault((row["scope"], _rows_of(row)), {})[row["policy"]] = row
    policies = sorted({row["policy"] for row in rows}, key=lambda name: (name not in REFERENCES, name))
    widest = max(len(part) for policy in (*policies, "00 to 000") for part in policy.split("_"))
    room = common.console.width - max(len(name) for _, name in lines) - len("  00000")
    size = max(1, room // (widest + 2))
    for first in range(0, len(policies), size):
        some = policies[first : first + size]
        yield [_line(name, found, some) for (_, name), found in lines.items()]


def _rows_of(row: dict[str, Any]) -> str:
    if row["scope"] == "task":
        return str(row["own_task"])
    return f"{row['family'] or 'all'}, mean"


def _line(name: str, found: dict[str, dict[str, Any]], policies: list[str]) -> dict[str, Any]:
    """Return the cells of a task or family; `n` is the number of answers, which differs between policies if jobs
    failed."""
    answered = max(row["n"] for row in found.values())
    return {"rows of": name, "n": answered, **{policy: _share(found.get(policy)) for policy in policies}}


def _share(row: dict[str, Any] | None) -> str | None:
    if row is None or row["accuracy"] is None:
        return None
    return f"{100 * row['accuracy']:.1f}\n{100 * row['accuracy_low']:.0f} to {100 * row['accuracy_high']:.0f}"


def _pairs(rows: Rows) -> Iterator[Rows]:
    """Print a row for each policy, and a column for each policy that it is compared with."""
    lines: dict[str, dict[str, Any]] = {row["policy_a"]: {"policy": row["policy_a"]} for row in rows}
    for against in dict.fromkeys(row["policy_b"] for row in rows):
        found = {row["policy_a"]: row for row in rows if row["policy_b"] == against}
        for policy, line in lines.items():
            line[f"against {against.replace('_', ' ')}"] = _difference(found[policy]) if policy in found else None
    yield list(lines.values())


def _difference(row: dict[str, Any]) -> str:
    low, high = 100 * row["difference_low"], 100 * row["difference_high"]
    return f"{100 * row['difference']:+.1f}, {low:+.1f} to {high:+.1f}, p {row['p']:.2g}"


_TABLES: dict[str, tuple[str, Callable[[Rows], Iterator[Rows]]]] = {
    "accuracy": ("Accuracy in %, with its 95 % interval", _accuracy),
    "pairs": ("Differences in points on the same rows, mean over tasks, with the 95 % interval", _pairs),
}
