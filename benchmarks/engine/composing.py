"""Measures the compose step alone: the time for a batch's compositions, and the memory that they use."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from statistics import median
from time import thread_time

import torch

from loracomp.composition.blocks import Block
from loracomp.composition.composer import Composer
from loracomp.composition.layers import SideBySide

from .timing import Figure, Measured, compare
from .workbench import FIDELITY_ONE_IN, IN_A_MIX, Workbench, drawing, once_each

STRATEGIES = ("linear", "cat", "ties", "magnitude_prune")


def new_composer(bench: Workbench) -> Composer:
    """A composer with the worker's default settings, and an empty cache: a quarter of 2 GB."""
    return Composer(bench.base, cache_bytes=512 << 20, fidelity_one_in=FIDELITY_ONE_IN)


def composing(bench: Workbench, turns: int) -> Measured:
    """Milliseconds of CPU time to compose a batch of new mixes, from new adapters and from adapters in the cache."""
    with one_thread():
        return {"composing": {strategy: _composing(bench, strategy, turns) for strategy in STRATEGIES}}


@contextmanager
def one_thread() -> Iterator[None]:
    """Within this context, torch computes only in the calling thread, so that the thread's CPU time has all of it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _composing(bench: Workbench, strategy: str, turns: int) -> dict[str, float]:
    """Median milliseconds over the turns, without the first one."""
    draw, adapters = drawing(bench.library, strategy=strategy), bench.predictor().load(once_each(bench.library))
    spent: dict[str, list[float]] = {"new adapters": [], "known adapters": []}
    for _ in range(turns + 1):
        composer = new_composer(bench)
        for taken in spent.values():
            compositions, start = draw(bench.sizes.batch), thread_time()
            for composed in composer.compose(compositions, adapters):
                _ = composed.mix.applied
            taken.append(1000 * (thread_time() - start))
    return {name: round(median(taken[1:]), 2) for name, taken in spent.items()}


def memory(bench: Workbench, turns: int) -> Measured:
    """Bytes of factors kept in memory for a batch of different mixes, divided by the bytes of its adapters' files."""
    del turns  # nothing here takes time
    held = {strategy: _held(bench, strategy) for strategy in STRATEGIES}
    return {"figures": [_memory(bench, strategy, each) for strategy, each in held.items()], "held": held}


def _held(bench: Workbench, strategy: str) -> dict[str, float]:
    """Bytes of the factors as loaded, as prepared, as merged for each job (by election), and as copied for a pass.

    Tensors that share memory count once.
    """
    compositions = drawing(bench.library, strategy=strategy)(bench.sizes.batch)
    used = {id_ for each in compositions for id_ in each.adapter_ids}
    loaded, composer = bench.predictor().load(compositions), new_composer(bench)
    mixes = [each.mix for each in composer.compose(compositions, loaded)]
    merged = [adapter for mix in mixes if mix.electing for adapter in mix.applied.adapters]
    adapters = [factors for each in bench.library if each.id in used for factors in each.factors.values()]
    held = {
        "loaded": storage_nbytes(chain.from_iterable(each.blocks.values() for each in loaded.values())),
        "prepared": composer.prepared.nbytes,
        "merged": storage_nbytes(chain.from_iterable(each.blocks.values() for each in merged)),
        "a pass's copy": storage_nbytes(SideBySide(bench.base.model, mixes).blocks.values()),
    }
    in_files = sum(side.nbytes for factors in adapters for side in factors)
    return {name: round(nbytes / in_files, 3) for name, nbytes in held.items()} | {"files, MB": in_files / 1e6}


def _memory(bench: Workbench, strategy: str, held: dict[str, float]) -> Figure:
    batch = bench.sizes.batch
    what = f"memory, {strategy}: factors that stay, {batch} new mixes of {IN_A_MIX} of {len(bench.library)} adapters"
    ratios = [held["loaded"] + held["prepared"]]
    return compare(f"memory {strategy}", what, "bytes of the adapters in use", "<= 1.1", ratios=ratios, details=held)


def storage_nbytes(blocks: Iterable[Block]) -> int:
    """Bytes of the memory behind these blocks; memory that several blocks share counts once."""
    storages = [side.untyped_storage() for block in blocks for side in (block.A, block.B)]
    return sum({each.data_ptr(): each.nbytes() for each in storages}.values())
