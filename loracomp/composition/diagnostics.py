"""How far a mix is from the exact weighted sum, from small Gram matrices: no change of a weight is ever built."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from loracomp.composition.resident import ByteLimitedCache
from loracomp.composition.strategies import Mix, PackedAdapter


class Gram(NamedTuple):
    """Of two adapters' modules of one shape: A_i A_j^T and B_i^T B_j, [modules, r_i, r_j] each, in float32."""

    modules: tuple[str, ...]
    A: Tensor
    B: Tensor


class Pair(NamedTuple):
    """Of two adapters: the inner product of their changes B @ A, and what it takes to mix them crosswise."""

    inner: float
    grams: dict[tuple[int, int], Gram]
    """By shape of modules; shapes that one of the two lacks are missing."""

    @property
    def nbytes(self) -> int:
        """Bytes of the matrices."""
        return sum(gram.A.nbytes + gram.B.nbytes for gram in self.grams.values())

    def turned(self) -> "Pair":
        """The same of the two in the other order."""
        return Pair(self.inner, {shape: Gram(at, A.mT, B.mT) for shape, (at, A, B) in self.grams.items()})


class Fidelity:
    """Measures mixes; the Gram matrices of two adapters are kept, so that another mix of them costs next to nothing."""

    def __init__(self, cache_bytes: int) -> None:
        self._kept: ByteLimitedCache[tuple[object, object], Pair] = ByteLimitedCache(cache_bytes)

    def measure(self, mix: Mix, exact: Mix) -> tuple[float, float] | None:
        """Norm ratio |mix| / |exact| and cosine between the two changes, all modules taken as one vector.

        `exact` is the weighted sum, as cat gates it, and may be the mix itself. None where either change is zero.
        """
        if mix is exact:
            return (1.0, 1.0) if self.inner(mix, mix) > 0 else None
        mixed, norm = (math.sqrt(max(self.inner(each, each), 0.0)) for each in (mix, exact))
        if mixed == 0 or norm == 0:
            return None
        return mixed / norm, self.inner(mix, exact) / (mixed * norm)

    def inner(self, one: Mix, other: Mix) -> float:
        """Frobenius inner product of two changes, over all modules.

        <b_j B_j a_i A_i, d_l B_l c_k A_k> = sum over [r, r] of (b_j d_l B_j^T B_l) * (a_i c_k A_i A_k^T). A crossed mix
        has every j with every i: both matrices are summed over its adapters first. Any other has j = i alone.
        """
        pairs = [[self._pair(a, b) for b in other.adapters] for a in one.adapters]
        if not (one.crossed or other.crossed):
            ours, theirs = ([a * b for a, b in zip(mix.left, mix.right, strict=True)] for mix in (one, other))
            return math.fsum(
                u * v * pair.inner
                for u, row in zip(ours, pairs, strict=True)
                for v, pair in zip(theirs, row, strict=True)
            )
        shapes = {shape for row in pairs for pair in row for shape in pair.grams}
        return math.fsum(self._crossed(shape, pairs, one, other) for shape in shapes)

    def _crossed(self, shape: tuple[int, int], pairs: Sequence[Sequence[Pair]], one: Mix, other: Mix) -> float:
        grams = [pair.grams.get(shape) for row in pairs for pair in row]
        sums = []
        for side, ours, theirs in (("A", one.left, other.left), ("B", one.right, other.right)):
            gates = torch.outer(torch.tensor(ours, dtype=torch.double), torch.tensor(theirs, dtype=torch.double))
            gram = _aligned(grams, side)
            gram = gram.view(*gates.shape, *gram.shape[1:]) * gates.to(gram.device)[..., None, None, None]
            gram = gram.sum(0, keepdim=True) if one.crossed else gram
            sums.append(gram.sum(1, keepdim=True) if other.crossed else gram)
        return float((sums[0] * sums[1]).sum())

    def _pair(self, one: PackedAdapter, other: PackedAdapter) -> Pair:
        if other.key < one.key:
            return self._pair(other, one).turned()
        key = one.key, other.key
        if (kept := self._kept.get(key)) is None:
            kept = _pair(one, other)
            self._kept.put(key, kept, kept.nbytes)
        return kept


def _pair(one: PackedAdapter, other: PackedAdapter) -> Pair:
    grams = {shape: _gram(one, other, shape) for shape in one.blocks.keys() & other.blocks.keys()}
    return Pair(math.fsum(float((gram.A.double() * gram.B).sum()) for gram in grams.values()), grams)


def _gram(one: PackedAdapter, other: PackedAdapter, shape: tuple[int, int]) -> Gram:
    left, right = one.blocks[shape], other.blocks[shape]
    if left.modules != right.modules:
        common = tuple(module for module in left.modules if module in right.modules)
        left, right = (block.of(common) for block in (left, right))
    A = left.A.float() @ right.A.float().mT
    return Gram(left.modules, A, left.B.float().mT @ right.B.float())


def _aligned(pairs: Sequence[Gram | None], side: str) -> Tensor:
    """One side of many pairs as [pairs, modules, r, r] in float64, zeros where a pair lacks a module or a rank."""
    present = [pair for pair in pairs if pair is not None]
    if len(present) == len(pairs) and len({(pair.modules, pair.A.shape) for pair in present}) == 1:
        return torch.stack([getattr(pair, side) for pair in present]).double()
    modules = {module: at for at, module in enumerate(sorted({module for pair in present for module in pair.modules}))}
    rank = max(max(pair.A.shape[1:]) for pair in present)
    aligned = present[0].A.new_zeros(len(pairs), len(modules), rank, rank, dtype=torch.double)
    for number, pair in enumerate(pairs):
        if pair is not None:
            gram: Tensor = getattr(pair, side)
            at = [modules[module] for module in pair.modules]
            aligned[number, at, : gram.shape[1], : gram.shape[2]] = gram.double()
    return aligned
