"""Measures the memory that a batch's compositions use."""

from collections.abc import Iterable
from itertools import chain

from loracomp.composition.blocks import Block
from loracomp.composition.composer import Composer
from loracomp.composition.layers import AdapterStack

from .timing import Figure, Measured, compare
from .workbench import Workbench, drawing

STRATEGIES = ("linear", "cat", "ties", "magnitude_prune")


def new_composer(bench: Workbench) -> Composer:
    """Make a composer with the worker's default settings and an empty cache of a quarter of 2 GB."""
    return Composer(bench.base, cache_bytes=512 << 20)


def memory(bench: Workbench, turns: int) -> Measured:
    """Compare the bytes of factors in memory for a batch of different mixes with the bytes of the adapters' files."""
    del turns  # this part measures no times
    held = {strategy: _held(bench, strategy) for strategy in STRATEGIES}
    return {"figures": [_memory(bench, strategy, each) for strategy, each in held.items()], "held": held}


def _held(bench: Workbench, strategy: str) -> dict[str, float]:
    """Return the bytes of the loaded factors, of their masks, of the factors merged for each job, and of the copies for
    a pass.

    Tensors that share memory count once.
    """
    compositions = drawing(bench.library, strategy=strategy)(bench.sizes.batch)
    used = {id_ for each in compositions for id_ in each.adapter_ids}
    loaded, composer = bench.predictor().load(compositions), new_composer(bench)
    mixes = composer.compose(compositions, loaded)
    merged = [adapter for mix in mixes if mix.applied is not mix for adapter in mix.applied.adapters]
    adapters = [factors for each in bench.library if each.id in used for factors in each.factors.values()]
    held = {
        "loaded": storage_nbytes(chain.from_iterable(each.blocks.values() for each in loaded.values())),
        "masks": composer.masks.nbytes,
        "merged": storage_nbytes(chain.from_iterable(each.blocks.values() for each in merged)),
        "a pass's copy": storage_nbytes(AdapterStack(bench.base.model, mixes).blocks.values()),
    }
    in_files = sum(side.nbytes for factors in adapters for side in factors)
    return {name: round(nbytes / in_files, 3) for name, nbytes in held.items()} | {"files, MB": in_files / 1e6}


def _memory(bench: Workbench, strategy: str, held: dict[str, float]) -> Figure:
    batch = bench.sizes.batch
    what = f"memory that {batch} new mixes by {strategy} keep"
    ratios = [held["loaded"] + held["masks"]]
    return compare(f"memory {strategy}", what, "bytes of the adapters in use", "<= 1.1", ratios=ratios, details=held)


def storage_nbytes(blocks: Iterable[Block]) -> int:
    """Return the bytes of the memory behind these blocks; memory that several blocks share counts once."""
    storages = [side.untyped_storage() for block in blocks for side in (block.A, block.B)]
    return sum({each.data_ptr(): each.nbytes() for each in storages}.values())
