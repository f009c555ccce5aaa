"""Applies mixes inside a forward pass: each row of a batch runs through the same base model, changed by its own mix.

To the output of a module, each row adds sum_i g_i B_i A_i x over the adapters of its mix, whose gates are g_i. Mixes
that sum factors were merged into one adapter before (`Mix.applied`). The factors of all adapters of the batch are
stacked, and are multiplied in one of two groupings. *Shared*: all rows go through the factors of all adapters, and the
gates of adapters that a row doesn't use are 0; the cost grows with the number of adapters. *Own*: each row goes through
a copy of its own adapters' factors; the cost grows with the number of adapters of a row. `composed` chooses the cheaper
one. The base model's weights are never changed.

An embedding's input x is one-hot, so A x is a column of A, which is looked up. Embeddings are always computed shared.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property, partial
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from loracomp.composition.blocks import Block, Blocks, stack
from loracomp.composition.strategies import Mix, PackedAdapter
from loracomp.model.cpu import GATHERED
from loracomp.model.head import head_positions


class AdapterStack:
    """The adapters of several mixes, stacked once, for forward passes under any of those mixes.

    A pass that uses less than half of the adapters makes a smaller stack for itself, because the cost of a pass grows
    with the modules, ranks and adapters of its stack.
    """

    def __init__(self, model: PreTrainedModel, mixes: Iterable[Mix]) -> None:
        self._model = model
        self._mixes = list(mixes)

    # The first pass makes these, so that memory that runs out is the pass's error.

    @cached_property
    def adapters(self) -> list[PackedAdapter]:
        """The adapters, sorted by key, so that rounding does not depend on the order of the mixes."""
        return sorted({each for mix in self._mixes for each in mix.applied.adapters}, key=lambda adapter: adapter.key)

    @cached_property
    def blocks(self) -> Blocks:
        """A copy of all adapters' factors in the modules' dtype, padded to the same modules and rank."""
        stacked = stack([adapter.blocks for adapter in self.adapters])
        return {shape: block.to(self._dtype(block.modules)) for shape, block in stacked.items()}

    def _dtype(self, modules: Sequence[str]) -> torch.dtype:
        """The dtype in which the modules compute. Quantised weights are integers, so the model's dtype is used."""
        weight: Tensor = self._model.get_submodule(modules[0]).weight
        return weight.dtype if weight.dtype.is_floating_point else self._model.dtype

    def covers(self, mixes: Iterable[Mix]) -> bool:
        """Whether this stack has all adapters of these mixes."""
        known = set(self.adapters)
        return all(known.issuperset(mix.applied.adapters) for mix in mixes)

    def ready(
        self, rows: Sequence[Mix], tokens: int = 64, *, shared: bool | None = None
    ) -> Callable[[], AbstractContextManager[None]]:
        """Make what `composed` needs; returns a function that makes the context for each of many passes."""
        return partial(_hooked, self._model, list(self._hooks(rows, tokens, shared)))

    def composed(
        self, rows: Sequence[Mix], tokens: int = 64, *, shared: bool | None = None
    ) -> AbstractContextManager[None]:
        """Within the context, row i of each batch that goes through the model runs under the mix rows[i].

        A row without adapters gives exactly what the base model gives. Every batch must have len(rows) rows. Products
        are computed in the dtype and on the device of the module that they change. When the context ends, also by an
        exception, the model is unchanged. `tokens` is the width of a row, averaged over the passes; it decides which
        grouping (see the module) is cheaper, unless `shared` says which.
        """
        return self.ready(rows, tokens, shared=shared)()

    def _hooks(self, rows: Sequence[Mix], tokens: int, shared: bool | None) -> Iterator[tuple[str, "_Hook"]]:
        """A forward hook for each module that any of the adapters changes."""
        used = {adapter for mix in rows for adapter in mix.applied.adapters}
        if 2 * len(used) < len(self.adapters):
            yield from AdapterStack(self._model, rows)._hooks(rows, tokens, shared)
            return
        if not used:
            return
        gates = _gates(rows, self.adapters)
        together, own = _Grouping(gates, None), _own(gates)
        if shared is None:
            shared = _shared_is_cheaper(own, adapters=len(self.adapters), tokens=tokens)
        head = self._model.get_output_embeddings()
        for block, lookup in self._parts():
            grouping = together if shared or lookup else own
            gated = _gating(grouping.gates, rank=block.A.shape[2], device=block.A.device)
            for module, A, B in zip(block.modules, block.A, block.B.mT, strict=True):
                hook = _adding(A, B, grouping, gated)
                at_head = self._model.get_submodule(module) is head
                yield module, _at_positions(hook, len(rows)) if at_head else hook

    def _parts(self) -> Iterator[tuple[Block, bool]]:
        """Each block, split into linear modules (False) and embeddings (True)."""
        for block in self.blocks.values():
            is_lookup = {name: isinstance(self._model.get_submodule(name), nn.Embedding) for name in block.modules}
            for lookup in sorted(set(is_lookup.values())):
                modules = tuple(name for name in block.modules if is_lookup[name] == lookup)
                yield block if modules == block.modules else block.of(modules), lookup


