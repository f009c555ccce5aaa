"""Compositions inside a forward pass: every row of a batch runs the one base model under factors of its own.

A row's module computes W x + B (A x): with the rows' factors stacked, two batched matrix products for a whole batch
(PEFT's LoraLayer.forward, row by row). The base model's weights are never touched.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby

from torch import Tensor, nn

from loracomp.composition.strategies import ModuleFactors


@contextmanager
def composed(model: nn.Module, rows: Sequence[ModuleFactors]) -> Iterator[None]:
    """Within the context, row i of each batch that goes through `model` runs under the factors rows[i].

    A row without factors (an empty mapping) is the base model's, exactly. Batches must be of len(rows) rows. Factors
    take the dtype and device of the module that they change. The model is as it was when the context ends, whatever
    ends it.
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
    """A hook that adds B (A x) to a module's output: x [rows, tokens, d_in], A [rows, r, d_in], B [rows, d_out, r]."""

    def add(_: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        (x,) = args
        if x.shape[:-2] != A.shape[:1]:
            raise ValueError(f"a batch of shape {list(x.shape)} under compositions of {len(A)} rows")
        return output.baddbmm_(x @ A.mT, B.mT)

    return add


def _stack(layer: nn.Module, module: str, rows: Sequence[ModuleFactors]) -> tuple[Tensor, Tensor]:
    """A [rows, r, d_in] and B [rows, d_out, r] of one module, zeros up to the largest rank and where a row has none."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    d_out, d_in = weight.shape
    rank = max(len(row[module].A) for row in rows if module in row)
    A, B = weight.new_zeros(len(rows), rank, d_in), weight.new_zeros(len(rows), d_out, rank)
    for run, row in _runs(rows):
        if module in row:
            own = len(row[module].A)
            A[run, :own], B[run, :, :own] = row[module]
    return A, B


def _runs(rows: Sequence[ModuleFactors]) -> Iterator[tuple[slice, ModuleFactors]]:
    """Neighbouring rows under one and the same mapping (a job's choices) as a slice."""
    start = 0
    for _, group in groupby(rows, key=id):
        same = list(group)
        yield slice(start, start + len(same)), same[0]
        start += len(same)
