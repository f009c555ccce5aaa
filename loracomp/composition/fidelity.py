"""Measures how far a mix of adapters is from the exact weighted sum of the same adapters."""

import math

import torch
from torch import Tensor, einsum

from loracomp.composition.blocks import Block, stack
from loracomp.composition.strategies import Mix


def fidelity(mix: Mix, exact: Mix) -> tuple[float, float] | None:
    """Norm ratio |mix| / |exact| and cosine between the two weight changes, each taken as one vector over all modules.

    `mix` is a mix of some adapters; `exact` is their exact weighted sum, gated as for cat. Returns None if either
    change is zero. The full matrices B A are never built: the inner product <B A, D C> is the sum of the elements of
    (A C^T) * (B^T D), a product of two small Gram matrices. Those of a mix are weighted sums of its adapters', so each
    adapter's factors are read once.
    """
    if not mix.summed_factors:  # it is the exact sum, or the base model alone
        return (1.0, 1.0) if mix.adapters else None
    mix = mix.applied
    stored = stack([adapter.blocks for adapter in exact.adapters], torch.float32)
    prepared = stored
    if mix.adapters != exact.adapters:
        prepared = stack([adapter.blocks for adapter in mix.adapters], torch.float32)
    sums = []
    for shape, block in stored.items():
        own_block = prepared[shape]
        left, right = (torch.tensor(gates, device=block.A.device) for gates in (mix.left, mix.right))
        weights = torch.tensor([exact.left, exact.right], dtype=torch.double, device=block.A.device).prod(0)
        own_A, own_B = with_A, with_B = A, B = _grams(block, block)
        if own_block is not block:
            own_A, own_B = _grams(own_block, own_block)
            with_A, with_B = _grams(own_block, block)
        squared = einsum("miajb,i,j->mab", own_A, left, left) * einsum("miajb,i,j->mab", own_B, right, right)
        inner = einsum("miajb,i->majb", with_A, left) * einsum("miajb,i->majb", with_B, right)
        exact_squared = (A * B).sum((0, 2, 4), dtype=torch.double)
        sums += [
            squared.sum(dtype=torch.double),
            inner.sum((0, 1, 3), dtype=torch.double) @ weights,
            weights @ exact_squared @ weights,
        ]
    squared, inner, exact_squared = torch.stack(sums).view(-1, 3).sum(0).tolist()  # one copy from the device
    if squared <= 0 or exact_squared <= 0:
        return None
    return math.sqrt(squared / exact_squared), inner / math.sqrt(squared * exact_squared)


def _grams(first: Block, second: Block) -> tuple[Tensor, Tensor]:
    """Products of each adapter's factors with each other's, A_i A_j^T and B_i^T B_j: [modules, n, r, m, s].

    The first block has n adapters of rank r, the second m of rank s.
    """
    sides = (first.A, second.A), (first.B.mT, second.B.mT)
    of_A, of_B = (
        (one.flatten(1, 2) @ other.flatten(1, 2).mT).view(*one.shape[:3], *other.shape[1:3]) for one, other in sides
    )
    return of_A, of_B
