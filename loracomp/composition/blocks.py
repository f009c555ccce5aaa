"""Adapters in few tensors: modules of the same shape are stacked, so that one operation changes all layers at once."""

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import pad


class Factors(NamedTuple):
    """Low-rank factors of the change B @ A of one module: A [r, d_in], B [d_out, r]."""

    A: Tensor
    B: Tensor


ModuleFactors = Mapping[str, Factors]
"""Maps the name of a base model's module to that module's factors."""


class Block(NamedTuple):
    """Factors of the modules that have the same shape: A [modules, r, d_in], B [modules, d_out, r].

    A block of n adapters has one dimension more: A [modules, n, r, d_in], B [modules, n, d_out, r].
    In memory, B is stored transposed ([..., r, d_out]) like A, because a forward pass reads it in that order and
    stacking adapters then copies long contiguous pieces.
    """

    modules: tuple[str, ...]
    A: Tensor
    B: Tensor

    def of(self, modules: tuple[str, ...]) -> "Block":
        """A block with only the named modules, in that order."""
        at = [self.modules.index(module) for module in modules]
        return Block(modules, self.A[at], self.B[at])


Blocks: TypeAlias = Mapping[tuple[int, int], Block]
"""Maps a shape (d_out, d_in) to the factors of an adapter's modules of that shape."""


def pack(factors: ModuleFactors) -> dict[tuple[int, int], Block]:
    """Group factors into one block for each shape, modules sorted by name; lower ranks are padded with zeros."""
    shapes: dict[tuple[int, int], list[str]] = {}
    for module in sorted(factors):
        shapes.setdefault((factors[module].B.shape[0], factors[module].A.shape[1]), []).append(module)
    return {shape: _pack(modules, [factors[module] for module in modules]) for shape, modules in shapes.items()}


def _pack(modules: Sequence[str], factors: Sequence[Factors]) -> Block:
    rank = max(f.A.shape[0] for f in factors)
    A = torch.stack([pad(f.A, (0, 0, 0, rank - f.A.shape[0])) for f in factors])
    B = torch.stack([pad(f.B.mT, (0, 0, 0, rank - f.B.shape[1])) for f in factors]).mT
    return Block(tuple(modules), A, B)


def unpack(blocks: Blocks) -> dict[str, Factors]:
    """The factors of each module, as views into the blocks (nothing is copied)."""
    return {module: Factors(A, B) for block in blocks.values() for module, A, B in zip(*block, strict=True)}


def move(blocks: Blocks, device: torch.device | str) -> dict[tuple[int, int], Block]:
    """The same blocks, copied to `device`."""
    return {shape: Block(modules, A.to(device), B.to(device)) for shape, (modules, A, B) in blocks.items()}


def nbytes(blocks: Blocks) -> int:
    """Size of all factors in bytes."""
    return sum(block.A.nbytes + block.B.nbytes for block in blocks.values())


def stack(adapters: Sequence[Blocks], dtype: torch.dtype | None = None) -> dict[tuple[int, int], Block]:
    """Stack n adapters into blocks A [modules, n, r, d_in], B [modules, n, d_out, r] over all modules of all adapters.

    If an adapter lacks a module or has a lower rank, zeros fill its place; they change no sum and no vote on signs.
    The result has type `dtype`; by default the smallest type that can represent all adapters' types.
    """
    shapes = dict.fromkeys(shape for adapter in adapters for shape in adapter)
    return {shape: _stack([adapter.get(shape) for adapter in adapters], dtype) for shape in shapes}


def _stack(blocks: Sequence[Block | None], dtype: torch.dtype | None) -> Block:
    present = [block for block in blocks if block is not None]
    modules = present[0].modules
    if any(block.modules != modules for block in present):
        modules = tuple(sorted({module for block in present for module in block.modules}))
    dtype = dtype or reduce(torch.promote_types, (block.A.dtype for block in present))
    rank = max(block.A.shape[1] for block in present)
    like = present[0]
    A_of_none, B_of_none = like.A.new_zeros(1, 1, 1), like.B.new_zeros(1, 1, 1)
    shape_A, shape_B = (len(modules), rank, like.A.shape[2]), (len(modules), like.B.shape[1], rank)
    fitted = [
        Block(modules, A_of_none.expand(shape_A), B_of_none.expand(shape_B))
        if block is None
        else _fitted(block, modules, shape_A, shape_B)
        for block in blocks
    ]
    A = torch.stack([block.A for block in fitted], dim=1).to(dtype)
    return Block(modules, A, torch.stack([block.B.mT for block in fitted], dim=1).to(dtype).mT)


def _fitted(block: Block, modules: tuple[str, ...], shape_A: tuple[int, ...], shape_B: tuple[int, ...]) -> Block:
    if block.modules == modules and block.A.shape == shape_A:
        return block
    A, B, rank = block.A.new_zeros(shape_A), block.B.new_zeros(shape_B), block.A.shape[1]
    at = [modules.index(module) for module in block.modules]
    A[at, :rank], B[at, :, :rank] = block.A, block.B
    return Block(modules, A, B)
