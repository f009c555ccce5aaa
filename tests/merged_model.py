"""Merges a mix into a model's own weights, as PEFT does: what an answer under a mix is compared with."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn
from transformers import Conv1D

from loracomp.composition.blocks import Factors


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
