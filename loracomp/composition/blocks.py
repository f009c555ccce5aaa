"""Stores an adapter in few tensors: modules of the same shape are stacked, so that one operation changes all layers at
once. The masks that some strategies apply to the stacked tensors are here too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    In memory, B is stored transposed, as [..., r, d_out], so that r comes before the long dimension as in A. A forward
    pass reads B in that order, and stacking adapters copies long contiguous pieces.
    """

    modules: tuple[str, ...]
    A: Tensor
    B: Tensor

    def of(self, modules: tuple[str, ...]) -> "Block":
        """A block with only the named modules, in that order."""
        at = [self.modules.index(module) for module in modules]
        return Block(modules, self.A[at], self.B[at])

    def to(self, to: torch.dtype | torch.device | str) -> "Block":
        """The block in another dtype or on another device."""
        return Block(self.modules, self.A.to(to), self.B.to(to))


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
    return {shape: block.to(device) for shape, block in blocks.items()}


def nbytes(blocks: Blocks) -> int:
    """Size of all factors in bytes."""
    return sum(block.A.nbytes + block.B.nbytes for block in blocks.values())


def stack(adapters: Sequence[Blocks]) -> dict[tuple[int, int], Block]:
    """Stack n adapters into blocks A [modules, n, r, d_in], B [modules, n, d_out, r] over all modules of all adapters.

    If an adapter lacks a module or has a lower rank, zeros fill its place; they change no sum and no vote on signs.
    The result has the smallest type that can represent all adapters' types.
    """
    shapes = dict.fromkeys(shape for adapter in adapters for shape in adapter)
    return {shape: _stack([adapter.get(shape) for adapter in adapters]) for shape in shapes}


def _stack(blocks: Sequence[Block | None]) -> Block:
    present = [block for block in blocks if block is not None]
    modules = present[0].modules
    if any(block.modules != modules for block in present):
        modules = tuple(sorted({module for block in present for module in block.modules}))
    dtype = reduce(torch.promote_types, (block.A.dtype for block in present))
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


@dataclass(frozen=True, slots=True, eq=False)
class Mask:
    """The elements that a strategy keeps of an adapter's factors, one bit each; the others count as zero."""

    name: str
    """Different for each different mask of an adapter."""
    bits: Mapping[tuple[int, int], Factors]
    """For each shape the packed bits of A and B, in the order in which a block stores them."""

    @property
    def nbytes(self) -> int:
        """Size of the bits in bytes."""
        return sum(side.nbytes for sides in self.bits.values() for side in sides)

    def of(self, blocks: Blocks) -> dict[tuple[int, int], Block]:
        """A copy of an adapter's blocks in which only the elements that are kept are not zero."""
        return {
            shape: Block(modules, _kept(A, self.bits[shape].A), _kept(B.mT, self.bits[shape].B).mT)
            for shape, (modules, A, B) in blocks.items()
        }


def _kept(side: Tensor, bits: Tensor) -> Tensor:
    return side * unpack_bits(bits, side.shape, side.dtype)


def mask_of(name: str, kept: Blocks) -> Mask:
    """The mask that keeps the elements that are True in `kept`, which has an adapter's blocks as booleans."""
    bits = {shape: Factors(pack_bits(A), pack_bits(B.mT)) for shape, (_, A, B) in kept.items()}
    return Mask(name, bits)


def pack_bits(flags: Tensor) -> Tensor:
    """Booleans as bytes that hold eight each; the last byte is filled with False."""
    flat = flags.flatten()
    by_byte = pad(flat, (0, -len(flat) % 8)).view(-1, 8)
    return (by_byte.byte() << torch.arange(8, dtype=torch.uint8, device=flags.device)).sum(1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """The booleans of this shape from which `pack_bits` made the bytes, as 0 and 1 in `dtype`.

    They are looked up, which is several times as fast as shifting bits and multiplying by booleans.
    """
    of_byte = torch.arange(256, device=packed.device)[:, None] >> torch.arange(8, device=packed.device) & 1
    return of_byte.to(dtype).index_select(0, packed.int()).flatten()[: shape.numel()].view(shape)


def are_largest(tensors: Tensor, density: float) -> Tensor:
    """Whether an element is among the int(density * size) largest magnitudes of its tensor, of tensors [n, ...].

    This is "trim" in TIES (arXiv 2306.01708). Among equal magnitudes, which are frequent in bfloat16, the first are
    kept, so that every device keeps the same elements.
    """
    magnitude = tensors.abs().flatten(1)
    size = magnitude.shape[1]
    count = int(density * size)
    if count == 0:
        return torch.zeros_like(tensors, dtype=torch.bool)
    smallest = magnitude.kthvalue(size - count + 1, dim=1, keepdim=True).values
    larger, equal = magnitude > smallest, magnitude == smallest
    keep = larger | (equal & (equal.cumsum(1) <= count - larger.sum(1, keepdim=True)))
    return keep.view_as(tensors)


def elect_and_average(tensors: Tensor, dim: int, scales: Tensor | None = None) -> Tensor:
    """Sign election and disjoint merge of TIES (arXiv 2306.01708), for each element of tensors stacked along `dim`.

    For each element, the elected sign is that of the sum over the tensors (+ if the sum is 0), each divided by its
    entry in `scales` (above 0) first; mixing weights play no part. Values of the other sign become zero, and the rest
    is divided by the number of tensors that agree. A weighted sum of the result is then the disjoint merge.
    """
    votes = tensors if scales is None else tensors / scales
    elected = torch.where(votes.sum(dim, keepdim=True) >= 0, 1.0, -1.0)
    agreeing = (tensors * elected).clamp_(min=0)  # magnitudes
    count = agreeing.sign().sum(dim, keepdim=True).clamp_(min=1)
    return agreeing.div_(count.mul_(elected))
