"""Masks and random changes that strategies apply to stacked tensors: pure functions."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from loracomp.composition.blocks import Block, Blocks, Factors


@dataclass(frozen=True, slots=True, eq=False)
class Mask:
    """The elements that a strategy keeps of an adapter's factors, one bit each; the others count as zero."""

    name: str
    """Different for each different mask of an adapter."""
    bits: Mapping[tuple[int, int], Factors]
    """For each shape the packed bits of A and B, in the order in which a block stores them."""
    rescale: float = 1.0
    """Unless this is 1, the elements that are kept are divided by it, in float32."""

    @property
    def nbytes(self) -> int:
        """Size of the bits in bytes."""
        return sum(side.nbytes for sides in self.bits.values() for side in sides)

    def of(self, blocks: Blocks) -> dict[tuple[int, int], Block]:
        """A copy of an adapter's blocks in which only the elements that are kept are not zero."""
        return {
            shape: Block(modules, self._kept(A, self.bits[shape].A), self._kept(B.mT, self.bits[shape].B).mT)
            for shape, (modules, A, B) in blocks.items()
        }

    def _kept(self, side: Tensor, bits: Tensor) -> Tensor:
        side = side if self.rescale == 1 else side.float()
        kept = side * unpack_bits(bits, side.shape, side.dtype)
        return kept if self.rescale == 1 else kept.div_(self.rescale)


def mask_of(name: str, kept: Blocks, rescale: float = 1.0) -> Mask:
    """The mask that keeps the elements that are True in `kept`, which has an adapter's blocks as booleans."""
    bits = {shape: Factors(pack_bits(A), pack_bits(B.mT)) for shape, (_, A, B) in kept.items()}
    return Mask(name, bits, rescale)


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


def drawn_with(density: float, tensor: Tensor, generator: torch.Generator) -> Tensor:
    """For each element True with probability `density`, as in DARE (arXiv 2311.03099), which divides by `density`."""
    drawn: Tensor = torch.rand(tensor.shape, generator=generator) < density
    return drawn.to(tensor.device)


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


def noise_of_same_norm(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian noise in float32 with the tensor's shape and Frobenius norm."""
    noise: Tensor = torch.randn(tensor.shape, generator=generator).to(tensor.device)
    return noise * float(tensor.float().norm() / noise.norm())


def seeded_generator(use: str, seed: int, sha256: str, module: str) -> torch.Generator:
    """A random generator seeded from the use, the policy's seed, the adapter and the module.

    It runs on the CPU, so that a replay on another device draws the same numbers.
    """
    key = hashlib.sha256(f"{use}/{seed}/{sha256}/{module}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:8], "big") >> 1)
