"""Strategies to merge LoRA adapters, as pure functions of tensors and weights.

An adapter changes a module's weight by B @ A, with A [r, d_in] and B [d_out, r]. A strategy has two steps. First it
*prepares* each adapter by a mask that does not depend on the weights: magnitude_prune and TIES (arXiv 2306.01708) keep
its largest elements, the other strategies all. Then it multiplies each adapter's A and B by two numbers, its *gates*;
only these depend on the job's weights. In between, ties elects signs among the adapters of a mix. An adapter adds
nothing to a module that it lacks; lower ranks are padded with zeros.

The result equals that of PEFT 0.21 (`LoraModel.add_weighted_adapter`, `utils.merge_utils`), with four exceptions: PEFT
refuses different ranks; a single adapter follows the strategy too (PEFT uses linear); rsLoRA's scaling counts once
(PEFT's merge is sqrt(r) too strong); among equal magnitudes the first are kept (PEFT: any).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
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
    """A LoRA adapter in blocks, ready to compute with: as it was stored, or as a strategy prepared it.

    Two of them are equal if they are prepared alike from the same file.
    """

    id: int
    sha256: str
    """Sha256 of the safetensors bytes."""
    scaling: float
    """alpha / r, or alpha / sqrt(r) with rsLoRA."""
    stored: Blocks
    """Its factors before `mask`."""
    mask: Mask | None = None
    prepared: str = ""
    """Names of what changed its factors; empty if they are as in the file."""
    roots: Mapping[str, float] = field(default_factory=dict)
    """For each module with its own scaling: the number that its A and B were multiplied by, sqrt(own / `scaling`)."""
    ranks: Mapping[str, int] = field(default_factory=dict)
    """Each module's rank, if ranks differ: the blocks pad lower ranks with zeros. Empty if all are equal."""

    @property
    def key(self) -> tuple[int, str, str]:
        """Identifies this adapter as it is prepared: another file or another mask has another key."""
        return self.id, self.sha256, self.prepared

    @property
    def blocks(self) -> Blocks:
        """Its factors as they are prepared; with a mask, each call makes a copy."""
        return self.mask.of(self.stored) if self.mask else self.stored

    def masked(self, mask: Mask) -> "PackedAdapter":
        """The same adapter under a mask that was made for it."""
        return replace(self, mask=mask, prepared=f"{self.prepared}, {mask.name}")

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
    """A composition as the model applies it: distinct prepared adapters, each with two gates (left for A, right for B).

    If `summed_factors`, every A_i meets every B_j: it adds sum_j right_j B_j (sum_i left_i A_i x) to an output.
    Otherwise each adapter works alone: sum_i right_i B_i left_i A_i x.
    If `electing`, its adapters elect signs (`elect_and_average`) before gates are applied. If `rescaled`, the change of
    each module has the Frobenius norm that the exact weighted sum would have.
    """

    adapters: tuple[PackedAdapter, ...] = ()
    left: tuple[float, ...] = ()
    right: tuple[float, ...] = ()
    summed_factors: bool = False
    electing: bool = False
    rescaled: bool = False

    @cached_property
    def applied(self) -> "Mix":
        """The mix for a forward pass: if it elects or is rescaled, one adapter that is merged, in float32.

        It is made once and kept as long as this mix, because another mix of the same adapters has other factors.
        """
        if not (self.electing or self.rescaled):
            return self
        name = f"merged {[adapter.key for adapter in self.adapters]} {self.left} {self.right}"
        return Mix((PackedAdapter(-1, "", 1.0, _merged(self), prepared=name),), (1.0,), (1.0,))


def check_settings(strategy: str, adapters: int, weights: Sequence[float], density: float) -> None:
    """Raise UsageError for an unknown strategy, weights that are not a finite number each, a density outside (0, 1]."""
    if strategy not in STRATEGIES:
        raise UsageError(f"strategy {strategy!r} is not one of {', '.join(STRATEGIES)}")
    if len(weights) != adapters or not all(map(math.isfinite, weights)):
        raise UsageError(f"weights must be one finite number an adapter ({adapters}), not {list(weights)}")
    if not 0 < density <= 1:
        raise UsageError(f"density must be above 0 and at most 1, not {density}")


def gated(strategy: str, prepared: Sequence[PackedAdapter], weights: Sequence[float]) -> Mix:
    """The mix of prepared adapters with the gates that the weights give, where g = weight * scaling.

    For cat, A is multiplied by g and B by 1; otherwise both by sqrt(|g|). The sign of a negative g goes to one of the
    two only, because on both it would cancel. Adapters are sorted, so that rounding does not depend on their order.
    """
    mixed = sorted(zip(prepared, weights, strict=True), key=lambda each: each[0].key)
    adapters = tuple(adapter for adapter, _ in mixed)
    g = [weight * adapter.scaling for adapter, weight in mixed]
    if strategy == "cat":
        return Mix(adapters, tuple(g), (1.0,) * len(g))
    roots = [math.sqrt(abs(each)) for each in g]
    left = tuple(map(math.copysign, roots, g))
    electing, rescaled = strategy == "ties", strategy == "linear_rescaled"
    return Mix(adapters, left, tuple(roots), summed_factors=True, electing=electing, rescaled=rescaled)


def merge(mix: Mix) -> dict[str, Factors]:
    """Each module's merged factors in float32.

    With summed factors A = sum left_i A_i and B = sum right_i B_i; for cat the left_i A_i and the B_i are concatenated.
    """
    return unpack(_merged(mix))


def _merged(mix: Mix) -> dict[tuple[int, int], Block]:
    merged = {}
    for shape, (modules, A, B) in stack([adapter.blocks for adapter in mix.adapters], torch.float32).items():
        if mix.electing:
            roots = _roots(mix.adapters, modules, A.device)
            A, B = elect_and_average(A, 1, roots), elect_and_average(B, 1, roots)  # noqa: PLW2901
        factors = gate(mix, A, B)
        if mix.rescaled:
            exact = gate(replace(mix, summed_factors=False), A, B)
            ratio = (_squared_norms(*exact) / _squared_norms(*factors)).sqrt().nan_to_num(1.0, posinf=1.0)
            factors = Factors(factors.A, factors.B * ratio[:, None, None])
        merged[shape] = Block(modules, *factors)
    return merged


def _squared_norms(A: Tensor, B: Tensor) -> Tensor:
    """Squared Frobenius norm of each B @ A [modules], by the Gram matrices of their factors."""
    return ((A @ A.mT) * (B.mT @ B)).sum((1, 2))


def gate(mix: Mix, A: Tensor, B: Tensor) -> Factors:
    """Apply a mix's gates to the A [modules, n, r, d_in] and B [modules, n, d_out, r] of its n adapters; merge them.

    Returns A [modules, R, d_in] and B [modules, d_out, R], with R = r with summed factors, otherwise R = n * r.
    """
    left, right = (torch.tensor(gates, device=A.device)[:, None, None] for gates in (mix.left, mix.right))
    if mix.summed_factors:
        return Factors((A * left).sum(1), (B * right).sum(1))
    return Factors((A * left).flatten(1, 2), (B * right).transpose(1, 2).flatten(2))


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
