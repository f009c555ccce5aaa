"""`make faults`: try every fault, and print what was lost, what doubled, and how long recovery took."""

import json
import os
import subprocess
import sys
import time
import traceback
from contextlib import nullcontext, suppress
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from arena import ROOT, own_server
from faults import FAULTS, SkippedError
from loracomp.database import revision

console = Console(stderr=True)


def main(
    only: Annotated[list[str] | None, typer.Option(help=f"A fault: {', '.join(FAULTS)}.")] = None,
    jobs: Annotated[
        int, typer.Option(help="Number of jobs for each fault; some faults use a multiple of it.", min=40)
    ] = 200,
    runs: Annotated[int, typer.Option(help="How often each fault is tried; 0 only shows the stored runs.", min=0)] = 1,
    model: Annotated[str, typer.Option(help="none, or real: SmolLM2 with the shipped library.")] = "none",
    keep: Annotated[
        Path | None, typer.Option(help="File with JSON lines, to which runs are added; all its runs are shown.")
    ] = None,
    allow_skipped: Annotated[bool, typer.Option(help="Exit with 0 even if faults could not be tried.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Exits with 1 if a job was lost or doubled, if something that a fault checks itself failed, or if a fault could
    not be tried."""
    unknown = set(only or ()) - set(FAULTS)
    if unknown:
        raise typer.BadParameter(f"no such fault: {', '.join(unknown)}", param_hint="--only")
    rows = kept(keep) if keep else []
    with own_server(model) if runs else nullcontext() as server:
        for name in only or FAULTS:
            for _ in range(runs):
                rows.append(attempt(server, name, jobs))
                console.print(f"[dim]{rows[-1]}[/dim]", highlight=False)
                if keep and not rows[-1]["skipped"]:
                    with keep.open("a") as file:
                        print(json.dumps(rows[-1]), file=file)
    found = ([row for row in rows if row["fault"] == name] for name in FAULTS)
    summary = [summarized(runs_of_fault) for runs_of_fault in found if runs_of_fault]
    if as_json:
        json.dump(summary, sys.stdout, indent=2)
    else:
        Console().print(as_table(summary), told(rows))
    bad = any(row["lost"] or row["doubled"] or row["broken"] for row in summary)
    if bad or (not allow_skipped and any(row["skipped"] for row in rows)):
        raise typer.Exit(1)


def kept(file: Path) -> list[dict[str, Any]]:
    """Read the runs in a file, which need not exist yet."""
    if not file.exists():
        return []
    return [{"schema": "", "commit": "", "skipped": 0, **json.loads(line)} for line in file.read_text().splitlines()]


def told(rows: list[dict[str, Any]]) -> str:
    """Return a line that says which commit was run, and when."""
    tried = [row for row in rows if not row["skipped"]]
    commits = ", ".join(sorted({run["commit"] for run in tried} - {""})) or "not noted"
    return f"{len(tried)} runs on {span(tried, 'cores')} cores, {span(tried, 'day')}; commits: {commits}."


def span(runs: list[dict[str, Any]], key: str) -> str:
    """Return the first and the last value, or a dash if none was recorded."""
    found = sorted(str(run[key] or "-") for run in runs)
    return " to ".join(dict.fromkeys((found[0], found[-1]))) if found else "-"


def attempt(server: Any, name: str, jobs: int) -> dict[str, Any]:
    """Run one fault once."""
    started = time.monotonic()
    row: dict[str, Any] = {
        "fault": name,
        "model": server.model,
        "day": date.today().isoformat(),
        "schema": revision.head(),
        "commit": commit(),
        "cores": os.cpu_count(),
        **{"jobs": 0, "lost": 0, "doubled": 0, "broken": 0, "skipped": 0, "recovery_s": None},
    }
    with server.arena(jobs) as arena:
        try:
            remark = FAULTS[name](server, arena)
            row |= asdict(arena.account(remark))
        except SkippedError as skipped:
            row |= {"note": f"skipped: {skipped}", "skipped": 1}
        except Exception as error:
            traceback.print_exc()
            row |= {**asdict(arena.account(f"{type(error).__name__}: {error}")), "broken": 1}
    return row | {"seconds": round(time.monotonic() - started, 1)}


def commit() -> str:
    """Return the commit of this checkout, and whether files have changed since; empty if git does not know."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    with suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    return ""


def summarized(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return all runs of a fault as one row, with the quickest and the slowest recovery."""
    recoveries = [run["recovery_s"] for run in runs if run["recovery_s"] is not None]
    spread = (
        dict.fromkeys(f"{seconds:.1f}" for seconds in (min(recoveries), max(recoveries))) if recoveries else {"-": None}
    )
    return {
        "fault": runs[0]["fault"],
        "what": (FAULTS[runs[0]["fault"]].__doc__ or "").strip().rstrip("."),
        "runs": sum(not run["skipped"] for run in runs),
        **{key: sum(run[key] for run in runs) for key in ("jobs", "lost", "doubled", "broken")},
        "recovery_s": " to ".join(spread),
        "note": runs[-1]["note"],
    }


def as_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="faults", title_justify="left")
    columns = {
        "what": "fault",
        "runs": "runs",
        "jobs": "jobs",
        "lost": "lost",
        "doubled": "doubled",
    }
    columns |= {"recovery_s": "recovery s", "note": "remark"}
    for column, title in columns.items():
        table.add_column(title, justify="left" if column in ("what", "note") else "right", overflow="fold")
    for row in rows:
        table.add_row(*(str(row[column]) for column in columns))
    return table


if __name__ == "__main__":
    typer.run(main)
