"""Strategies to merge LoRA adapters, as pure functions of tensors and weights.

An adapter changes a module's weight by B @ A, with A [r, d_in] and B [d_out, r]. A strategy has two steps. First it
*prepares* factors by a mask that does not depend on the weights: magnitude_prune and DARE (arXiv 2311.03099) mask each
adapter alone, TIES (arXiv 2306.01708) depends on the whole set, cat and linear mask nothing. Then it multiplies each
adapter's A and B by two numbers, its *gates*; only these depend on the job's weights. Reference: PEFT 0.21,
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
"""Strategies that elect signs, so that preparing an adapter depends on the set that it is merged with."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedAdapter:
    """A LoRA adapter in blocks, ready to compute with: as it was stored, or as a strategy prepared it."""

    id: int
    sha256: str
    """Sha256 of the safetensors bytes. Together with the policy's seed it seeds random masks and factors."""
    scaling: float
    """alpha / r, or alpha / sqrt(r) with rsLoRA."""
    blocks: Blocks
    prepared: str = ""
    """Name of the mask that changed its factors; empty if they are as stored."""
    roots: Mapping[str, float] = field(default_factory=dict)
    """For each module with its own scaling: the number that its A and B were multiplied by, sqrt(own / `scaling`)."""
    ranks: Mapping[str, int] = field(default_factory=dict)
    """Each module's rank, if ranks differ: the blocks pad lower ranks with zeros. Empty if all are equal."""

    @property
    def key(self) -> tuple[int, str]:
        """Identifies this adapter as it is prepared: another adapter or another mask has another key."""
        return self.id, self.prepared


@dataclass(frozen=True, slots=True, eq=False)
class AdapterWeights:
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


@dataclass(frozen=True, slots=True, eq=False)
class Mix:
    """A composition as the model applies it: distinct prepared adapters, each with two gates (left for A, right for B).

    If `crossed`, every A_i meets every B_j: sum_j right_j B_j (sum_i left_i A_i x) is added to a module's output.
    Otherwise each adapter works alone: sum_i right_i B_i left_i A_i x.
    """

    adapters: tuple[PackedAdapter, ...] = ()
    left: tuple[float, ...] = ()
    right: tuple[float, ...] = ()
    crossed: bool = False


def compose(
    strategy: str, adapters: Sequence[AdapterWeights], weights: Sequence[float], *, density: float = 1.0, seed: int = 0
) -> dict[str, Factors]:
    """Merge adapters with the weights by a strategy; returns each module's factors in float32.

    An adapter adds nothing to a module that it lacks; lower ranks are padded with zeros (PEFT refuses them).
    The result equals PEFT's `add_weighted_adapter`, with four exceptions: a single adapter follows the strategy too
    (PEFT uses linear); rsLoRA's scaling counts once (PEFT's merge is sqrt(r) too strong); among equal magnitudes the
    first are kept (PEFT: any); DARE's masks depend only on seed, adapter and module (PEFT: the global generator).
    Raises UsageError for an unknown strategy, for weights that are not one finite number for each adapter, and for a
    density outside (0, 1].
    """
    check_settings(strategy, len(adapters), weights, density)
    prepared = prepare(strategy, [adapter.packed() for adapter in adapters], density=density, seed=seed)
    return merge(gated(strategy, prepared, weights))


def check_settings(strategy: str, adapters: int, weights: Sequence[float], density: float) -> None:
    """Raise UsageError if `compose` would refuse these arguments."""
    if strategy not in STRATEGIES:
        raise UsageError(f"strategy {strategy!r} is not one of {', '.join(STRATEGIES)}")
    if len(weights) != adapters or not all(map(math.isfinite, weights)):
        raise UsageError(f"weights must be one finite number an adapter ({adapters}), not {list(weights)}")
    if not 0 < density <= 1:
        raise UsageError(f"density must be above 0 and at most 1, not {density}")


def gated(strategy: str, prepared: Sequence[PackedAdapter], weights: Sequence[float]) -> Mix:
    """The mix of prepared adapters with the gates that the weights give, where g = weight * scaling.

    For cat, A is multiplied by g and B by 1; otherwise both by sqrt(|g|). The sign of a negative g goes to one of the
    two only, because on both it would cancel.
    """
    g = [weight * adapter.scaling for adapter, weight in zip(prepared, weights, strict=True)]
    if strategy == "cat":
        return Mix(tuple(prepared), tuple(g), (1.0,) * len(g))
    roots = [math.sqrt(abs(each)) for each in g]
    return Mix(tuple(prepared), tuple(map(math.copysign, roots, g)), tuple(roots), crossed=True)


