"""Merging LoRA adapters: every strategy is gates over prepared factors. Pure functions of tensors and weights.

A module's weight changes by B @ A, with A [r, d_in] and B [d_out, r]. Every strategy but cat is the weighted sum of
`linear` over factors that masks prepared: magnitude_prune and DARE look at one adapter, TIES at the set, none at the
weights. What differs from job to job are gates, two numbers an adapter. Reference: PEFT 0.21,
`LoraModel.add_weighted_adapter` and `utils.merge_utils`.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from loracomp.composition.blocks import Block, Blocks, Factors, ModuleFactors, pack, stack, unpack
from loracomp.composition.masks import (
    drop_and_rescale,
    elect_and_average,
    keep_largest,
    noise_of_same_norm,
    seeded_generator,
)
from loracomp.errors import UsageError

STRATEGIES = ("linear", "cat", "ties", "magnitude_prune", "dare_linear", "dare_ties")
ELECTING = ("ties", "dare_ties")
"""Strategies that prepare an adapter by the set that it is merged with."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedAdapter:
    """A LoRA adapter ready to compute with, as it was stored or as a strategy prepared it."""

    id: int
    sha256: str
    """Of the safetensors bytes. With the policy's seed it seeds what is random about the adapter."""
    scaling: float
    """alpha / r, or alpha / sqrt(r) with rsLoRA."""
    blocks: Blocks
    prepared: str = ""
    """How its factors were changed; empty: as they were stored."""
    roots: Mapping[str, float] = field(default_factory=dict)
    """What A and B of a module with a scaling of its own are multiplied by: sqrt(its scaling / `scaling`)."""
    ranks: Mapping[str, int] = field(default_factory=dict)
    """Each module's rank where they differ: zeros stand behind the lower ones in its blocks."""

    @property
    def key(self) -> tuple[int, str]:
        """Tells it from every other adapter, and from itself prepared otherwise."""
        return self.id, self.prepared


@dataclass(frozen=True, slots=True, eq=False)
class AdapterWeights:
    """A LoRA adapter in memory, in the precision it was stored in. It changes a module by its scaling * B @ A."""

    id: int
    sha256: str
    scaling: float
    factors: ModuleFactors
    own_scaling: Mapping[str, float] = field(default_factory=dict)
    """Modules whose scaling is another (PEFT's rank_pattern and alpha_pattern)."""

    @property
    def changes_nothing(self) -> bool:
        """Whether B @ A is zero in every module, as before the first step of training."""
        return not any(bool(A.any()) and bool(B.any()) for A, B in self.factors.values())

    def packed(self) -> PackedAdapter:
        """The same by shapes, under one scaling: what a module's own differs by goes into its factors, in float32."""
        roots = {module: math.sqrt(own / self.scaling) for module, own in self.own_scaling.items()}
        factors = dict(self.factors)
        for module, root in roots.items():
            A, B = factors[module]
            factors[module] = Factors(A.float() * root, B.float() * root)
        ranks = {module: len(A) for module, (A, _) in factors.items()}
        if len(set(ranks.values())) == 1:
            ranks = {}
        return PackedAdapter(self.id, self.sha256, self.scaling, pack(factors), roots=roots, ranks=ranks)


@dataclass(frozen=True, slots=True, eq=False)
class Mix:
    """A composition as the model applies it: prepared adapters, each once, and a pair of gates for each.

    Crossed, it adds sum_j right_j B_j (sum_i left_i A_i x) to a module's output; else sum_i right_i B_i left_i A_i x.
    """

    adapters: tuple[PackedAdapter, ...] = ()
    left: tuple[float, ...] = ()
    right: tuple[float, ...] = ()
    crossed: bool = False


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
    check_settings(strategy, len(adapters), weights, density)
    prepared = prepare(strategy, [adapter.packed() for adapter in adapters], density=density, seed=seed)
    return merge(gated(strategy, prepared, weights))


def check_settings(strategy: str, adapters: int, weights: Sequence[float], density: float) -> None:
    """Raise UsageError for what `compose` refuses."""
    if strategy not in STRATEGIES:
        raise UsageError(f"strategy {strategy!r} is not one of {', '.join(STRATEGIES)}")
    if len(weights) != adapters or not all(map(math.isfinite, weights)):
        raise UsageError(f"weights must be one finite number an adapter ({adapters}), not {list(weights)}")
    if not 0 < density <= 1:
        raise UsageError(f"density must be above 0 and at most 1, not {density}")


def gated(strategy: str, prepared: Sequence[PackedAdapter], weights: Sequence[float]) -> Mix:
    """Prepared adapters under the gates that the weights give: g = weight * scaling (cat), else sqrt(g) on both sides.

    The sign of a negative g stays on one side; on both it would vanish.
    """
    g = [weight * adapter.scaling for adapter, weight in zip(prepared, weights, strict=True)]
    if strategy == "cat":
        return Mix(tuple(prepared), tuple(g), (1.0,) * len(g))
    roots = [math.sqrt(abs(each)) for each in g]
    return Mix(tuple(prepared), tuple(map(math.copysign, roots, g)), tuple(roots), crossed=True)


