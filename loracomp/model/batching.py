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


def batches(items: Sequence[S], token_budget: int, pass_tokens: int) -> list[list[S]]:
    """Items sorted by width, cut where all batches together cost least; none is left out.

    A batch costs its rows times its widest row, and `pass_tokens` more, the tokens that a forward pass takes as long
    for as for its beginning and end. It takes at most `token_budget` tokens, or a single item.
    """
    ordered = sorted(items, key=lambda item: item.width)
    costs, starts = [0], [0]
    for end in range(1, len(ordered) + 1):
        cost, start = min(_last_batches(ordered[:end], costs, token_budget))
        costs.append(cost + pass_tokens)
        starts.append(start)
    found: list[list[S]] = []
    end = len(ordered)
    while end:
        found.insert(0, ordered[starts[end] : end])
        end = starts[end]
    return found


def _last_batches(ordered: Sequence[Sized], costs: Sequence[int], token_budget: int) -> Iterator[tuple[int, int]]:
    """Each batch that may end a sequence: what it costs with the cheapest batches before it, and where it starts."""
    rows, last = 0, len(ordered) - 1
    for start in range(last, -1, -1):
        rows += ordered[start].rows
        tokens = rows * ordered[last].width
        if start < last and tokens > token_budget:
            return
        yield costs[start] + tokens, start


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
