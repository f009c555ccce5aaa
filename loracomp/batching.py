"""How many requests go through the model at once: as many as a token budget holds, fewer where memory runs out."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

import torch

from loracomp.errors import JobError


class Sized(Protocol):
    """Something that takes `rows` rows of at most `width` tokens."""

    @property
    def rows(self) -> int:
        """Rows of a batch that it takes."""

    @property
    def width(self) -> int:
        """Tokens of its longest row."""


S = TypeVar("S", bound=Sized)
T = TypeVar("T")
R = TypeVar("R")


def batches(items: Sequence[S], token_budget: int, padding: int | None = None) -> Iterator[list[S]]:
    """Items sorted by width, in batches; none is left out.

    A batch is cut where its rows times its widest row would pass the budget, or, with `padding`, where it would hold
    more tokens of padding than that.
    """
    batch: list[S] = []
    rows = tokens = 0
    for item in sorted(items, key=lambda item: item.width):
        padded = (rows + item.rows) * item.width
        too_wide = padding is not None and padded - item.rows * item.width - tokens > padding
        if batch and (padded > token_budget or too_wide):
            yield batch
            batch, rows, tokens = [], 0, 0
        batch.append(item)
        rows += item.rows
        tokens += item.rows * item.width
    if batch:
        yield batch


def halving_on_out_of_memory(
    run: Callable[[Sequence[T]], list[R | JobError]], items: Sequence[T]
) -> list[R | JobError]:
    """`run(items)`; where memory runs out in halves, and those in halves, in order.

    An item too large alone becomes JobError "out_of_memory", worth a retry: elsewhere or later there may be room.
    """
    try:
        return run(items)
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
    # Outside the handler, where the error's traceback no longer holds the tensors of the failed try.
    torch.cuda.empty_cache()
    if len(items) == 1:
        too_much = "the prompt and its answer alone take more memory than the worker has: shorten them, or give it more"
        return [JobError(too_much, code="out_of_memory", retry=True)]
    half = len(items) // 2
    return halving_on_out_of_memory(run, items[:half]) + halving_on_out_of_memory(run, items[half:])


def _is_out_of_memory(error: Exception) -> bool:
    """On the CPU torch raises a bare RuntimeError, which only its words tell apart."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