@contextmanager
def _hooked(model: PreTrainedModel, hooks: Iterable[tuple[str, "_Hook"]]) -> Iterator[None]:
    """Within the context, these forward hooks (module name, hook) are registered on the model."""
    handles = []
    try:
        for module, hook in hooks:
            handles.append(model.get_submodule(module).register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


_Hook: TypeAlias = Callable[[nn.Module, tuple[Tensor], Tensor], Tensor]


class _Grouping(NamedTuple):
    """Which of the stacked adapters the rows of a batch go through, and how much each row takes of them."""

    gates: Tensor
    """[rows, k] in float32; 0 where a row does not use an adapter."""
    picked: Tensor | None
    """For each row the numbers of its k adapters in the stack, [rows, k]. None: all rows go through all adapters."""

    def factors(self, side: Tensor) -> Tensor:
        """The factors [groups, k * r, d] of the mixes, from the factors of all adapters [n, r, d]: a group for each
        row, or one for all."""
        if self.picked is None:
            return side.flatten(0, 1)[None]
        own = side.index_select(0, self.picked.flatten().to(side.device))
        return own.view(len(self.picked), -1, side.shape[2])


def _gates(rows: Sequence[Mix], adapters: Sequence[PackedAdapter]) -> Tensor:
    """How much each row takes of each adapter of a stack: [rows, adapters] in float32, 0 where it doesn't use it."""
    number = {adapter: n for n, adapter in enumerate(adapters)}
    gates = torch.zeros(len(rows), len(adapters))
    for row, mix in enumerate(rows):
        for adapter, gate in zip(mix.applied.adapters, mix.applied.gates, strict=True):
            gates[row, number[adapter]] = gate
    return gates


def _own(gates: Tensor) -> _Grouping:
    """Each row with its own adapters. Rows with fewer than others are filled with adapters whose gate is 0."""
    used = gates != 0
    most = max(int(used.sum(1).max()), 1)
    picked = used.int().sort(dim=1, descending=True, stable=True).indices[:, :most]
    return _Grouping(gates.gather(1, picked), picked)


def _shared_is_cheaper(own: _Grouping, *, adapters: int, tokens: int) -> bool:
    """Whether rows of this many tokens cost fewer operations through all adapters than each through its own."""
    return adapters * tokens < own.gates.shape[1] * (tokens + GATHERED)


_Gating: TypeAlias = Callable[[Tensor], Tensor]
"""Multiplies the A_i x of each row by its gates: [rows, tokens, k * r]."""


def _gating(gates: Tensor, rank: int, device: torch.device) -> _Gating:
    """Gating by gates [rows, k].

    Where the gate is 0 the result is 0, also if A x is infinite. An adapter that overflows in float16 would otherwise
    spoil the rows that don't use it, because 0 times infinity is NaN.
    """
    by_element = gates.repeat_interleave(rank, dim=1)[:, None].to(device)
    unused = by_element == 0

    def gated(h: Tensor) -> Tensor:
        h = h.view(len(by_element), -1, by_element.shape[2]).mul_(by_element.to(h.device))
        return h.masked_fill_(unused.to(h.device), 0) if h.dtype == torch.float16 else h

    return gated


def _adding(A: Tensor, B: Tensor, grouping: _Grouping, gated: _Gating) -> _Hook:
    """A hook that adds sum_i g_i B_i A_i x to a module's output, for a stack's A [n, r, d_in] and B [n, r, d_out].

    x is [rows, tokens, d_in], or token ids [rows, tokens] for an embedding.
    """
    rows = len(grouping.gates)

    def add(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        own_A = grouping.factors(A).to(args[0].device)
        if isinstance(module, nn.Embedding):
            h = _by_row(_columns(own_A[0], args[0], module), rows)
        else:
            x = _by_row(args[0], rows)
            h = torch.bmm(x.reshape(len(own_A), -1, x.shape[2]), own_A.mT)
        own_B = grouping.factors(B).to(h.device)
        changes = gated(h).view(len(own_B), -1, own_B.shape[1])
        output.view(*changes.shape[:2], -1).baddbmm_(changes, own_B)
        return output

    return add


def _columns(A: Tensor, ids: Tensor, module: nn.Module) -> Tensor:
    """A's column for each token id, [rows, tokens, n * r]; scaled if the embedding scales its output (Gemma, XGLM)."""
    columns = A[:, ids].movedim(0, -1).contiguous()
    scale: Tensor | float | None = getattr(module, "embed_scale", None)
    return columns if scale is None else columns * torch.as_tensor(scale).to(columns)


def _at_positions(hook: _Hook, rows: int) -> _Hook:
    """Adapt a hook to an output head, whose input may be only some positions of all rows: [1, positions, d_in]."""

    def add(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        positions = head_positions()
        if positions is None:
            return hook(module, args, output)
        # Regroup the positions by row, padded.
        x, at = args[0][0], (positions.row.to(output.device), positions.number.to(output.device))
        by_row = x.new_zeros(rows, positions.most, x.shape[1])
        by_row[at] = x
        change = hook(module, (by_row,), by_row.new_zeros(*by_row.shape[:2], output.shape[2]))
        return output.add_(change[at])

    return add


def _by_row(x: Tensor, rows: int) -> Tensor:
    """x as [rows, tokens, d]; some models pass [rows * tokens, d] (OPT) or [rows, 1, tokens, d] (DeepSeek-V3)."""
    if x.dim() == 2 and len(x) % rows == 0:
        return x.view(rows, -1, x.shape[1])
    if x.dim() > 3 and len(x) == rows:
        return x.flatten(1, -2)
    if x.shape[:-2] != (rows,):
        raise ValueError(f"a batch of shape {list(x.shape)} under compositions of {rows} rows")
    return x
