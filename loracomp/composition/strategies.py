"""Strategies to merge LoRA adapters, as pure functions of tensors and weights.

An adapter changes a module's weight by B @ A, with A [r, d_in] and B [d_out, r]. magnitude_prune and TIES (arXiv
2306.01708) first mask it: they keep only its largest elements, whatever the weights are. Each adapter's *gate* g is its
weight times its scaling. cat adds up the changes g B A. The other strategies add up the factors, each times sqrt(g), so
that every B meets every A; before that, ties elects signs among the adapters. An adapter adds nothing to a module that
it lacks; lower ranks are padded with zeros.

The result equals that of PEFT 0.21 (`LoraModel.add_weighted_adapter`, `utils.merge_utils`), with four exceptions: PEFT
refuses different ranks; a single adapter follows the strategy too (PEFT uses linear); rsLoRA's scaling counts once
(PEFT's merge is sqrt(r) too strong); among equal magnitudes the first are kept (PEFT: any).
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from loracomp.composition.blocks import (
    Block,
    Blocks,
    Factors,
    Mask,
    ModuleFactors,
    are_largest,
    elect_and_average,
    mask_of,
    pack,
    stack,
    unpack,
)
from loracomp.errors import UsageError

STRATEGIES = ("linear", "cat", "ties", "magnitude_prune", "linear_rescaled")
TRIMMING = ("ties", "magnitude_prune")
"""Strategies that keep only the largest elements of each adapter's factors."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedAdapter:
    """A LoRA adapter in blocks, ready to compute with: as it was stored, masked, or merged from a mix.

    Two of them are equal if their factors are.
    """

    id: int
    sha256: str
    """Sha256 of the safetensors bytes."""
    scaling: float
    """alpha / r, or alpha / sqrt(r) with rsLoRA."""
    stored: Blocks
    """Its factors before `mask`."""
    mask: Mask | None = None
    variant: str = ""
    """Names the mask of a masked adapter, or the mix that a merged adapter was made of; empty if the factors are those
    of the file."""
    roots: Mapping[str, float] = field(default_factory=dict)
    """For each module with its own scaling: the number that its A and B were multiplied by, sqrt(own / `scaling`)."""
    ranks: Mapping[str, int] = field(default_factory=dict)
    """Each module's rank, if ranks differ: the blocks pad lower ranks with zeros. Empty if all are equal."""

    @property
    def key(self) -> tuple[int, str, str]:
        """Identifies its factors: another file or another mask has another key."""
        return self.id, self.sha256, self.variant

    @property
    def blocks(self) -> Blocks:
        """Its factors; with a mask, each call makes a copy."""
        return self.mask.of(self.stored) if self.mask else self.stored

    def masked(self, mask: Mask) -> "PackedAdapter":
        """The same adapter under a mask that was made for it."""
        return replace(self, mask=mask, variant=mask.name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PackedAdapter) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


@dataclass(frozen=True, slots=True, eq=False)
class LoraFactors:
    """A LoRA adapter in memory, in its stored precision. It changes a module's weight by scaling * B @ A."""

    id: int
    sha256: str
    scaling: float
    factors: ModuleFactors
    own_scaling: Mapping[str, float] = field(default_factory=dict)
    """Scaling of the modules whose scaling differs from `scaling` (PEFT's rank_pattern and alpha_pattern)."""

    def packed(self) -> PackedAdapter:
        """The adapter in blocks with one scaling for all modules.

        The factors of a module with its own scaling are multiplied by sqrt(own / scaling), in float32.
        """
        roots = {module: math.sqrt(own / self.scaling) for module, own in self.own_scaling.items()}
        factors = dict(self.factors)
        for module, root in roots.items():
            A, B = factors[module]
            factors[module] = Factors(A.float() * root, B.float() * root)
        ranks = {module: len(A) for module, (A, _) in factors.items()}
        if len(set(ranks.values())) == 1:
            ranks = {}
        return PackedAdapter(self.id, self.sha256, self.scaling, pack(factors), roots=roots, ranks=ranks)


@dataclass(frozen=True, eq=False)
class Mix:
    """A composition as the model applies it: distinct adapters, masked as the strategy says, each with its gate."""

    adapters: tuple[PackedAdapter, ...] = ()
    gates: tuple[float, ...] = ()
    """For each adapter weight * scaling."""
    strategy: str = "cat"
    dtype: torch.dtype = torch.float32
    """The dtype in which the factors of a merged adapter are kept."""

    @cached_property
    def applied(self) -> "Mix":
        """The mix for a forward pass, where each adapter works alone: sum_i g_i B_i A_i x.

        For strategy cat, and for a mix of one adapter, it is this mix. For any other mix it is a mix of one adapter,
        whose factors are merged. They are merged once, and kept as long as this mix.
        """
        if self.strategy == "cat" or len(self.adapters) == 1:
            return self
        name = f"{self.strategy} {[adapter.key for adapter in self.adapters]} {self.gates}"
        merged = {shape: block.to(self.dtype) for shape, block in _merged(self).items()}
        return Mix((PackedAdapter(-1, "", 1.0, merged, variant=name),), (1.0,))


