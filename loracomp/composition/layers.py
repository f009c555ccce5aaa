"""Mixes inside a forward pass: every row of a batch runs the one base model under a mix of its own.

With h_i = A_i x of the prepared adapters i that the batch uses, a row adds sum_i right_i B_i left_i h_i to its module's
output (cat), or sum_j right_j B_j (sum_i left_i h_i) (every crossed strategy). There are two ways to that. *Shared*:
all rows go through all the adapters' factors, and each row's gates stand between A and B; the cost is the adapters'.
*Own*: each row has factors of its own, gathered (cat) or summed (crossed) once for all layers, for batched products;
the cost is the rows'. `composed` takes the cheaper one. The base model's weights are never touched.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from loracomp.composition.blocks import Block, stack
from loracomp.composition.strategies import Mix, PackedAdapter

# Measured on two cores with bfloat16 instructions, in multiplications of one plain matrix product:
BATCHED = 2
"""how much longer one takes in a batched product of small matrices,"""
GATHERED, SUMMED = 40, 300
"""what it costs to bring one element of a factor to its place, or to sum it up from several adapters'."""
OWN_BYTES = 1 << 30
"""Rows may have own factors of so many bytes together."""


@contextmanager
def composed(model: nn.Module, rows: Sequence[Mix], tokens: int = 64, *, shared: bool | None = None) -> Iterator[None]:
    """Within the context, row i of each batch that goes through `model` runs under rows[i].

    A row without adapters is the base model's, exactly. Batches must be of len(rows) rows. Products happen in the
    dtype and on the device of the module that they change, sums of factors and gates in float32. The model is as it was
    when the context ends, whatever ends it. `tokens` is how wide a row is: it decides, unless `shared` does, which way
    is cheaper.
    """
    handles = []
    try:
        batch = _Batch.of(rows)
        hooks = batch.hooks(model, tokens, shared) if batch.adapters else ()
        for module, hook in hooks:
            handles.append(model.get_submodule(module).register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


_Hook: TypeAlias = Callable[[nn.Module, tuple[Tensor], Tensor], Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    """The adapters that rows use, each once, and each row's gates on them."""

    adapters: tuple[PackedAdapter, ...]
    left: Tensor
    right: Tensor
    """[rows, adapters], in float32; 0 where a row doesn't use an adapter."""
    crossed: Tensor
    """[rows]"""

    @classmethod
    def of(cls, rows: Sequence[Mix]) -> "_Batch":
        # In one order however rows come, so that sums round alike.
        adapters = sorted({adapter for mix in rows for adapter in mix.adapters}, key=lambda adapter: adapter.key)
        numbers = {adapter: number for number, adapter in enumerate(adapters)}
        left, right = torch.zeros(2, len(rows), len(numbers))
        for row, mix in enumerate(rows):
            at = [numbers[adapter] for adapter in mix.adapters]
            left[row, at], right[row, at] = torch.tensor(mix.left), torch.tensor(mix.right)
        return cls(tuple(numbers), left, right, torch.tensor([mix.crossed for mix in rows]))

    def hooks(self, model: nn.Module, tokens: int, shared: bool | None) -> Iterator[tuple[str, _Hook]]:
        """A forward hook for each module that any of the adapters changes."""
        blocks = stack([adapter.blocks for adapter in self.adapters])
        if shared is None:
            shared = self._shared_is_cheaper(blocks.values(), tokens)
        for modules, A, B in blocks.values():
            weight: Tensor = model.get_submodule(modules[0]).weight  # type: ignore[assignment]
            adding = self._shared if shared else self._own
            yield from zip(modules, adding(A, B.mT, weight.dtype), strict=True)

    def _shared_is_cheaper(self, blocks: Iterable[Block], tokens: int) -> bool:
        rows, adapters = self.left.shape
        picked = self._picked().shape[1]
        own = rows * picked * (BATCHED * tokens + (SUMMED if self.crossed.any() else GATHERED))
        shared_nbytes = sum(block.A.nbytes + block.B.nbytes for block in blocks)
        own_nbytes = shared_nbytes * rows * picked // adapters
        return adapters * (rows * tokens + GATHERED) < own or own_nbytes > max(shared_nbytes, OWN_BYTES)

    def _picked(self) -> Tensor:
        """Numbers of each row's adapters, [rows, most of a row or 1]; any where it has less, or is crossed."""
        used = (self.right != 0) & ~self.crossed[:, None]
        most = max(int(used.sum(1).max()), 1)
        return used.int().sort(dim=1, descending=True, stable=True).indices[:, :most]

    def _own(self, A: Tensor, B: Tensor, dtype: torch.dtype) -> Iterator[_Hook]:
        picked = self._picked()
        gates = (self.left * self.right).gather(1, picked)
        gates[self.crossed] = 0
        gates[self.crossed, 0] = 1
        gates = gates.repeat_interleave(A.shape[2], dim=1)[:, None].to(A.device)
        A, B = self._factors(A, self.left, picked, dtype), self._factors(B, self.right, picked, dtype)
        for own_A, own_B in zip(A, B, strict=True):
            yield _adding_own(own_A, own_B, None if self.crossed.all() else gates)

    def _factors(self, side: Tensor, gates: Tensor, picked: Tensor, dtype: torch.dtype) -> Tensor:
        """Each row's own factors of a side [modules, n, r, d]: [modules, rows, rank, d], rank the same for all rows."""
        own = side.to(dtype)[:, picked.to(side.device)]
        if self.crossed.any():
            sums = gates[self.crossed].to(side.device) @ side.flatten(2).float()
            own[:, self.crossed, 0] = sums.view(*sums.shape[:2], *side.shape[2:]).to(dtype)
        return own.flatten(2, 3)

    def _shared(self, A: Tensor, B: Tensor, dtype: torch.dtype) -> Iterator[_Hook]:
        left, right = (side[:, None, :, None].to(A.device) for side in (self.left, self.right))
        crossed = self.crossed[:, None, None, None].to(A.device)
        some_crossed = bool(self.crossed.any())

        def gated(h: Tensor) -> Tensor:
            """[rows, tokens, n * r], A_i x of every adapter -> what goes to its B."""
            each: Tensor = h.view(*h.shape[:2], *A.shape[1:3]) * left.to(h.device)
            if some_crossed:
                each = torch.where(crossed.to(h.device), each.sum(2, keepdim=True), each)
            return (each * right.to(h.device)).flatten(2).to(h.dtype)

        for all_A, all_B in zip(A.to(dtype).flatten(1, 2), B.to(dtype).flatten(1, 2), strict=True):
            yield _adding_shared(all_A, all_B, gated, rows=len(self.left))


def _adding_own(A: Tensor, B: Tensor, gates: Tensor | None) -> _Hook:
    """x [rows, tokens, d_in], A [rows, rank, d_in], B [rows, rank, d_out], gates [rows, 1, rank] between them."""

    def add(_: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        (x,) = args
        _check(x, len(A))
        h = x @ A.to(x.device).mT
        if gates is not None:
            h = (h * gates.to(x.device)).to(x.dtype)
        return output.baddbmm_(h, B.to(x.device))

    return add


def _adding_shared(A: Tensor, B: Tensor, gated: Callable[[Tensor], Tensor], rows: int) -> _Hook:
    """x [rows, tokens, d_in], A [n * r, d_in], B [n * r, d_out]."""

    def add(_: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        (x,) = args
        _check(x, rows)
        h = gated(linear(x, A.to(x.device)))
        output.view(-1, output.shape[-1]).addmm_(h.view(-1, h.shape[-1]), B.to(x.device))
        return output

    return add


def _check(x: Tensor, rows: int) -> None:
    if x.shape[:-2] != (rows,):
        raise ValueError(f"a batch of shape {list(x.shape)} under compositions of {rows} rows")
