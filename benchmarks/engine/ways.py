"""Measures at how many adapters shared factors and rows' own factors cost the same (`composition.layers`)."""

from collections.abc import Callable, Sequence
from itertools import product

import torch

from loracomp.composition.layers import GATHERED, SUMMED, SideBySide
from loracomp.composition.strategies import Mix, PackedAdapter, gated

from .passes import of_rank
from .timing import Measured, take_turns
from .workbench import IN_A_MIX, Workbench

TOKENS_OF_A_PASS = 704
WIDTHS = (1, 8, 16, 32, 64, 128)
"""Measured numbers of tokens in a row."""
RANKS = (8, 32)
SOME = 5
"""Only every fifth module is run, which is enough to compare the costs."""
STRATEGIES = ("cat", "linear")


def ways(bench: Workbench, turns: int) -> Measured:
    """The number of adapters at which shared factors take as long as own factors: measured, and by our rule."""
    found = []
    for strategy, rank in product(STRATEGIES, RANKS):
        adapters = [each.packed() for each in of_rank(bench, rank)]
        for width in WIDTHS:
            rows = min(TOKENS_OF_A_PASS // width, bench.sizes.largest)
            few, many = (mixes(adapters[:count], strategy, rows) for count in (IN_A_MIX, len(adapters)))
            rule = (width + SUMMED) / width if strategy == "linear" else IN_A_MIX * (width + GATHERED) / width
            what = {"strategy": strategy, "rank": rank, "tokens": width, "rows": rows, "rule": round(rule, 1)}
            found.append(what | _even(bench, few, many, width, turns))
    return {"ways": found}


def _even(bench: Workbench, few: Sequence[Mix], many: Sequence[Mix], width: int, turns: int) -> dict[str, float]:
    """The number of adapters at which shared factors take as long as own ones, by linear interpolation.

    The time with shared factors grows linearly with the adapters; it is measured with few and with all. The shortest of
    all turns is used, because other load can only make a turn longer.
    """
    runs = {
        "own": applying(bench, many, width, shared=False),
        "few": applying(bench, few, width, shared=True),
        "many": applying(bench, many, width, shared=True),
    }
    own, shared_few, shared_many = (1000 * min(each) for each in take_turns(runs, turns).values())
    an_adapter = (shared_many - shared_few) / (len(bench.library) - IN_A_MIX)
    even = IN_A_MIX + (own - shared_few) / an_adapter
    return {"own, ms": round(own, 2), "an adapter, ms": round(an_adapter, 3), "even": round(even, 1)}


def mixes(adapters: Sequence[PackedAdapter], strategy: str, rows: int) -> list[Mix]:
    """A mix for each row, from the next few adapters in a cycle, so that all adapters are used."""
    return [
        gated(
            strategy,
            [adapters[(row * IN_A_MIX + n) % len(adapters)] for n in range(IN_A_MIX)],
            [1 / IN_A_MIX] * IN_A_MIX,
        )
        for row in range(rows)
    ]


def applying(bench: Workbench, rows: Sequence[Mix], width: int, *, shared: bool) -> Callable[[int], None]:
    """A run of some adapted modules (not the whole model) under the rows' mixes, with `width` tokens in a row."""
    model = bench.base.model
    side_by_side = SideBySide(model, rows)
    modules = [
        (model.get_submodule(name), bench.base.modules[name][1])
        for block in side_by_side.blocks.values()
        for name in block.modules[::SOME]
    ]
    inputs = {d_in: torch.randn(len(rows), width, d_in, dtype=model.dtype, device=model.device) for _, d_in in modules}

    def run(_: int) -> None:
        with torch.inference_mode(), side_by_side.composed(rows, width, shared=shared):
            for module, d_in in modules:
                module(inputs[d_in])

    return run