def merge(mix: Mix) -> dict[str, Factors]:
    """Each module's merged factors in float32.

    For a crossed mix A = sum left_i A_i and B = sum right_i B_i; for cat the left_i A_i and the B_i are concatenated.
    """
    merged = {}
    for shape, (modules, A, B) in stack([adapter.blocks for adapter in mix.adapters], torch.float32).items():
        merged[shape] = Block(modules, *gate(mix, A, B))
    return unpack(merged)


def gate(mix: Mix, A: Tensor, B: Tensor) -> Factors:
    """Apply a mix's gates to the A [modules, n, r, d_in] and B [modules, n, d_out, r] of its n adapters; merge them.

    Returns A [modules, R, d_in] and B [modules, d_out, R], with R = r for a crossed mix, otherwise R = n * r.
    """
    left, right = (torch.tensor(gates, device=A.device)[:, None, None] for gates in (mix.left, mix.right))
    if mix.crossed:
        return Factors((A * left).sum(1), (B * right).sum(1))
    return Factors((A * left).flatten(1, 2), (B * right).transpose(1, 2).flatten(2))


def prepare(
    strategy: str, adapters: Sequence[PackedAdapter], *, density: float, seed: int
) -> tuple[PackedAdapter, ...]:
    """Prepare adapters, before gates are applied: mask each; for ties and dare_ties, then elect signs."""
    masked = [mask(strategy, adapter, density=density, seed=seed) for adapter in adapters]
    return elect(masked) if strategy in ELECTING else tuple(masked)


def mask_name(strategy: str, density: float, seed: int) -> str:
    """A name for the mask, different for each different mask; empty if the strategy masks nothing."""
    if strategy in ("dare_linear", "dare_ties"):
        return f"dropped {density} {seed}"
    return f"trimmed {density}" if strategy in ("magnitude_prune", "ties") else ""


def mask(strategy: str, adapter: PackedAdapter, *, density: float, seed: int) -> PackedAdapter:
    """The adapter with the elements that a strategy keeps; independent of the adapters that it is merged with.

    linear and cat keep all. magnitude_prune and ties keep the largest elements of each A and B ("trim" in TIES).
    dare_linear and dare_ties keep random elements and rescale them, in float32.
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
    """Sign election and disjoint merge of TIES (arXiv 2306.01708) over a set of adapters, in float32.

    Each adapter keeps the elements whose sign agrees with the set's, divided by the number of adapters that agree.
    The stored factors vote, without a module's own scaling.
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
    """The adapters' `roots` as a tensor [modules, adapters, 1, 1]; None if no module has its own scaling."""
    if not any(adapter.roots for adapter in adapters):
        return None
    roots = [[adapter.roots.get(module, 1.0) for adapter in adapters] for module in modules]
    return torch.tensor(roots, device=device)[:, :, None, None]


def randomize(adapter: PackedAdapter, seed: int) -> PackedAdapter:
    """The adapter with each factor replaced by random numbers of the same Frobenius norm: a control in evaluations."""
    return _drawn(adapter, "random_parameters", seed, noise_of_same_norm, f"random {seed}")


def _drawn(
    adapter: PackedAdapter, use: str, seed: int, change: Callable[[Tensor, torch.Generator], Tensor], name: str
) -> PackedAdapter:
    """The adapter with each module's A and B changed by `change`, which gets a generator seeded for that module."""
    drawn = {}
    for module, (A, B) in _factors(adapter):
        generator = seeded_generator(use, seed, adapter.sha256, module)
        drawn[module] = Factors(change(A, generator), change(B, generator))
    return _changed(adapter, pack(drawn), name)


def _factors(adapter: PackedAdapter) -> Iterator[tuple[str, Factors]]:
    """Each module's factors, without the zeros that pad lower ranks."""
    for module, (A, B) in unpack(adapter.blocks).items():
        rank = adapter.ranks.get(module, len(A))
        yield module, Factors(A[:rank], B[:, :rank])


def _changed(adapter: PackedAdapter, blocks: Blocks, name: str) -> PackedAdapter:
    return replace(adapter, blocks=blocks, prepared=f"{adapter.prepared}, {name}")
