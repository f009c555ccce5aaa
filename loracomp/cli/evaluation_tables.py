"""Prints the results of an evaluation as tables."""

from typing import Any

import typer
from rich.table import Table
from rich.text import Text

from loracomp.cli.common import emit_table
from loracomp.lab.evaluation import REFERENCES, Rows

# The columns of each table that are printed into a pipe or on a narrow terminal.
_COLUMNS = {
    "accuracy": "scope family own_task policy tasks n accuracy accuracy_low accuracy_high",
    "pairs": "policy_a policy_b tasks tasks_ahead tasks_behind n only_a only_b difference difference_low "
    "difference_high p",
    "routing": "scope family own_task policy tasks n true_first family_first true_inside adapters entropy_bits",
}


def print_results(results: dict[str, Rows]) -> None:
    """Print each policy's accuracy by task, by family and overall, its difference from REFERENCES, and its routing."""
    tables = {"accuracy": _accuracy, "pairs": _pairs, "routing": _routing}
    shown = results | {"pairs": [row for row in results["pairs"] if row["scope"] == "all"]}
    filled = [name for name in tables if shown[name]]
    for name in filled:
        if name != filled[0]:
            typer.echo()
        emit_table(tables[name](shown[name]), shown[name], _COLUMNS[name].split())


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in columns:
        table.add_column(column, justify="left" if column in ("rows of", "policy", "against") else "right")
    return table


def _accuracy(rows: Rows) -> Table:
    policies = sorted({row["policy"] for row in rows}, key=lambda name: (name not in REFERENCES, name))
    table = _table("Accuracy in %, with its 95 % interval", "rows of", *policies)
    lines: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        lines.setdefault((row["scope"], _rows_of(row)), {})[row["policy"]] = row
    scope = None
    for (line_scope, name), cells in lines.items():
        if scope not in (None, line_scope):
            table.add_section()
        scope = line_scope
        table.add_row(name, *(_cell(cells.get(policy)) for policy in policies))
    return table


def _rows_of(row: dict[str, Any]) -> str:
    if row["scope"] == "task":
        return str(row["own_task"])
    return f"{row['family'] or 'all'}, mean"


def _cell(row: dict[str, Any] | None) -> Text:
    if row is None or row["accuracy"] is None:
        return Text("-", style="dim")
    low, high = 100 * row["accuracy_low"], 100 * row["accuracy_high"]
    return Text.assemble(f"{100 * row['accuracy']:.1f}", (f"\n{low:.0f} to {high:.0f}, n {row['n']}", "dim"))


def _pairs(rows: Rows) -> Table:
    columns = (
        "policy",
        "against",
        "points",
        "95 %",
        "only it right",
        "only the other",
        "p",
        "tasks ahead",
        "behind",
        "n",
    )
    table = _table("Differences on the same rows, mean over tasks", *columns)
    for row in rows:
        table.add_row(
            row["policy_a"],
            row["policy_b"],
            f"{100 * row['difference']:+.1f}",
            f"{100 * row['difference_low']:+.1f} to {100 * row['difference_high']:+.1f}",
            str(row["only_a"]),
            str(row["only_b"]),
            f"{row['p']:.2g}",
            f"{row['tasks_ahead']} of {row['tasks']}",
            str(row["tasks_behind"]),
            str(row["n"]),
        )
    return table


def _routing(rows: Rows) -> Table:
    columns = (
        "rows of",
        "policy",
        "own task first %",
        "family first %",
        "own task inside %",
        "adapters",
        "entropy, bits",
        "n",
    )
    table = _table("Routing", *columns)
    for row in rows:
        shares = (row["true_first"], row["family_first"], row["true_inside"])
        table.add_row(
            _rows_of(row),
            row["policy"],
            *("-" if share is None else f"{100 * share:.1f}" for share in shares),
            f"{row['adapters']:.2f}",
            "-" if row["entropy_bits"] is None else f"{row['entropy_bits']:.2f}",
            str(row["n"]),
        )
    return table