def merge(mix: Mix) -> dict[str, Factors]:
    """Each module's factors, in float32: A = sum left A_i, B = sum right B_i; of cat the stacks of left A_i and B_i."""
    merged = {}
    for shape, (modules, A, B) in stack([adapter.blocks for adapter in mix.adapters], torch.float32).items():
        merged[shape] = Block(modules, *gate(mix, A, B))
    return unpack(merged)


def gate(mix: Mix, A: Tensor, B: Tensor) -> Factors:
    """A [modules, r, d_in] and B [modules, d_out, r] of a mix, from its n adapters' A [modules, n, r, d_in] and B.

    Crossed, the rank stays; else it is n r.
    """
    left, right = (torch.tensor(gates, device=A.device)[:, None, None] for gates in (mix.left, mix.right))
    if mix.crossed:
        return Factors((A * left).sum(1), (B * right).sum(1))
    return Factors((A * left).flatten(1, 2), (B * right).transpose(1, 2).flatten(2))


def prepare(
    strategy: str, adapters: Sequence[PackedAdapter], *, density: float, seed: int
) -> tuple[PackedAdapter, ...]:
    """Adapters before gating: each is masked; with ties and dare_ties, signs are then elected over the set."""
    masked = [mask(strategy, adapter, density=density, seed=seed) for adapter in adapters]
    return elect(masked) if strategy in ELECTING else tuple(masked)


def mask_name(strategy: str, density: float, seed: int) -> str:
    """A name that differs for masks that differ; empty if the strategy masks nothing."""
    if strategy in ("dare_linear", "dare_ties"):
        return f"dropped {density} {seed}"
    return f"trimmed {density}" if strategy in ("magnitude_prune", "ties") else ""


def mask(strategy: str, adapter: PackedAdapter, *, density: float, seed: int) -> PackedAdapter:
    """What a strategy keeps of one adapter, whatever it is merged with.

    linear, cat: all. magnitude_prune, ties: the largest elements of each A and B (TIES: trim). dare_*: random elements,
    rescaled, in float32.
    """
    name = mask_name(strategy, density, seed)
    if name.startswith("dropped"):
        return _drawn(adapter, "dare", seed, lambda each, draw: drop_and_rescale(each.float(), density, draw), name)
    if name.startswith("trimmed") and adapter.ranks:
        each = ((module, (A[None], B[None])) for module, (A, B) in _factors(adapter))
        factors = {module: Factors(*(keep_largest(side, density)[0] for side in sides)) for module, sides in each}
        return _changed(adapter, pack(factors), name)
    if name.startswith("trimmed"):
        kept = {
            shape: Block(modules, keep_largest(A, density), keep_largest(B, density))
            for shape, (modules, A, B) in adapter.blocks.items()
        }
        return _changed(adapter, kept, name)
    return adapter


def elect(adapters: Sequence[PackedAdapter]) -> tuple[PackedAdapter, ...]:
    """What of each adapter agrees with the signs that the set elects, averaged; in float32 (TIES: elect, merge).

    Factors vote as they were stored, without a module's own scaling.
    """
    elected: list[dict[tuple[int, int], Block]] = [{} for _ in adapters]
    for shape, (modules, A, B) in stack([adapter.blocks for adapter in adapters], torch.float32).items():
        roots = _roots(adapters, modules, A.device)
        A, B = elect_and_average(A, 1, roots), elect_and_average(B, 1, roots)  # noqa: PLW2901
        for number, blocks in enumerate(elected):
            blocks[shape] = Block(modules, A[:, number], B[:, number])
    name = f"elected by {sorted(adapter.key for adapter in adapters)}"
    return tuple(_changed(adapter, blocks, name) for adapter, blocks in zip(adapters, elected, strict=True))


def _roots(adapters: Sequence[PackedAdapter], modules: Sequence[str], device: torch.device) -> Tensor | None:
    """[modules, adapters, 1, 1]; None where no module has a scaling of its own."""
    if not any(adapter.roots for adapter in adapters):
        return None
    roots = [[adapter.roots.get(module, 1.0) for adapter in adapters] for module in modules]
    return torch.tensor(roots, device=device)[:, :, None, None]


def randomize(adapter: PackedAdapter, seed: int) -> PackedAdapter:
    """A control: the adapter with random factors, each of the Frobenius norm of the one it replaces."""
    return _drawn(adapter, "random_parameters", seed, noise_of_same_norm, f"random {seed}")


def _drawn(
    adapter: PackedAdapter, use: str, seed: int, change: Callable[[Tensor, torch.Generator], Tensor], name: str
) -> PackedAdapter:
    """The adapter with each module's A, then B, changed by `change` with a random generator seeded for that module."""
    drawn = {}
    for module, (A, B) in _factors(adapter):
        generator = seeded_generator(use, seed, adapter.sha256, module)
        drawn[module] = Factors(change(A, generator), change(B, generator))
    return _changed(adapter, pack(drawn), name)


def _factors(adapter: PackedAdapter) -> Iterator[tuple[str, Factors]]:
    """Each module's, of its own rank."""
    for module, (A, B) in unpack(adapter.blocks).items():
        rank = adapter.ranks.get(module, len(A))
        yield module, Factors(A[:rank], B[:, :rank])


def _changed(adapter: PackedAdapter, blocks: Blocks, name: str) -> PackedAdapter:
    return replace(adapter, blocks=blocks, prepared=f"{adapter.prepared}, {name}")
