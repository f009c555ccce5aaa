"""Tries out which modules of a base model adapters can change, before it is registered."""

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
from torch import Tensor, nn

from loracomp.composition.blocks import Factors
from loracomp.composition.layers import AdapterStack
from loracomp.composition.strategies import LoraFactors, Mix, gated
from loracomp.errors import RefusedError
from loracomp.model.generation import Ready
from loracomp.model.loading import BaseModel
from loracomp.model.trial import PROMPTS, Way, check_scores, check_texts, in_float32


def try_adapters(base: BaseModel) -> dict[str, tuple[int, int]]:
    """The base model's modules that adapters change in a worker's passes exactly as in plain passes.

    All are tried at once, by adapters of random numbers. If that fails, modules of the same kind, which only differ in
    the number of their layer, are tried together. Raises RefusedError if no module can be adapted.
    """
    if _fits(base, list(base.modules)):
        return base.modules
    # Try again in float32, because in 16 bits rounding may have caused the failure.
    with in_float32(base):
        return _that_fit(base)


def _that_fit(base: BaseModel) -> dict[str, tuple[int, int]]:
    if _fits(base, list(base.modules)):
        return base.modules
    kinds: dict[str, list[str]] = {}
    for module in base.modules:
        kinds.setdefault(re.sub(r"\d+", "#", module), []).append(module)
    fit = {module for modules in kinds.values() if _fits(base, modules) for module in modules}
    if not fit:
        raise RefusedError(
            f"model source {base.source!r} ({base.architecture}): adapters can change none of its modules as PEFT would"
        )
    return {module: shape for module, shape in base.modules.items() if module in fit}


def _fits(base: BaseModel, modules: Sequence[str]) -> bool:
    """Whether each row of a batch is changed by its own adapter of these modules, and by that alone."""
    first, second = (_random_adapter(base, modules, number) for number in (0, 1))
    adapters = (first, second, None)
    assert len(adapters) == len(PROMPTS)
    mixes = [gated("cat", [each.packed()], [1.0]) if each else Mix() for each in adapters]
    stack = AdapterStack(base.model, mixes)

    def serving(rows: Sequence[int], tokens: int) -> Ready:
        return stack.ready([mixes[row] for row in rows], tokens)

    way = Way(serving, lambda row: _plainly(base.model, adapters[row]), rounding=5)
    with suppress(Exception):  # a hook that meets an input of another shape may raise anything
        check_scores(base, way)
        check_texts(base, way)
        return True
    return False


def _random_adapter(base: BaseModel, modules: Sequence[str], number: int) -> LoraFactors:
    """An adapter of rank 1, whose changes are about as large as what the modules give."""
    generator = torch.Generator().manual_seed(number)
    factors = {}
    for module in modules:
        d_out, d_in = base.modules[module]
        size = 0.5 / min(d_out, d_in) ** 0.5
        A, B = torch.randn(1, d_in, generator=generator), torch.randn(d_out, 1, generator=generator)
        factors[module] = Factors(A, B * size)
    return LoraFactors(number, f"{number:064x}", 1.0, factors)


@contextmanager
def _plainly(model: nn.Module, adapter: LoraFactors | None) -> Iterator[None]:
    """Within this context, the model is changed by one adapter, in the way in which PEFT does it."""
    handles = []
    try:
        for name, factors in adapter.factors.items() if adapter else ():
            module = model.get_submodule(name)
            handles.append(module.register_forward_hook(_adding(factors)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _adding(factors: Factors) -> Callable[[nn.Module, tuple[Tensor], Tensor], Tensor]:
    def add(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        x = args[0]
        if isinstance(module, nn.Embedding):
            return output + _embedded(module, x, factors)
        A, B = (side.to(x) for side in factors)
        return output + (x @ A.mT) @ B.mT

    return add


def _embedded(module: nn.Embedding, ids: Tensor, factors: Factors) -> Tensor:
    """The output of the embedding, including its scale if it has one, with B @ A in the place of its weight."""
    used, numbers = torch.unique(ids, return_inverse=True)
    A, B = (side.to(module.weight) for side in factors)
    other = copy.copy(module)
    other.__dict__["_parameters"] = {"weight": nn.Parameter((B @ A[:, used]).mT, requires_grad=False)}
    other.padding_idx = None
    changed: Tensor = other.forward(numbers)
    return changed