def check_settings(strategy: str, adapters: int, weights: Sequence[float], density: float) -> None:
    """Raise UsageError for an unknown strategy, weights that are not a finite number each, a density outside (0, 1]."""
    if strategy not in STRATEGIES:
        raise UsageError(f"strategy {strategy!r} is not one of {', '.join(STRATEGIES)}")
    if len(weights) != adapters or not all(map(math.isfinite, weights)):
        raise UsageError(f"weights must be one finite number an adapter ({adapters}), not {list(weights)}")
    if not 0 < density <= 1:
        raise UsageError(f"density must be above 0 and at most 1, not {density}")


def gated(
    strategy: str, adapters: Sequence[PackedAdapter], weights: Sequence[float], dtype: torch.dtype = torch.float32
) -> Mix:
    """The mix of these adapters, which are sorted, so that rounding does not depend on their order."""
    mixed = sorted(zip(adapters, weights, strict=True), key=lambda each: each[0].key)
    gates = tuple(weight * adapter.scaling for adapter, weight in mixed)
    return Mix(tuple(adapter for adapter, _ in mixed), gates, strategy, dtype)


def merge(mix: Mix) -> dict[str, Factors]:
    """Each module's merged factors in float32.

    For cat the g_i A_i and the B_i are concatenated. Otherwise A = sum sqrt(g_i) A_i and B = sum sqrt(g_i) B_i, and the
    sign of a negative g goes to A alone, because on both it would cancel.
    """
    return unpack(_merged(mix))


def _merged(mix: Mix) -> dict[tuple[int, int], Block]:
    merge_block = _concatenated if mix.strategy == "cat" else _summed
    stacked = stack([adapter.blocks for adapter in mix.adapters])
    return {shape: Block(block.modules, *merge_block(mix, block)) for shape, block in stacked.items()}


def _concatenated(mix: Mix, block: Block) -> Factors:
    """A [modules, n * r, d_in] and B [modules, d_out, n * r] in float32, from the block of a mix's n adapters."""
    gates = torch.tensor(mix.gates, device=block.A.device)[:, None, None]
    return Factors((block.A * gates).flatten(1, 2), block.B.float().transpose(1, 2).flatten(2))


def _summed(mix: Mix, block: Block) -> Factors:
    """A [modules, r, d_in] and B [modules, d_out, r] in float32, from the block of a mix's adapters."""
    elected = _elected(mix.adapters, block) if mix.strategy == "ties" else block
    roots = [math.sqrt(abs(gate)) for gate in mix.gates]
    A = _weighted_sum(elected.A, map(math.copysign, roots, mix.gates))
    B = _weighted_sum(elected.B.mT, roots).mT
    if mix.strategy == "linear_rescaled":
        ratio = (_squared_norms(*_concatenated(mix, block)) / _squared_norms(A, B)).sqrt()
        B = B * ratio.nan_to_num(1.0, posinf=1.0)[:, None, None]
    return Factors(A, B)


def _weighted_sum(side: Tensor, weights: Iterable[float]) -> Tensor:
    """The sum over the adapters of factors [modules, n, ...] times their weights, in float32: [modules, ...]."""
    total = torch.zeros_like(side[:, 0], dtype=torch.float32)
    for number, weight in enumerate(weights):
        total.add_(side[:, number], alpha=weight)
    return total


def _squared_norms(A: Tensor, B: Tensor) -> Tensor:
    """Squared Frobenius norm of each B @ A [modules], by the Gram matrices of their factors."""
    return ((A @ A.mT) * (B.mT @ B)).sum((1, 2))


def _elected(adapters: Sequence[PackedAdapter], block: Block) -> Block:
    """The block of these adapters after they have elected signs (`elect_and_average`)."""
    roots = _roots(adapters, block.modules, block.A.device)
    A, B = (elect_and_average(side.float(), 1, roots) for side in (block.A, block.B))
    return Block(block.modules, A, B)


def trim(adapter: PackedAdapter, density: float) -> Mask:
    """The mask of the largest elements of each A and B, whatever adapter it is merged with: "trim" in TIES."""
    name = f"trimmed {density}"
    if adapter.ranks:
        each = ((module, (A[None], B[None])) for module, (A, B) in _factors(adapter))
        largest = {module: Factors(*(are_largest(side, density)[0] for side in sides)) for module, sides in each}
        return mask_of(name, pack(largest))
    kept = {
        shape: Block(modules, are_largest(A, density), are_largest(B, density))
        for shape, (modules, A, B) in adapter.blocks.items()
    }
    return mask_of(name, kept)


def _roots(adapters: Sequence[PackedAdapter], modules: Sequence[str], device: torch.device) -> Tensor | None:
    """The adapters' `roots` as a tensor [modules, adapters, 1, 1]; None if no module has its own scaling.

    The stored factors vote on signs, without a module's own scaling.
    """
    if not any(adapter.roots for adapter in adapters):
        return None
    roots = [[adapter.roots.get(module, 1.0) for adapter in adapters] for module in modules]
    return torch.tensor(roots, device=device)[:, :, None, None]


def _factors(adapter: PackedAdapter) -> Iterator[tuple[str, Factors]]:
    """Each module's factors, without the zeros that pad lower ranks."""
    for module, (A, B) in unpack(adapter.blocks).items():
        rank = adapter.ranks.get(module, len(A))
        yield module, Factors(A[:rank], B[:, :rank])
