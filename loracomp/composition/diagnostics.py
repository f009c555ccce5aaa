"""How far a mix is from the exact weighted sum, from small Gram matrices: no change of a weight is ever built."""

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import combinations_with_replacement, product
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import pad

from loracomp.composition.blocks import stack
from loracomp.composition.masks import seeded_generator
from loracomp.composition.resident import ByteLimitedCache
from loracomp.composition.strategies import Mix, PackedAdapter

TOGETHER = 8
"""Adapters that are multiplied at once with those behind them."""
MARK_NBYTES = 300
"""What a float under an adapter's key takes, about."""


class Pair(NamedTuple):
    """Of two adapters i and j; zeros stand where one lacks a module, or is of a lower rank."""

    modules: tuple[str, ...]
    A: Tensor
    """A_i A_j^T of each module, [modules, r_i, r_j] in float32."""
    B: Tensor
    """B_i^T B_j, likewise."""
    inner: float
    """Frobenius inner product of their changes B @ A, all modules taken as one vector."""

    @property
    def nbytes(self) -> int:
        """Bytes of the matrices."""
        return self.A.nbytes + self.B.nbytes

    def turned(self) -> "Pair":
        """The same of the two in the other order."""
        return self._replace(A=self.A.mT, B=self.B.mT)


_Key: TypeAlias = tuple[int, str]


