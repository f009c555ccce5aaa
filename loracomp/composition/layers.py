"""Applies mixes inside a forward pass: each row of a batch runs through the same base model, changed by its own mix.

Adapter i of the batch gives h_i = A_i x. For each row, sum_i right_i B_i left_i h_i is added to its module's output
(cat), or sum_j right_j B_j (sum_i left_i h_i) (every other strategy). This is computed in one of two ways. *Shared*:
all rows go through the factors of all adapters, and each row's gates are applied between A and B; the cost grows with
the number of adapters. *Own*: each row gets its own factors, gathered (cat) or summed (others), and the products are
batched; the cost grows with the number of adapters per row. Own factors are made one module at a time, so that they
stay in the processor's cache. `composed` chooses the cheaper way. The base model's weights are never changed.

An embedding's input x is one-hot, so A x is a column of A, which is looked up. Embeddings are always computed shared.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property, partial
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from loracomp.composition.blocks import Block, Blocks, stack
from loracomp.composition.strategies import Mix, PackedAdapter
from loracomp.model.cpu import GATHERED, SUMMED
from loracomp.model.scoring import places_at_head


class AdapterStack:
    """The adapters of several mixes, stacked once, for forward passes under any of those mixes.

    A pass that uses less than half of the adapters makes a smaller stack for itself, because the cost of a pass grows
    with the modules, ranks and adapters of its stack.
    """

    def __init__(self, model: PreTrainedModel, mixes: Iterable[Mix]) -> None:
        self._model = model
        self._given = list(mixes)

    # The first pass makes these, so that memory that runs out is the pass's error.

    @cached_property
    def _mixes(self) -> list[Mix]:
        return [mix.applied for mix in self._given]

    @cached_property
    def adapters(self) -> list[PackedAdapter]:
        """The adapters, sorted by key, so that rounding does not depend on the order of the mixes."""
        return sorted({each for mix in self._mixes for each in mix.adapters}, key=lambda adapter: adapter.key)

    @cached_property
    def blocks(self) -> Blocks:
        """A copy of all adapters' factors, padded to the same modules and rank.

        It has the dtype of the base model's modules, or the adapters' dtype if a mix sums factors.
        """
        blocks = stack([adapter.blocks for adapter in self.adapters])
        if any(mix.summed_factors for mix in self._mixes):
            return blocks
        dtypes = {shape: self._dtype(block.modules) for shape, block in blocks.items()}
        return {shape: Block(of, A.to(dtypes[shape]), B.to(dtypes[shape])) for shape, (of, A, B) in blocks.items()}

    def _dtype(self, modules: Sequence[str]) -> torch.dtype:
        """The dtype in which the modules compute. Quantised weights are integers, so the model's dtype is used."""
        weight: Tensor = self._model.get_submodule(modules[0]).weight
        return weight.dtype if weight.dtype.is_floating_point else self._model.dtype

    def covers(self, mixes: Iterable[Mix]) -> bool:
        """Whether this stack gives the same results under these mixes as a stack that is made for them."""
        known, is_for_sums = set(self.adapters), any(mix.summed_factors for mix in self._mixes)
        applied = (mix.applied for mix in mixes)
        return all(known.issuperset(mix.adapters) and mix.summed_factors <= is_for_sums for mix in applied)

    def ready(
        self, rows: Sequence[Mix], tokens: int = 64, *, shared: bool | None = None
    ) -> Callable[[], AbstractContextManager[None]]:
        """Prepare what `composed` does; returns a function that makes the context for each of many passes."""
        return partial(_hooked, self._model, list(self._hooks(rows, tokens, shared)))

    def composed(
        self, rows: Sequence[Mix], tokens: int = 64, *, shared: bool | None = None
    ) -> AbstractContextManager[None]:
        """Within the context, row i of each batch that goes through the model runs under the mix rows[i].

        A row without adapters gives exactly what the base model gives. Every batch must have len(rows) rows. Products
        are computed in the dtype and on the device of the module that they change; sums of factors and gates in
        float32. When the context ends, also by an exception, the model is unchanged. `tokens` is the width of a row,
        averaged over the passes; it decides which of the two ways (see the module) is cheaper, unless `shared` says
        which.
        """
        return self.ready(rows, tokens, shared=shared)()

    def _hooks(self, rows: Sequence[Mix], tokens: int, shared: bool | None) -> Iterator[tuple[str, "_Hook"]]:
        """A forward hook for each module that any of the adapters changes."""
        rows = [mix.applied for mix in rows]
        used = {adapter for mix in rows for adapter in mix.adapters}
        if 2 * len(used) < len(self.adapters):
            yield from AdapterStack(self._model, rows)._hooks(rows, tokens, shared)
            return
        if not used:
            return
        batch = _Batch(rows, self.adapters)
        if shared is None:
            shared = batch.shared_is_cheaper(tokens)
        head = self._model.get_output_embeddings()
        for block, lookup in self._parts():
            adding = batch.shared if shared or lookup else batch.own
            hooks = adding(block.A, block.B.mT, self._dtype(block.modules))
            for module, hook in zip(block.modules, hooks, strict=True):
                at_head = self._model.get_submodule(module) is head
                yield module, _at_places(hook, len(rows)) if at_head else hook

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
_Gating: TypeAlias = Callable[[Tensor], Tensor]
"""Applies gates: maps the outputs A_i x of all n adapters [rows, tokens, n * r] to the inputs of all B_i."""


