"""What the strategies keep of a tensor, and what is random: pure functions on one tensor or one stack of them."""

import hashlib

import torch
from torch import Tensor


def keep_largest(tensor: Tensor, density: float) -> Tensor:
    """The tensor with all but its int(density * size) largest magnitudes set to zero (TIES, "trim").

    Of equal magnitudes (adapters in bfloat16 have many) the first stay, so that every device keeps the same.
    """
    count = int(density * tensor.numel())
    if count == 0:
        return torch.zeros_like(tensor)
    magnitude = tensor.abs().flatten()
    smallest = magnitude.topk(count).values[-1]
    larger, equal = magnitude > smallest, magnitude == smallest
    keep = larger | (equal & (equal.cumsum(0) <= count - larger.sum()))
    return tensor * keep.view_as(tensor)


def drop_and_rescale(tensor: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """Each element kept with probability `density` and divided by it, else zero (DARE)."""
    keep = torch.rand(tensor.shape, generator=generator) < density
    return tensor * keep.to(tensor.device) / density


def elect_and_average(stack: Tensor) -> Tensor:
    """Of tensors [adapters, ...], what agrees with the elected sign, divided by how many agree, place by place (TIES).

    Elected is the sign of the total, which the weights don't enter; a place where the total is 0 elects +. A weighted
    sum over the result is the disjoint merge.
    """
    elected = torch.where(stack.sum(0) >= 0, 1.0, -1.0)
    agrees = stack.sign() == elected
    return stack * agrees / agrees.sum(0).clamp(min=1)


def noise_of_same_norm(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Normal noise, in float32, of the tensor's shape and Frobenius norm."""
    noise: Tensor = torch.randn(tensor.shape, generator=generator).to(tensor.device)
    return noise * float(tensor.float().norm() / noise.norm())


def seeded_generator(use: str, seed: int, sha256: str, module: str) -> torch.Generator:
    """For one use, policy seed, adapter and module; on the CPU, so that a replay on another device draws the same."""
    key = hashlib.sha256(f"{use}/{seed}/{sha256}/{module}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:8], "big") >> 1)
