"""Merging LoRA adapters: pure functions, factors and weights in, factors out.

A module's weight changes by B @ A, with A [r, d_in] and B [d_out, r]. Every strategy but cat is the weighted sum of
`linear` over factors that masks prepared: magnitude_prune and DARE look at one adapter, TIES at the set, none at the
weights. Merging happens in float32. Reference: PEFT 0.21, `LoraModel.add_weighted_adapter` and `utils.merge_utils`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from loracomp.composition.masks import (
    drop_and_rescale,
    elect_and_average,
    keep_largest,
    noise_of_same_norm,
    seeded_generator,
)
from loracomp.errors import UsageError

STRATEGIES = ("linear", "cat", "ties", "magnitude_prune", "dare_linear", "dare_ties")


class Factors(NamedTuple):
    """Low-rank factors of the change B @ A of one module: A [r, d_in], B [d_out, r]."""

    A: Tensor
    B: Tensor


ModuleFactors = Mapping[str, Factors]
"""Name of a module of the base model -> its factors."""


@dataclass(frozen=True, slots=True, eq=False)
class AdapterWeights:
    """A LoRA adapter in memory, in the precision it was stored in. It changes a module by scaling * B @ A."""

    id: int
    sha256: str
    """Of the safetensors bytes. With the policy's seed it seeds what is random about the adapter."""
    scaling: float
    """alpha / r, or alpha / sqrt(r) with rsLoRA."""
    factors: ModuleFactors


def compose(
    strategy: str, adapters: Sequence[AdapterWeights], weights: Sequence[float], *, density: float = 1.0, seed: int = 0
) -> dict[str, Factors]:
    """Factors, in float32, of the adapters merged with the weights by the strategy.

    A module that an adapter lacks gets nothing from it; lower ranks are padded with zeros (PEFT refuses them).
    Equal to PEFT's `add_weighted_adapter` but for: a single adapter follows the strategy (PEFT: linear); rsLoRA's
    scaling counts once (PEFT's merge is sqrt(r) too strong); of equal magnitudes the first are kept (PEFT: any); DARE's
    masks are drawn from seed, adapter and module (PEFT: the global generator).
    Raises UsageError for an unknown strategy, weights that are not one finite number an adapter, and a density
    outside (0, 1].
    """
    _check(strategy, len(adapters), weights, density)
    gates = [weight * adapter.scaling for adapter, weight in zip(adapters, weights, strict=True)]
    merge = _cat if strategy == "cat" else _linear
    prepared = prepare(strategy, adapters, density=density, seed=seed)
    return {
        module: merge([prepared[i][module] for i in having], [gates[i] for i in having])
        for module, having in _having(prepared).items()
    }


def prepare(
    strategy: str, adapters: Sequence[AdapterWeights], *, density: float, seed: int
) -> list[dict[str, Factors]]:
    """Each adapter's factors, in float32, as the weighted sum shall take them.

    linear, cat: as they are. magnitude_prune, ties: the largest elements kept (TIES: trim). dare_*: random elements
    kept and rescaled. ties, dare_ties: then signs elected over the set, and their disjoint mean (TIES: elect, merge).
    """
    prepared = [_mask(strategy, adapter, density, seed) for adapter in adapters]
    return _elect(prepared) if strategy in ("ties", "dare_ties") else prepared


def randomize(adapter: AdapterWeights, seed: int) -> AdapterWeights:
    """A control: the adapter with random factors, each of the Frobenius norm of the one it replaces."""

    def noise(module: str) -> Callable[[Tensor], Tensor]:
        generator = seeded_generator("random_parameters", seed, adapter.sha256, module)
        return lambda tensor: noise_of_same_norm(tensor, generator)

    return replace(adapter, factors=_map(adapter, noise))


def _check(strategy: str, adapters: int, weights: Sequence[float], density: float) -> None:
    if strategy not in STRATEGIES:
        raise UsageError(f"strategy {strategy!r} is not one of {', '.join(STRATEGIES)}")
    if len(weights) != adapters or not all(map(math.isfinite, weights)):
        raise UsageError(f"weights must be one finite number an adapter ({adapters}), not {list(weights)}")
    if not 0 < density <= 1:
        raise UsageError(f"density must be above 0 and at most 1, not {density}")


def _map(adapter: AdapterWeights, change_for: Callable[[str], Callable[[Tensor], Tensor]]) -> dict[str, Factors]:
    """Every module's A, then B, in float32, through the change that its module is given."""

    def changed(module: str, factors: Factors) -> Factors:
        change = change_for(module)
        return Factors(change(factors.A.float()), change(factors.B.float()))

    return {module: changed(module, factors) for module, factors in adapter.factors.items()}


def _mask(strategy: str, adapter: AdapterWeights, density: float, seed: int) -> dict[str, Factors]:
    def drop(module: str) -> Callable[[Tensor], Tensor]:
        generator = seeded_generator("dare", seed, adapter.sha256, module)
        return lambda tensor: drop_and_rescale(tensor, density, generator)

    if strategy in ("dare_linear", "dare_ties"):
        return _map(adapter, drop)
    if strategy in ("magnitude_prune", "ties"):
        return _map(adapter, lambda _: lambda tensor: keep_largest(tensor, density))
    return _map(adapter, lambda _: lambda tensor: tensor)


def _elect(adapters: Sequence[ModuleFactors]) -> list[dict[str, Factors]]:
    elected: list[dict[str, Factors]] = [{} for _ in adapters]
    for module, having in _having(adapters).items():
        As, Bs = _pad_ranks([adapters[i][module] for i in having])
        for i, A, B in zip(having, elect_and_average(As), elect_and_average(Bs), strict=True):
            elected[i][module] = Factors(A, B)
    return elected


def _linear(factors: Sequence[Factors], gates: Sequence[float]) -> Factors:
    """A = sum sign(g) sqrt|g| A_i, B = sum sqrt|g| B_i; on both sides the sign of a negative g would vanish."""
    As, Bs = _pad_ranks(factors)
    g = torch.tensor(gates, device=As.device)
    roots = g.abs().sqrt()
    return Factors(torch.tensordot(roots * g.sign(), As, 1), torch.tensordot(roots, Bs, 1))


def _cat(factors: Sequence[Factors], gates: Sequence[float]) -> Factors:
    """A = stack of g A_i, B = stack of B_i, of rank sum r_i: exactly sum g B_i A_i."""
    A = torch.cat([f.A * gate for f, gate in zip(factors, gates, strict=True)])
    return Factors(A, torch.cat([f.B for f in factors], dim=1))


def _having(adapters: Sequence[ModuleFactors]) -> dict[str, list[int]]:
    """Name of a module -> the positions of the adapters that have it."""
    having: dict[str, list[int]] = {}
    for position, adapter in enumerate(adapters):
        for module in adapter:
            having.setdefault(module, []).append(position)
    return having


def _pad_ranks(factors: Sequence[Factors]) -> tuple[Tensor, Tensor]:
    """Stacks [n, r, d_in] and [n, d_out, r] of all A and all B, zeros up to the largest rank."""
    rank = max(f.A.shape[0] for f in factors)
    A = torch.stack([pad(f.A, (0, 0, 0, rank - f.A.shape[0])) for f in factors])
    return A, torch.stack([pad(f.B, (0, rank - f.B.shape[1])) for f in factors])
