"""Masks and random changes that strategies apply to stacked tensors: pure functions."""

import hashlib

import torch
from torch import Tensor


def keep_largest(tensors: Tensor, density: float) -> Tensor:
    """In each of the tensors [n, ...], set all but the int(density * size) largest magnitudes to zero.

    This is "trim" in TIES (arXiv 2306.01708). Among equal magnitudes, which are frequent in bfloat16, the first are
    kept, so that every device keeps the same elements.
    """
    magnitude = tensors.abs().flatten(1)
    size = magnitude.shape[1]
    count = int(density * size)
    if count == 0:
        return torch.zeros_like(tensors)
    smallest = magnitude.kthvalue(size - count + 1, dim=1, keepdim=True).values
    larger, equal = magnitude > smallest, magnitude == smallest
    keep = larger | (equal & (equal.cumsum(1) <= count - larger.sum(1, keepdim=True)))
    return tensors * keep.view_as(tensors)


def drop_and_rescale(tensor: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """Keep each element with probability `density`, divided by `density`; zero the rest (DARE, arXiv 2311.03099)."""
    keep = torch.rand(tensor.shape, generator=generator) < density
    return tensor * keep.to(tensor.device) / density


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
