"""`make faults`: try every fault, and print what was lost, what doubled, and how long recovery took."""

import json
import os
import sys
import time
import traceback
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from arena import own_server
from faults import FAULTS, SkippedError

console = Console(stderr=True)


def main(
    only: Annotated[list[str] | None, typer.Option(help=f"A fault: {', '.join(FAULTS)}.")] = None,
    jobs: Annotated[int, typer.Option(help="Jobs that a fault is tried with, or a multiple of it.", min=40)] = 200,
    runs: Annotated[int, typer.Option(help="How often each is tried.", min=1)] = 1,
    model: Annotated[str, typer.Option(help="none, or real: SmolLM2 with the shipped library.")] = "none",
    keep: Annotated[Path | None, typer.Option(help="JSON lines: runs are added, and all that it holds shown.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Exits with 1 where a job was lost or doubled, or a fault's own promise was broken."""
    unknown = set(only or ()) - set(FAULTS)
    if unknown:
        raise typer.BadParameter(f"no such fault: {', '.join(unknown)}", param_hint="--only")
    rows = [json.loads(line) for line in keep.read_text().splitlines()] if keep and keep.exists() else []
    with own_server(model) as server:
        for name in only or FAULTS:
            for _ in range(runs):
                rows.append(attempt(server, name, jobs))
                console.print(f"[dim]{rows[-1]}[/dim]", highlight=False)
                if keep:
                    with keep.open("a") as file:
                        print(json.dumps(rows[-1]), file=file)
    kinds = dict.fromkeys((row["fault"], row["model"]) for row in rows)
    summary = [summarized([row for row in rows if (row["fault"], row["model"]) == kind]) for kind in kinds]
    if as_json:
        json.dump(summary, sys.stdout, indent=2)
    else:
        Console().print(as_table(summary))
    if any(row["lost"] or row["doubled"] or row["broken"] for row in summary):
        raise typer.Exit(1)


def attempt(server: Any, name: str, jobs: int) -> dict[str, Any]:
    """One run of one fault."""
    started = time.monotonic()
    row: dict[str, Any] = {
        "fault": name,
        "model": server.model,
        "day": date.today().isoformat(),
        "cores": os.cpu_count(),
        **{"jobs": 0, "lost": 0, "doubled": 0, "broken": 0, "recovery_s": None},
    }
    with server.arena(jobs) as arena:
        try:
            remark = FAULTS[name](server, arena)
            row |= asdict(arena.account(remark))
        except SkippedError as skipped:
            row["note"] = f"skipped: {skipped}"
        except Exception as error:
            traceback.print_exc()
            row |= {**asdict(arena.account(f"{type(error).__name__}: {error}")), "broken": 1}
    return row | {"seconds": round(time.monotonic() - started, 1)}


def summarized(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """All runs of a fault as one row; the slowest recovery counts."""
    recoveries = [run["recovery_s"] for run in runs if run["recovery_s"] is not None]
    return {
        "fault": runs[0]["fault"],
        "model": runs[0]["model"],
        "what": (FAULTS[runs[0]["fault"]].__doc__ or "").strip().rstrip("."),
        "runs": len(runs),
        **{key: sum(run[key] for run in runs) for key in ("jobs", "lost", "doubled", "broken")},
        "recovery_s": round(max(recoveries), 2) if recoveries else None,
        "note": runs[-1]["note"],
    }


def as_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="faults", title_justify="left")
    columns = {"what": "fault", "model": "model", "runs": "runs", "jobs": "jobs", "lost": "lost", "doubled": "doubled"}
    columns |= {"recovery_s": "recovery s", "note": "remark"}
    for column, title in columns.items():
        table.add_column(title, justify="left" if column in ("what", "model", "note") else "right", overflow="fold")
    for row in rows:
        table.add_row(*("-" if row[column] is None else str(row[column]) for column in columns))
    return table


if __name__ == "__main__":
    typer.run(main)