class _Batch:
    """The gates of each row of a batch for the adapters of a stack."""

    def __init__(self, rows: Sequence[Mix], adapters: Sequence[PackedAdapter]) -> None:
        numbers = {adapter: number for number, adapter in enumerate(adapters)}
        left, right = ([[0.0] * len(numbers) for _ in rows] for _ in ("left", "right"))
        for mix, row_left, row_right in zip(rows, left, right, strict=True):
            for adapter, *gates in zip(mix.adapters, mix.left, mix.right, strict=True):
                row_left[numbers[adapter]], row_right[numbers[adapter]] = gates
        self._left, self._right = torch.tensor(left), torch.tensor(right)
        """Gates [rows, adapters] in float32; 0 where a row doesn't use an adapter."""
        self._summed = torch.tensor([mix.summed_factors for mix in rows])
        self._picked = self._numbers_of_rows()

    def _numbers_of_rows(self) -> Tensor:
        """For each row the positions of its adapters in the stack, [rows, n]; n is the most that any row has (or 1).

        Rows with fewer adapters, and rows that sum factors, are padded with positions of adapters whose gate is 0.
        """
        used = (self._right != 0) & ~self._summed[:, None]
        most = max(int(used.sum(1).max()), 1)
        return used.int().sort(dim=1, descending=True, stable=True).indices[:, :most]

    def shared_is_cheaper(self, tokens: int) -> bool:
        """Whether shared factors cost fewer operations than own factors, for rows of this many tokens."""
        own = self._picked.shape[1] * (tokens + (SUMMED if self._summed.any() else GATHERED))
        return self._left.shape[1] * tokens < own

    def own(self, A: Tensor, B: Tensor, dtype: torch.dtype) -> Iterator[_Hook]:
        gates = (self._left * self._right).gather(1, self._picked)
        gates[self._summed] = 0
        gates[self._summed, 0] = 1
        own_A, own_B = (self._factors(gates_, A.device, dtype) for gates_ in (self._left, self._right))
        gating = None if self._summed.all() else _multiplying(gates, A.shape[2], A.device)
        for module_A, module_B in zip(A, B, strict=True):
            yield _adding_own(partial(own_A, module_A), partial(own_B, module_B), gating)

    def _factors(self, gates: Tensor, device: torch.device, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        """A function that makes each row's own A or B, [rows, rank, d], from a module's stacked one."""
        rows, picked = len(self._picked), self._picked.flatten().to(device)
        # Numbers of rows, because a device that indexes by booleans must be asked how many are true.
        summed_rows, summing = self._summed.nonzero()[:, 0].to(device), gates[self._summed].to(device)

        def gathered(side: Tensor) -> Tensor:
            return side.index_select(0, picked).to(dtype).view(rows, -1, side.shape[2])

        def summed(side: Tensor) -> Tensor:
            return (summing @ side.flatten(1).float()).view(-1, *side.shape[1:]).to(dtype)

        def either(side: Tensor) -> Tensor:
            own = gathered(side)
            own[summed_rows, : side.shape[1]] = summed(side)
            return own

        if self._summed.all():
            return summed
        return either if self._summed.any() else gathered

    def shared(self, A: Tensor, B: Tensor, dtype: torch.dtype) -> Iterator[_Hook]:
        gating = self._summing if self._summed.any() else self._each
        gated = gating(A.shape[1], A.shape[2], A.device)
        for all_A, all_B in zip(A.to(dtype).flatten(1, 2), B.to(dtype).flatten(1, 2), strict=True):
            yield _adding_shared(all_A, all_B, gated, rows=len(self._left))

    def _each(self, _: int, rank: int, device: torch.device) -> _Gating:
        """Gating for a batch in which no row sums factors: each adapter's A x is multiplied by one number."""
        return _multiplying(self._left * self._right, rank, device)

    def _summing(self, adapters: int, rank: int, device: torch.device) -> _Gating:
        left, right = (side[:, None, :, None].to(device) for side in (self._left, self._right))
        summed = self._summed[:, None, None, None].to(device)

        def gated(h: Tensor) -> Tensor:
            each: Tensor = h.view(*h.shape[:2], adapters, rank) * left.to(h.device)
            if h.dtype == torch.float16:  # as in `_multiplying`
                each = each.masked_fill_(left.to(h.device) == 0, 0)
            each = torch.where(summed.to(h.device), each.sum(2, keepdim=True), each)
            return (each * right.to(h.device)).flatten(2).to(h.dtype)

        return gated


def _multiplying(gates: Tensor, rank: int, device: torch.device) -> _Gating:
    """Gating that multiplies each adapter's A x by one number; `gates` [rows, n].

    Where the gate is 0 the result is 0, also if A x is infinite. An adapter that overflows in float16 would otherwise
    spoil the rows that don't use it, because 0 times infinity is NaN.
    """
    by_element = gates.repeat_interleave(rank, dim=1)[:, None].to(device)
    unused = by_element == 0

    def multiplied(h: Tensor) -> Tensor:
        h.mul_(by_element.to(h.device))
        return h.masked_fill_(unused.to(h.device), 0) if h.dtype == torch.float16 else h

    return multiplied


def _adding_own(own_A: Callable[[], Tensor], own_B: Callable[[], Tensor], gated: _Gating | None) -> _Hook:
    """A hook that adds B gated(A x) to a module's output, with a separate A and B for each row.

    x [rows, tokens, d_in], A [rows, rank, d_in], B [rows, rank, d_out].
    """

    def add(_: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        A = own_A()
        x = _by_row(args[0], len(A))
        h = torch.bmm(x, A.to(x.device).mT)
        if gated is not None:
            h = gated(h)
        output.view(*h.shape[:2], -1).baddbmm_(h, own_B().to(x.device))
        return output

    return add


def _adding_shared(A: Tensor, B: Tensor, gated: _Gating, rows: int) -> _Hook:
    """A hook that adds B gated(A x) to a module's output, with the stacked A and B of n adapters for all rows.

    x [rows, tokens, d_in], or token ids [rows, tokens] for an embedding; A [n * r, d_in], B [n * r, d_out].
    """

    def add(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        x = args[0]
        if isinstance(module, nn.Embedding):
            h = gated(_by_row(_columns(A.to(x.device), x, module), rows))
        else:
            h = gated(linear(_by_row(x, rows), A.to(x.device)))
        output.view(-1, output.shape[-1]).addmm_(h.view(-1, h.shape[-1]), B.to(x.device))
        return output

    return add


def _columns(A: Tensor, ids: Tensor, module: nn.Module) -> Tensor:
    """A's column for each token id, [rows, tokens, n * r]; scaled if the embedding scales its output (Gemma, XGLM)."""
    columns = A[:, ids].movedim(0, -1).contiguous()
    scale: Tensor | float | None = getattr(module, "embed_scale", None)
    return columns if scale is None else columns * torch.as_tensor(scale).to(columns)


def _at_places(hook: _Hook, rows: int) -> _Hook:
    """Adapt a hook to an output head, whose input may be only the scored positions of all rows: [1, places, d_in]."""

    def add(module: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        places = places_at_head()
        if places is None:
            return hook(module, args, output)
        # Regroup the places by row, padded.
        x, at = args[0][0], (places.row.to(output.device), places.number.to(output.device))
        by_row = x.new_zeros(rows, places.most, x.shape[1])
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
