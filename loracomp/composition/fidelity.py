"""Measures how far a mix of adapters is from the exact weighted sum of the same adapters."""

import math

import torch

from loracomp.composition.blocks import stack
from loracomp.composition.strategies import Mix, gate


def fidelity(mix: Mix, exact: Mix) -> tuple[float, float] | None:
    """Norm ratio |mix| / |exact| and cosine between the two weight changes, each taken as one vector over all modules.

    `mix` is a crossed mix (see `Mix`) of some adapters; `exact` is their exact weighted sum, gated as for cat.
    Returns None if either change is zero. The full matrices B A are never built: the inner product <B A, D C> is the
    sum of the elements of (B^T D) * (A C^T), a product of two small Gram matrices.
    """
    mix = mix.applied
    weights = torch.tensor([exact.left, exact.right], dtype=torch.double).prod(0)
    prepared = stack([adapter.blocks for adapter in mix.adapters], torch.float32)
    stored = prepared
    if mix.adapters != exact.adapters:
        stored = stack([adapter.blocks for adapter in exact.adapters], torch.float32)
    sums = []
    for shape, (_, A, B) in prepared.items():
        A, B = gate(mix, A, B)  # noqa: PLW2901
        _, each_A, each_B = stored[shape]
        each = (each_A.shape[1], each_A.shape[2])  # adapters, rank
        each_A, each_B = each_A.flatten(1, 2), each_B.mT.flatten(1, 2)
        with_itself = (A @ A.mT) * (B.mT @ B)
        with_each = ((A @ each_A.mT) * (B.mT @ each_B.mT)).view(*with_itself.shape[:2], *each)
        each_with_each = ((each_A @ each_A.mT) * (each_B @ each_B.mT)).view(-1, *each, *each)
        weights = weights.to(A.device)
        squared = with_itself.sum(dtype=torch.double)
        inner = with_each.sum((0, 1, 3), dtype=torch.double) @ weights
        exact_squared = weights @ each_with_each.sum((0, 2, 4), dtype=torch.double) @ weights
        sums.append(torch.stack([squared, inner, exact_squared]))
    squared, inner, exact_squared = torch.stack(sums).sum(0).tolist()  # one copy from the device
    if squared <= 0 or exact_squared <= 0:
        return None
    return math.sqrt(squared / exact_squared), inner / math.sqrt(squared * exact_squared)
