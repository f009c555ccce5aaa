"""`make test-containers`: run docker-compose.yml and what people do to it; exits with 69 where containers can't run."""

import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

import bases
import engine
from trials import TRIALS, Outcome, Place, Trial

console = Console(stderr=True)


def main(
    torch_options: Annotated[str, typer.Option(help="Options of pip for torch.")] = "",
    keep: Annotated[Path | None, typer.Option(help="Folder that keeps the images for the next run.")] = None,
) -> None:
    """Exits with 1 where a job was lost or doubled, or a goal was missed."""
    if missing := engine.missing():
        print(f"no containers on this machine: it lacks {', '.join(missing)}", file=sys.stderr)
        raise typer.Exit(69)
    # So that what was started is stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    table = Table(title="containers", title_justify="left")
    for title in ("trial", "jobs", "lost", "doubled", "took, s", "remark"):
        table.add_column(title, justify="left" if title in ("trial", "remark") else "right", overflow="fold")
    good = True
    with engine.engine(keep) as podman:
        for base in bases.BASES:
            if not podman.has(base.name):
                console.print(f"[dim]a stand-in for {base.name}[/dim]")
                bases.make(podman, base)
        place = Place(podman, torch_options)
        for trial in TRIALS:
            outcome, took_s = attempt(trial, place)
            good = good and not (outcome.lost or outcome.doubled or outcome.missed)
            remark = "; ".join([*outcome.remarks, *(f"MISSED {goal}" for goal in outcome.missed)])
            numbers = [f"{number:,}" for number in (outcome.jobs, outcome.lost, outcome.doubled)]
            table.add_row(trial.__doc__, *numbers, f"{took_s:.0f}", remark)
            console.print(f"[dim]{trial.__doc__}: {remark}[/dim]", highlight=False)
    Console().print(table)
    raise typer.Exit(not good)


def attempt(trial: Trial, place: Place) -> tuple[Outcome, float]:
    started = time.monotonic()
    try:
        outcome = trial(place)
    except Exception as error:
        traceback.print_exc()
        outcome = Outcome(missed=[f"{type(error).__name__}: {error}"])
    return outcome, time.monotonic() - started


if __name__ == "__main__":
    typer.run(main)
