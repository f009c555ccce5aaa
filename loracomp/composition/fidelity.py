"""Merges a mix into a model's own weights, as PEFT does, and measures how far it is from the exact weighted sum."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from transformers import Conv1D

from loracomp.composition.blocks import Factors
from loracomp.composition.strategies import Mix, merge

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
    change is zero.
    """
    if mix.strategy == "cat":  # it is the exact sum, or the base model alone
        return (1.0, 1.0) if mix.adapters else None
    ours, sums = merge(mix), merge(exact)
    squared, inner, exact_squared = _inner_product(ours, ours), _inner_product(ours, sums), _inner_product(sums, sums)
    if squared <= 0 or exact_squared <= 0:
        return None
    return math.sqrt(squared / exact_squared), inner / math.sqrt(squared * exact_squared)


def _inner_product(one: Mapping[str, Factors], other: Mapping[str, Factors]) -> float:
    """The inner product of two changes of the same modules. The full matrices are never built.

    <B A, D C> is the sum of the elements of (A C^T) * (B^T D), a product of two small Gram matrices.
    """
    pairs = ((factors, other[module]) for module, factors in one.items())
    return sum(float(((A @ C.mT) * (B.mT @ D)).sum(dtype=torch.double)) for (A, B), (C, D) in pairs)
