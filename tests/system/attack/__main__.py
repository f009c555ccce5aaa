"""`make attack`: rounds of each part for so many minutes, a table of what was tried, and how to repeat what failed."""

import multiprocessing
import os
import random
from concurrent.futures import ProcessPoolExecutor
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from rounds import Round, parts
from running import rounds

console = Console(width=80)


def main(
    minutes: Annotated[float, typer.Option(help="How long, all parts together.", min=0.1)] = 60,
    part: Annotated[list[str] | None, typer.Option(help="A part; may be repeated. Defaults to all.")] = None,
    seed: Annotated[int | None, typer.Option(help="One round by this seed. Defaults to rounds by new ones.")] = None,
    together: Annotated[int, typer.Option(help="Parts that run at the same time.", min=1)] = 1,
) -> None:
    """Run the rounds; exits with 1 if a failure was found."""
    names = part or [*parts()]
    if unknown := set(names) - {*parts()}:
        raise typer.BadParameter(f"no such part: {', '.join(unknown)}", param_hint="--part")
    first = random.SystemRandom().randrange(10**6) if seed is None else seed
    seconds = 0 if seed is not None else 60 * minutes * together / len(names)
    console.print(f"seeds from {first}")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(together, mp_context=context) as pool:
        made = dict(zip(names, pool.map(rounds, names, [first] * len(names), [seconds] * len(names)), strict=True))
    console.print(told(made))
    if any(each.failures for each in made.values()):
        raise typer.Exit(1)


def told(made: dict[str, Round]) -> Table:
    """Return the counts, and each failure in a line."""
    table = Table(title=f"attack, {os.cpu_count()} cores", title_justify="left", width=80)
    for column in ("part", "rounds", "tried", "failures"):
        table.add_column(column, justify="right" if column in ("rounds", "failures") else "left", overflow="fold")
    for name, each in made.items():
        tried = ", ".join(f"{number} {what}" for what, number in sorted(each.counts.items()) if what != "rounds")
        table.add_row(name, str(each.counts["rounds"]), tried, str(len(each.failures)))
        for line in each.failures:
            table.add_row("", "", line[:160], "")
    return table


if __name__ == "__main__":
    typer.run(main)
