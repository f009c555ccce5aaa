"""Masks and random changes that strategies apply to stacked tensors: pure functions."""

import hashlib

import torch
from torch import Tensor


def keep_largest(tensors: Tensor, density: float) -> Tensor:
    """Each of the tensors [n, ...] with all but its int(density * size) largest magnitudes set to zero (TIES, "trim").

    Of equal magnitudes (adapters in bfloat16 have many) the first stay, so that every device keeps the same.
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
    """Each element kept with probability `density` and divided by it, else zero (DARE, arXiv 2311.03099)."""
    keep = torch.rand(tensor.shape, generator=generator) < density
    return tensor * keep.to(tensor.device) / density


def elect_and_average(tensors: Tensor, dim: int, scales: Tensor | None = None) -> Tensor:
    """Of tensors that stand along `dim`, what agrees with the elected sign, divided by how many agree, place by place.

    Elected is the sign of the total, which neither the weights enter nor the `scales` (above 0) that tensors were
    multiplied by; a place where the total is 0 elects + (TIES). A weighted sum over the result is the disjoint merge.
    """
    votes = tensors if scales is None else tensors / scales
    elected = torch.where(votes.sum(dim, keepdim=True) >= 0, 1.0, -1.0)
    agreeing = (tensors * elected).clamp_(min=0)  # magnitudes
    count = agreeing.sign().sum(dim, keepdim=True).clamp_(min=1)
    return agreeing.div_(count.mul_(elected))


def noise_of_same_norm(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Normal noise, in float32, of the tensor's shape and Frobenius norm."""
    noise: Tensor = torch.randn(tensor.shape, generator=generator).to(tensor.device)
    return noise * float(tensor.float().norm() / noise.norm())


def seeded_generator(use: str, seed: int, sha256: str, module: str) -> torch.Generator:
    """For one use, policy seed, adapter and module; on the CPU, so that a replay on another device draws the same."""
    key = hashlib.sha256(f"{use}/{seed}/{sha256}/{module}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:8], "big") >> 1)
