"""Measures the engine: each figure is the ratio of two systems in one run. `make figures` shows them in
docs/figures.md.

    python -m benchmarks.engine

The command uses its own database, with the shipped library and its base model, on the server that LORACOMP_DATABASE_URL
names (where it must be allowed to create databases) or on the embedded server. Results are stored as JSON; measuring a
part again replaces its older figures.
"""

import argparse
import json
import platform
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from rich.console import Console
from transformers.utils import logging as transformers_logging

from . import batching, composing, labelled, library, measuring, paper, passes, system
from .report import keep, read_results, table
from .timing import Figure, Measured
from .workbench import Sizes, Workbench, open_workbench

ROOT = Path(__file__).parents[2]
console = Console(stderr=True, highlight=False)

PARTS: dict[str, Callable[[Workbench, int], Measured]] = {
    "scoring": passes.scoring,
    "paper": paper.against_paper,
    "generation": passes.generation,
    "batching": batching.batching,
    "merging": paper.merging,
    "throughput": system.throughput,
    "latency": system.latency,
    "beside": batching.beside_a_text,
    "library": library.library_size,
    "measuring": measuring.measuring,
    "labelled": labelled.labelled,
    "memory": composing.memory,
}
TURNS_OF = {
    **{"scoring": 1.4, "generation": 1.4, "merging": 2, "latency": 6, "beside": 2, "batching": 0.6},
}
"""The parts that run more turns than other parts, and how many times as many."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    options = parse_arguments(arguments)
    parts = options.only or list(PARTS)
    transformers_logging.set_verbosity_error()
    warnings.filterwarnings("ignore", module="peft|transformers")
    with console.status("loading library and models"), open_workbench(sizes_of(options)) as bench:
        machine = describe_machine(bench)
        for part in parts:
            console.print(f"measuring {part}")
            turns = max(1, round(options.turns * TURNS_OF.get(part, 1)))
            keep(options.out, part, machine | as_json(PARTS[part](bench, turns)))
    # The terminal shows only the results of this run; the docs show all stored results.
    results = {part: found for part, found in read_results(options.out).items() if part in parts}
    if options.json:
        json.dump(results, sys.stdout, indent=2)
    else:
        Console().print(table(results))


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.engine",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--turns", type=at_least(1), default=5, help="number of turns of each side, more for short parts; 5"
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, help="some parts only")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "performance", help="folder of results")
    for size in fields(Sizes):
        parser.add_argument(f"--{size.name.replace('_', '-')}", type=int, default=size.default, help=f"{size.default}")
    parser.add_argument("--json", action="store_true", help="print everything that was measured instead of a table")
    options = parser.parse_args(arguments)
    if wrong := sizes_of(options).too_small():
        parser.error(wrong)
    return options


def at_least(least: int) -> Callable[[str], int]:
    """Return the type of an option that must be a whole number of this size or larger."""

    def integer(text: str) -> int:
        if (number := int(text)) < least:
            raise argparse.ArgumentTypeError(f"{number} is less than {least}")
        return number

    return integer


def sizes_of(options: argparse.Namespace) -> Sizes:
    """Return the sizes given on the command line."""
    return Sizes(**{size.name: getattr(options, size.name) for size in fields(Sizes)})


def describe_machine(bench: Workbench) -> dict[str, Any]:
    """Describe the machine on which the figures are measured."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_device(bench.base.model),
        "versions": versions(),
        "base_model": bench.engine.base_name,
        "sizes": asdict(bench.sizes),
    }


def describe_device(model: transformers.PreTrainedModel) -> str:
    """Name the device that the model is on, and the dtype in which it computes."""
    device = (
        torch.cuda.get_device_name()
        if model.device.type == "cuda"
        else f"{processor()}, {torch.get_num_threads()} threads"
    )
    return f"{device}, {str(model.dtype).removeprefix('torch.')}"


def versions() -> str:
    """Return the versions of Python and of the numerical libraries."""
    libraries = ", ".join(f"{each.__name__} {each.__version__}" for each in (torch, transformers, peft))
    return f"Python {platform.python_version()}, {libraries}"


def processor() -> str:
    """Return the processor's name if the system has /proc/cpuinfo, otherwise its architecture."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def as_json(measured: Measured) -> dict[str, Any]:
    """Return the results of a part with its figures as dicts, ready for JSON."""
    figures: list[Figure] = measured.get("figures", [])
    return {**measured, "figures": [figure.as_dict() for figure in figures]}


if __name__ == "__main__":
    main()
