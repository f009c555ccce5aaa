"""How far a merge is from the exact weighted sum, from small Gram matrices: no change of a weight is ever built."""

import math

from loracomp.composition.strategies import Factors, ModuleFactors


def inner_product(left: ModuleFactors, right: ModuleFactors) -> float:
    """Frobenius inner product of two changes, over all modules: <B A, D C> = sum of (B^T D) * (A C^T), [r, r'] each."""
    return math.fsum(_inner(left[module], right[module]) for module in left.keys() & right.keys())


def _inner(left: Factors, right: Factors) -> float:
    (A, B), (C, D) = ((f.A.double(), f.B.double()) for f in (left, right))
    return float(((B.T @ D) * (A @ C.T)).sum())


def scaled_to(composed: ModuleFactors, exact: ModuleFactors) -> dict[str, Factors]:
    """The composed change, scaled to the exact one's norm over all modules; as it is where either is zero."""
    measured = fidelity(composed, exact)
    scale = 1 / measured[0] if measured else 1.0
    return {module: Factors(A, B * scale) for module, (A, B) in composed.items()}


def fidelity(composed: ModuleFactors, exact: ModuleFactors) -> tuple[float, float] | None:
    """Norm ratio |composed| / |exact| and cosine between the two changes, all modules taken as one vector.

    `exact` is the weighted sum, as cat composes it. None where either change is zero.
    """
    composed_norm = math.sqrt(max(inner_product(composed, composed), 0.0))
    exact_norm = math.sqrt(max(inner_product(exact, exact), 0.0))
    if composed_norm == 0 or exact_norm == 0:
        return None
    return composed_norm / exact_norm, inner_product(composed, exact) / (composed_norm * exact_norm)
