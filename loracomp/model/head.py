"""Lets the output head compute logits only at the positions where they are needed, instead of at all of a batch."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


class HeadPositions(NamedTuple):
    """The positions that the output head computes in a pass: tensors [positions]."""

    row: Tensor
    column: Tensor
    number: Tensor
    """Its number among the positions of its row, from 0."""
    most: int
    """Number of positions of the row that has the most. It is stored, because computing it from the tensors would wait
    for the device."""


_AT_HEAD: ContextVar[HeadPositions | None] = ContextVar("head_positions", default=None)


def head_positions() -> HeadPositions | None:
    """Within `head_at`, what the output head computes; None in other passes, in which the head gets whole rows."""
    return _AT_HEAD.get()


@contextmanager
def head_at(model: PreTrainedModel, positions: Sequence[tuple[int, int]]) -> Iterator[None]:
    """Within this context, the output head computes only these (row, column): logits [1, positions, vocabulary].

    This uses a hook on the head rather than a call around the model's forward, so that PEFT, autocast and whatever the
    model does to logits (soft caps, scaling) still apply. Indexing copies the positions side by side; for a slice torch
    would copy the head's weights for each row.
    """
    head = model.get_output_embeddings()
    at = _on_device(positions, model.get_input_embeddings().weight.device)

    def gather(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0][at.row.to(args[0].device), at.column.to(args[0].device)][None], *args[1:])

    handle = head.register_forward_pre_hook(gather)
    before = _AT_HEAD.set(at)
    try:
        yield
    finally:
        _AT_HEAD.reset(before)
        handle.remove()


def _on_device(positions: Sequence[tuple[int, int]], device: torch.device) -> HeadPositions:
    """These positions on the device, in one copy."""
    of_row: Counter[int] = Counter()
    numbered = []
    for row, column in positions:
        numbered.append((row, column, of_row[row]))
        of_row[row] += 1
    row_of, column_of, number_of = torch.tensor(numbered, device=device).T
    return HeadPositions(row_of, column_of, number_of, max(of_row.values()))


@contextmanager
def sharpened(model: PreTrainedModel, position: Tensor, token: Tensor) -> Iterator[None]:
    """Within `head_at`, the output head computes the logits of `token` at its n-th position in float32.

    `position` [tokens] are these n, and `token` [tokens] are ids. In bfloat16, neighbouring numbers near 20 differ by
    0.125, so one in ten True / False questions would end in a tie.
    """

    def sharpen(head: nn.Module, args: tuple[Tensor], logits: Tensor) -> Tensor:
        if logits.dtype == torch.float32 or type(head) is not nn.Linear or head.bias is not None:
            return logits
        at, of = position.to(logits.device), token.to(logits.device)
        exact = (args[0][0, at].float() * head.weight[of].float()).sum(-1)
        return logits.float().index_put_((torch.zeros_like(at), at, of), exact)

    # It must be called before adapters' hooks, because it overwrites logits, and what they added would be lost.
    handle = model.get_output_embeddings().register_forward_hook(sharpen, prepend=True)
    try:
        yield
    finally:
        handle.remove()
