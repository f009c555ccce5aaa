"""How far a mix is from the exact weighted sum of its adapters."""

import math

import torch

from loracomp.composition.blocks import stack
from loracomp.composition.strategies import Mix, gate


def fidelity(mix: Mix, exact: Mix) -> tuple[float, float] | None:
    """Norm ratio |mix| / |exact| and cosine between two changes, all modules taken as one vector (Frobenius).

    `exact` is the weighted sum, as cat gates it. None where either change is zero.

    No change is built. With the ranks of both mixes listed one after the other, a change is a sum of products b a^T,
    and two of these have the inner product (a . a') (b . b'): so the Gram matrices of A and of B are enough.
    """
    ours = len(mix.adapters)
    squared = inner = exact_squared = 0.0
    for _, A, B in stack([each.blocks for each in (*mix.adapters, *exact.adapters)], torch.float32).values():
        mixed = gate(mix, A[:, :ours], B[:, :ours])
        summed = gate(exact, A[:, ours:], B[:, ours:])
        A, B = torch.cat([mixed.A, summed.A], 1), torch.cat([mixed.B, summed.B], 2)  # noqa: PLW2901
        gram = ((A @ A.mT).double() * (B.mT @ B)).sum(0)
        rank = mixed.A.shape[1]
        sums = torch.stack([gram[:rank, :rank].sum(), gram[:rank, rank:].sum(), gram[rank:, rank:].sum()]).tolist()
        squared, inner, exact_squared = squared + sums[0], inner + sums[1], exact_squared + sums[2]
    if squared <= 0 or exact_squared <= 0:
        return None
    return math.sqrt(squared / exact_squared), inner / math.sqrt(squared * exact_squared)
