"""Measures batches on a library of a thousand adapters, with adapters in memory and with adapters read each time."""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from itertools import count, cycle
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from safetensors.torch import load, save

from loracomp.composition.strategies import LoraFactors
from loracomp.records import Composition
from loracomp.registry.adapter_files import WEIGHTS
from loracomp.registry.adapter_store import fetch_adapters, stage_adapter
from loracomp.registry.library_files import adapter_folder, packaged

from .passes import asking
from .timing import Figure, Measured, Seconds, compare, over, per_second, take_turns, timed
from .workbench import ROOM, Draw, Fetching, Registered, Workbench, drawing, made_up_jobs, once_each

COPIES = "SELECT id, sha256, name FROM loracomp.adapter WHERE starts_with(name, 'copy ')"


def library_size(bench: Workbench, turns: int) -> Measured:
    """Compare batches on the shipped library with batches that use the same number of adapters of a library of a
    thousand."""
    jobs = made_up_jobs(bench.sizes.batch, seed=3)
    few = [Registered(each.id, each.sha256) for each in bench.library[: bench.sizes.used]]
    parts = list(in_parts(staged_copies(bench, bench.sizes.library), len(few)))
    loaded, reading = Reader(bench), Reader(bench)
    for part in parts:  # only the last ones stay in the cache
        loaded.predictor.load(once_each(part))
    seconds = take_turns(
        {
            "22": asking(Reader(bench).predictor, jobs, using([few])),
            "loaded": asking(loaded.predictor, jobs, using(parts[-ROOM:])),
            "read": asking(reading.predictor, jobs, using(parts)),
        },
        turns,
    )
    assert [adapters for adapters, _ in reading.reads] == [len(few)] * (turns + 1)
    return {"figures": [_of_size(bench, seconds, "loaded"), _of_size(bench, seconds, "read", reading.milliseconds)]}


def _of_size(bench: Workbench, seconds: Seconds, large: str, reading_ms: float = 0.0) -> Figure:
    sizes, shipped = bench.sizes, len(bench.library)
    what = (
        f"{sizes.library:,} adapters in the database instead of {shipped}, the {sizes.used} adapters of a batch "
        f"{'in memory' if large == 'loaded' else 'read again'}: jobs/s"
    )
    details = per_second({each: seconds[each] for each in ("22", large)}, sizes.batch) | {"reading, ms": reading_ms}
    ratios = over(seconds, "22", large)
    return compare(f"library {large}", what, f"{shipped} adapters", ">= 0.9", ratios=ratios, details=details)


class Reader:
    """A predictor that reads adapters from the database, with a cache for the adapters of a few batches."""

    def __init__(self, bench: Workbench) -> None:
        self._bench = bench
        self.reads: list[tuple[int, float]] = []
        """For each read, the number of adapters and its seconds."""
        nbytes = sum(
            side.nbytes for each in bench.library[: bench.sizes.used] for f in each.factors.values() for side in f
        )
        # Three quarters of a predictor's memory are for adapters.
        self.predictor = Fetching(bench.base, self._fetch, cache_bytes=4 * (ROOM * nbytes // 3 + 1))

    def _fetch(self, adapter_ids: Sequence[int]) -> list[LoraFactors]:
        with timed() as taken:
            found = fetch_adapters(self._bench.connection, adapter_ids)
        self.reads.append((len(adapter_ids), taken[0]))
        return found

    @property
    def milliseconds(self) -> float:
        """Return the median milliseconds of a read."""
        return 1000 * median(seconds for _, seconds in self.reads)


def using(parts: Iterable[Sequence[Registered]]) -> Draw:
    """Return a function that draws compositions which use each adapter of a part at least once; each call takes the
    next part, in a cycle."""
    following, seeds = cycle(parts), count()

    def some(jobs: int) -> list[Composition]:
        part = next(following)
        draw = drawing(part, seed=next(seeds))
        while True:
            found = draw(jobs)
            if len({id_ for each in found for id_ in each.adapter_ids}) == len(part):
                return found

    return some


def in_parts(adapters: Sequence[Registered], size: int) -> Iterator[Sequence[Registered]]:
    """Split adapters into parts of `size`; a smaller rest is dropped."""
    for start in range(0, len(adapters) - size + 1, size):
        yield adapters[start : start + size]


def staged_copies(bench: Workbench, wanted: int) -> list[Registered]:
    """Make sure that `wanted` copies of adapters are in the database, each with its own file; copies of an earlier run
    are used again."""
    names = [f"copy {number}" for number in range(wanted)]
    standing = {row["name"] for row in bench.connection.execute(COPIES)}
    with TemporaryDirectory() as folder:
        for number, name in enumerate(names):
            if name not in standing:
                stage_copy(bench, Path(folder), bench.tasks[number % len(bench.tasks)], name)
    if not standing.issuperset(names):
        # Otherwise autovacuum would do it during the measurement.
        bench.connection.execute("VACUUM loracomp.adapter_part")
    found = {row["name"]: Registered(row["id"], row["sha256"]) for row in bench.connection.execute(COPIES)}
    return [found[name] for name in names]


def stage_copy(bench: Workbench, folder: Path, task: str, name: str) -> None:
    """Stage a copy of a task's adapter under another name, with a file that differs only by that name."""
    weights = shutil.copytree(adapter_folder(packaged(), task), folder, dirs_exist_ok=True) / WEIGHTS
    weights.write_bytes(save(load(weights.read_bytes()), metadata={"format": "pt", "name": name}))
    stage_adapter(bench.connection, folder, task=task, name=name)
