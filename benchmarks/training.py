"""Measures the rows per second of training, for several ways of using the cores.

    python -m benchmarks.training ../shared/data [--task mnli] [--turns 3]

Each way runs in its own processes, and the ways take turns. Every turn trains on the same rows; loading the model and
the first step do not count.
"""

import argparse
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from benchmarks.pages import as_markdown

ROOT = Path(__file__).parents[1]
CORES = os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class Way:
    """A way to use a machine's cores for training."""

    name: str
    processes: int
    keep_memory: bool
    layers_from: int
    """The first adapted layer; no gradients are computed below it."""


WAYS = (
    Way("one process, all cores", 1, False, 0),
    Way("one process, all cores, freed memory kept", 1, True, 0),
    Way("a process for each core, freed memory kept", CORES, True, 0),
    Way("a process for each core, freed memory kept, only layers 10 to 29 adapted", CORES, True, 10),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--task", default="mnli")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(train(options.data / options.task, options.task, WAYS[int(options.way)], options.steps))
        return
    rates: dict[str, list[float]] = {way.name: [] for way in WAYS}
    for way in list(WAYS) * options.turns:
        rates[way.name].append(rate(way, options))
    print(table(rates))


def rate(way: Way, options: argparse.Namespace) -> float:
    """Return the rows per second of all processes of a way together."""
    command = [sys.executable, "-m", "benchmarks.training", str(options.data), "--task", options.task]
    command += ["--steps", str(options.steps), "--way", str(WAYS.index(way))]
    environment = os.environ | {"OMP_NUM_THREADS": str(CORES // way.processes)}
    running = [
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(way.processes)
    ]
    return sum(float(process.communicate()[0]) for process in running)


def train(folder: Path, task: str, way: Way, steps: int) -> float:
    """Train in this process; returns rows per second."""
    import torch  # noqa: PLC0415  the parent needs no model

    from loracomp.config import load_settings  # noqa: PLC0415
    from loracomp.model.cpu import keep_freed_memory  # noqa: PLC0415
    from loracomp.model.loading import load_base_model  # noqa: PLC0415
    from loracomp.registry.library_files import packaged, read_manifest  # noqa: PLC0415
    from loracomp_lab.catalogue import load_entry, read_examples  # noqa: PLC0415
    from loracomp_lab.training.config import training_config  # noqa: PLC0415
    from loracomp_lab.training.rows import choose_rows, training_order  # noqa: PLC0415
    from loracomp_lab.training.train import with_factors  # noqa: PLC0415
    from loracomp_lab.training.trainer import compute_loss  # noqa: PLC0415

    if way.keep_memory:
        keep_freed_memory()
    torch.set_num_threads(CORES // way.processes)
    base = load_base_model(read_manifest(packaged()).base_model.source, cache_dir=load_settings().home / "models")
    layers = tuple(range(way.layers_from, 30)) if way.layers_from else None
    config = training_config(max_rows=16 * (steps + 1), held_out=0, layers=layers)
    rows = choose_rows([lambda *_: read_examples(load_entry(task), "train", str(folder))], base, config)
    order = training_order(rows.epochs, config)
    model = with_factors(base, config)
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=1e-3)
    start = 0.0
    for step in range(steps + 1):
        start = start if step > 1 else perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=base.model.dtype == torch.bfloat16):
            loss = compute_loss(model, order[16 * step : 16 * (step + 1)], config)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return 16 * steps / (perf_counter() - start)


def table(rates: dict[str, list[float]]) -> str:
    """Return a table with a row for each way."""
    medians = {name: statistics.median(each) for name, each in rates.items()}
    first = next(iter(medians.values()))
    lines = [
        [name, f"{medians[name]:.1f}", f"{min(each):.1f} to {max(each):.1f}", f"{medians[name] / first:.2f}"]
        for name, each in rates.items()
    ]
    return as_markdown([["way", "rows a second, median", "range", "of the first"], *lines])


if __name__ == "__main__":
    main()