class Fidelity:
    """Measures mixes; the Gram matrices of two adapters are kept, so that another mix of them costs next to nothing."""

    def __init__(self, cache_bytes: int) -> None:
        self._kept: ByteLimitedCache[tuple[_Key, _Key], Pair] = ByteLimitedCache(cache_bytes * 15 // 16)
        self._marks: ByteLimitedCache[_Key, float] = ByteLimitedCache(cache_bytes // 16)

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept."""
        return self._kept.nbytes + self._marks.nbytes

    def meet(self, mixes: Iterable[tuple[Mix, Mix]]) -> None:
        """Make what `measure` needs of adapters that have not met before; `mixes` are arguments of it.

        Those of all mixes are multiplied at once where that is less than mix by mix.
        """
        groups = [_to_meet(mix, exact) for mix, exact in mixes if mix is not exact]
        groups = [group for group in groups if not self._have_met(group)]
        everyone = _by_key(adapter for group in groups for adapter in group)
        if len(everyone) ** 2 < sum(len(group) ** 2 for group in groups):
            groups = [everyone]
        for group in groups:
            self._meet(group)

    def measure(self, mix: Mix, exact: Mix) -> tuple[float, float] | None:
        """Norm ratio |mix| / |exact| and cosine between the two changes, all modules taken as one vector.

        `exact` is the weighted sum, as cat gates it, and may be the mix itself. None where either change is zero.
        """
        if mix is exact:
            return None if self._is_zero(mix) else (1.0, 1.0)
        adapters = _to_meet(mix, exact)
        pairs = [[self._pair(one, other) for other in adapters] for one in adapters]
        if _is_elected(mix):
            *_, exact_squared = _inner_products(exact, exact, adapters, pairs)
            squared, inner = _inner_products_of_sums(mix, exact)
        else:
            squared, inner, exact_squared = _inner_products(mix, exact, adapters, pairs)
        if squared <= 0 or exact_squared <= 0:
            return None
        return math.sqrt(squared / exact_squared), inner / math.sqrt(squared * exact_squared)

    def _have_met(self, adapters: Sequence[PackedAdapter]) -> bool:
        keys = [adapter.key for adapter in adapters]
        return all(self._kept.get(pair) for pair in combinations_with_replacement(keys, 2))

    def _meet(self, adapters: Sequence[PackedAdapter]) -> dict[tuple[_Key, _Key], Pair]:
        found = dict(_pairs(adapters))
        for keys, pair in found.items():
            self._kept.put(keys, pair, pair.nbytes)
        return found

    def _pair(self, one: PackedAdapter, other: PackedAdapter) -> Pair:
        if other.key < one.key:
            return self._pair(other, one).turned()
        keys = one.key, other.key
        return self._kept.get(keys) or self._meet(_by_key((one, other)))[keys]

    def _is_zero(self, mix: Mix) -> bool:
        """Of a mix that is not crossed: whether its change is zero, by its adapters' marks."""
        gates = (left * right for left, right in zip(mix.left, mix.right, strict=True))
        return math.fsum(gate * self._mark(each) for gate, each in zip(gates, mix.adapters, strict=True)) == 0

    def _mark(self, adapter: PackedAdapter) -> float:
        if (kept := self._marks.get(adapter.key)) is None:
            kept = _mark(adapter)
            self._marks.put(adapter.key, kept, MARK_NBYTES)
        return kept


def _is_elected(mix: Mix) -> bool:
    return any(adapter.elected for adapter in mix.adapters)


def _to_meet(mix: Mix, exact: Mix) -> list[PackedAdapter]:
    """Those of which pairs are needed. No other set has what one elected: keeping its pairs would save nothing."""
    return _by_key(exact.adapters if _is_elected(mix) else (*mix.adapters, *exact.adapters))


def _by_key(adapters: Iterable[PackedAdapter]) -> list[PackedAdapter]:
    return [adapter for _, adapter in sorted({each.key: each for each in adapters}.items())]


def _pairs(adapters: Sequence[PackedAdapter]) -> Iterator[tuple[tuple[_Key, _Key], Pair]]:
    """Each of the adapters, which come by key, with itself and those behind it."""
    keys = [adapter.key for adapter in adapters]
    blocks = stack([adapter.blocks for adapter in adapters], torch.float32).values()
    modules = tuple(module for block in blocks for module in block.modules)
    for start in range(0, len(adapters), TOGETHER):
        A = _joined([_products(block.A, start) for block in blocks])
        B = _joined([_products(block.B.mT, start) for block in blocks])
        inner = (A.double() * B).sum((0, 2, 4)).tolist()
        for one, other in product(range(A.shape[1]), range(A.shape[3])):
            if one <= other:
                pair = Pair(modules, A[:, one, :, other].clone(), B[:, one, :, other].clone(), inner[one][other])
                yield (keys[start + one], keys[start + other]), pair


def _products(side: Tensor, start: int) -> Tensor:
    """Of side [modules, n, r, d] some, from `start` on, with these and all behind: [modules, some, r, others, r]."""
    some, others = side[:, start : start + TOGETHER], side[:, start:]
    found = some.flatten(1, 2) @ others.flatten(1, 2).mT
    return found.view(*some.shape[:3], *others.shape[1:3])


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Such products over the modules of all parts, zeros beyond a lower rank."""
    rank = max(part.shape[2] for part in parts)
    return torch.cat([pad(part, (0, rank - part.shape[4], 0, 0, 0, rank - part.shape[2])) for part in parts])


def _inner_products(
    mix: Mix, exact: Mix, adapters: Sequence[PackedAdapter], pairs: Sequence[Sequence[Pair]]
) -> tuple[float, float, float]:
    """<mix, mix>, <mix, exact> and <exact, exact>, Frobenius, over all modules; `exact` is not crossed.

    <b_j B_j a_i A_i, d_l B_l c_k A_k> = sum over [r, r] of (b_j d_l B_j^T B_l) * (a_i c_k A_i A_k^T). A crossed mix has
    every j with every i: both matrices are summed over its adapters first. Any other has j = i alone.
    """
    inner = torch.tensor([[pair.inner for pair in row] for row in pairs], dtype=torch.double)
    left, right = _gates(mix, adapters)
    weights = _gates(exact, adapters).prod(0)
    exact_squared = float(weights @ inner @ weights)
    if not mix.crossed:
        own = left * right
        return float(own @ inner @ own), float(own @ inner @ weights), exact_squared
    A, B = _aligned(pairs)
    left, right = left.to(A.device), right.to(A.device)
    # The mix with each adapter, [adapters, modules, r, r]; then with itself.
    A, B = torch.tensordot(left, A, 1), torch.tensordot(right, B, 1)
    with_each = (A * B).sum((1, 2, 3)).cpu()
    squared = (torch.tensordot(left, A, 1) * torch.tensordot(right, B, 1)).sum()
    return float(squared), float(with_each @ weights), exact_squared


def _inner_products_of_sums(mix: Mix, exact: Mix) -> tuple[float, float]:
    """<mix, mix> and <mix, exact> of a crossed mix: with the two sums that it is made of, as those of one adapter."""
    count, squared, inner = len(mix.adapters), 0.0, 0.0
    weights = torch.tensor([exact.left, exact.right], dtype=torch.double).prod(0)
    for _, A, B in stack([each.blocks for each in (*mix.adapters, *exact.adapters)], torch.float32).values():
        left, right = (torch.tensor(gates, device=A.device)[:, None, None] for gates in (mix.left, mix.right))
        own_A, own_B = (A[:, :count] * left).sum(1), (B.mT[:, :count] * right).sum(1)
        squared += float(((own_A @ own_A.mT).double() * (own_B @ own_B.mT)).sum())
        with_each = _with_each(own_A, A[:, count:]).double() * _with_each(own_B, B.mT[:, count:])
        inner += float(with_each.sum((0, 1, 3)).cpu() @ weights)
    return squared, inner


def _with_each(own: Tensor, others: Tensor) -> Tensor:
    """[modules, r, d] with [modules, n, r, d]: [modules, r, n, r]."""
    found = own @ others.flatten(1, 2).mT
    return found.view(*own.shape[:2], *others.shape[1:3])


def _gates(mix: Mix, adapters: Sequence[PackedAdapter]) -> Tensor:
    """Left and right ones, [2, adapters] in float64; 0 for what it does not mix."""
    gates = {adapter.key: each for adapter, *each in zip(mix.adapters, mix.left, mix.right, strict=True)}
    return torch.tensor([gates.get(adapter.key, [0.0, 0.0]) for adapter in adapters], dtype=torch.double).T


def _aligned(pairs: Sequence[Sequence[Pair]]) -> tuple[Tensor, Tensor]:
    """A and B of n x n pairs as [n, n, modules, r, r] in float64, zeros where a pair lacks a module or a rank."""
    flat = [pair for row in pairs for pair in row]
    if len({(pair.modules, pair.A.shape) for pair in flat}) > 1:
        modules = tuple({module: None for pair in flat for module in pair.modules})
        rank = max(max(pair.A.shape[1:]) for pair in flat)
        flat = [_fitted(pair, modules, rank) for pair in flat]
    A, B = (torch.stack(side).double() for side in ([pair.A for pair in flat], [pair.B for pair in flat]))
    return A.view(len(pairs), -1, *A.shape[1:]), B.view(len(pairs), -1, *B.shape[1:])


def _fitted(pair: Pair, modules: tuple[str, ...], rank: int) -> Pair:
    at = [modules.index(module) for module in pair.modules]
    sides = pair.A.new_zeros(2, len(modules), rank, rank)
    for fitted, side in zip(sides, (pair.A, pair.B), strict=True):
        fitted[at, : side.shape[1], : side.shape[2]] = side
    return Pair(modules, sides[0], sides[1], pair.inner)


def _mark(adapter: PackedAdapter) -> float:
    """The inner product of its change with a random one, the same for all adapters.

    So marks add up as changes do, and that of a change that isn't zero isn't either: chance doesn't hit upon it.
    """
    mark = 0.0
    for (d_out, d_in), (modules, A, B) in adapter.blocks.items():
        left, right = _drawn("left", modules, d_out).to(A.device), _drawn("right", modules, d_in).to(A.device)
        # Of rank 1 a module, as left and right. Not as matrix products, which take twice as long for such narrow ones.
        mark += float(((A * right[:, None]).sum(2) * (B.mT * left[:, None]).sum(2)).sum(dtype=torch.double))
    return mark


@lru_cache(maxsize=64)
def _drawn(side: str, modules: tuple[str, ...], size: int) -> Tensor:
    """Random numbers [modules, size], each module's its own."""
    return torch.stack([torch.randn(size, generator=seeded_generator(side, size, "", each)) for each in modules])
