"""Compositions inside a forward pass: every row of a batch runs the one base model under factors of its own.

A row's module computes W x + B (A x): with the rows' factors stacked, two batched matrix products for a whole batch
(PEFT's LoraLayer.forward, row by row). The base model's weights are never touched.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from loracomp.composition.strategies import Factors, ModuleFactors


@contextmanager
def composed(model: nn.Module, rows: Sequence[ModuleFactors]) -> Iterator[None]:
    """Within the context, row i of each batch that goes through `model` runs under the factors rows[i].

    A row without factors (an empty mapping) is the base model's, exactly. Batches must be of len(rows) rows. Factors
    take the dtype and device of the module that they change. Rows under one composition should share one mapping: its
    factors are then copied once. The model is as it was when the context ends, whatever ends it.
    """
    handles = []
    try:
        for module in sorted({module for row in rows for module in row}):
            layer = model.get_submodule(module)
            handles.append(layer.register_forward_hook(_adding(*_stack(layer, module, rows))))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _adding(A: Tensor, B: Tensor) -> Callable[[nn.Module, tuple[Tensor], Tensor], Tensor]:
    """A hook that adds (x A) B to a module's output: x [rows, tokens, d_in], A [rows, d_in, r], B [rows, r, d_out]."""

    def add(_: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        (x,) = args
        if x.shape[:-2] != A.shape[:1]:
            raise ValueError(f"a batch of shape {list(x.shape)} under compositions of {len(A)} rows")
        return torch.baddbmm(output, x @ A, B)

    return add


def _stack(layer: nn.Module, module: str, rows: Sequence[ModuleFactors]) -> tuple[Tensor, Tensor]:
    """A [rows, d_in, r] and B [rows, r, d_out] of one module, zeros up to the largest rank and where a row has none."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    d_out, d_in = weight.shape
    none = Factors(weight.new_zeros(0, d_in), weight.new_zeros(d_out, 0))
    distinct = list({id(row): row.get(module, none) for row in rows}.values())
    position = {id_: i for i, id_ in enumerate(dict.fromkeys(map(id, rows)))}
    index = torch.tensor([position[id(row)] for row in rows], device=weight.device)
    rank = max(len(f.A) for f in distinct)
    As = torch.stack([pad(f.A.to(weight), (0, 0, 0, rank - len(f.A))).T for f in distinct])
    Bs = torch.stack([pad(f.B.to(weight), (0, rank - len(f.A))).T for f in distinct])
    return As[index], Bs[index]
