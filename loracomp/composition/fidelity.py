"""Merges a mix into a model's own weights, as PEFT does, and measures how far it is from the exact weighted sum."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, einsum, nn
from transformers import Conv1D

from loracomp.composition.blocks import Block, Factors, stack
from loracomp.composition.strategies import Mix

TOLERANCE, TOLERANCE_OF_16_BITS = 0.05, 0.25
"""Largest difference in nats at which scores count as equal: rounding depends on device and batch, most in 16 bits."""


@contextmanager
def merged(model: nn.Module, factors: Mapping[str, Factors]) -> Iterator[None]:
    """Within the context, B @ A is added to each module's weight, as by PEFT's `merge_adapter`.

    If several modules share a weight (such as a tied head), only the module named in `factors` gets the changed weight.
    At the end each module has its old parameter again. Weights must not be quantised.
    """
    old: dict[str, nn.Parameter] = {}
    try:
        for name, (A, B) in factors.items():
            module = model.get_submodule(name)
            weight = module.weight
            assert isinstance(weight, nn.Parameter)
            old[name] = weight
            change = (B @ A).to(weight)
            # Conv1D and Embedding store their weight as [d_in, d_out].
            change = change.T if isinstance(module, (Conv1D, nn.Embedding)) else change
            module.weight = nn.Parameter(weight + change, requires_grad=False)
        yield
    finally:
        for name, weight in old.items():
            model.get_submodule(name).weight = weight


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
