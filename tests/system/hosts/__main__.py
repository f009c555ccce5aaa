"""`make test-hosts`: try what several hosts can do to a queue; exits with 69 where this machine can't have hosts."""

import inspect
import json
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

import network
import servers
from failovers import failover_asynchronous, failover_synchronous
from lab import Lab, Outcome, lab
from patroni import patroni
from restore import restore_to_a_moment
from worker_hosts import far_hosts, host_cut_off, more_hosts, standby

TRIALS: dict[str, Callable[..., Outcome]] = {
    trial.__name__: trial
    for trial in (
        more_hosts,
        far_hosts,
        host_cut_off,
        standby,
        failover_synchronous,
        failover_asynchronous,
        patroni,
        restore_to_a_moment,
    )
}
console = Console(stderr=True)


def main(
    only: Annotated[list[str] | None, typer.Option(help=f"A trial: {', '.join(TRIALS)}.")] = None,
    size: Annotated[int, typer.Option(help="Seconds, times ten, that a rate is measured for.", min=40)] = 60,
    failovers: Annotated[int, typer.Option(help="How often the primary dies, in each trial where it does.", min=1)] = 3,
    cut_s: Annotated[float, typer.Option(help="Seconds that a host is cut off for.", min=5)] = 12,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Exits with 1 where a job was lost or doubled, or a goal was missed."""
    unknown = set(only or ()) - set(TRIALS)
    if unknown:
        raise typer.BadParameter(f"no such trial: {', '.join(unknown)}", param_hint="--only")
    if missing := network.missing() + servers.missing():
        print(f"no hosts on this machine: it lacks {', '.join(missing)}", file=sys.stderr)
        raise typer.Exit(69)
    # As an exception, it lets every context end: namespaces and servers would stay otherwise.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    rows = []
    with lab(size) as place:
        for name in only or TRIALS:
            rows.append(attempt(place, name, failovers=failovers, cut_s=cut_s))
            console.print(f"[dim]{rows[-1]}[/dim]", highlight=False)
    if as_json:
        json.dump(rows, sys.stdout, indent=2)
    else:
        Console().print(as_table(rows))
    if any(row["lost"] or row["doubled"] or row["broken"] for row in rows):
        raise typer.Exit(1)


def attempt(place: Lab, name: str, **options: float) -> dict[str, Any]:
    """One run of one trial. Of the options, the trial gets the ones that it takes."""
    trial, started = TRIALS[name], time.monotonic()
    taken = {key: value for key, value in options.items() if key in inspect.signature(trial).parameters}
    what = (trial.__doc__ or "").strip().rstrip(".")
    row: dict[str, Any] = {"trial": name, "what": what, "broken": 0}
    try:
        outcome = trial(place, **taken)
        row |= asdict(outcome) | {"broken": int("MISSED" in outcome.note)}
    except Exception as error:
        traceback.print_exc()
        row |= asdict(Outcome(0, 0, 0, note=f"{type(error).__name__}: {error}")) | {"broken": 1}
    return row | {"took_s": round(time.monotonic() - started, 1)}


def as_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="hosts", title_justify="left")
    for title in ("trial", "jobs", "lost", "doubled", "first answer after, s", "took, s", "remark"):
        table.add_column(title, justify="left" if title in ("trial", "remark") else "right", overflow="fold")
    for row in rows:
        seconds = sorted(row["seconds"])
        spread = f"{seconds[0]:.1f} to {seconds[-1]:.1f}" if seconds else "-"
        numbers = [f"{row[key]:,}" for key in ("tried", "lost", "doubled")]
        table.add_row(row["what"], *numbers, spread, str(row["took_s"]), row["note"])
    return table


if __name__ == "__main__":
    typer.run(main)
