"""Where rows' own factors cost as much as sharing all adapters' factors: what the choice between them rests on."""

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
"""Tokens of a row."""
RANKS = (8, 32)
SOME = 5
"""One of so many modules is enough to see what they all cost."""
STRATEGIES = ("cat", "linear")


def ways(bench: Workbench, turns: int) -> Measured:
    """Of how many shared adapters a pass takes as long as with factors of each row's own: measured, and by the rule."""
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
    """A pass takes longer with each adapter it shares: a line through few and all of them says where it is even.

    Of the turns the shortest counts: a few milliseconds are only ever made longer by what else runs.
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
    """For each row the next few adapters, so that all are used."""
    return [
        gated(
            strategy,
            [adapters[(row * IN_A_MIX + n) % len(adapters)] for n in range(IN_A_MIX)],
            [1 / IN_A_MIX] * IN_A_MIX,
        )
        for row in range(rows)
    ]


def applying(bench: Workbench, rows: Sequence[Mix], width: int, *, shared: bool) -> Callable[[int], None]:
    """A run of some of those modules alone that the adapters change, on rows of so many tokens."""
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
