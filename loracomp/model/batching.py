"""Decides how many requests go through the model at once: as the token budget allows, or fewer if memory runs out."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

import torch

from loracomp.errors import JobError

LOGITS_BYTES = 1 << 30
"""Maximum memory for a pass's logits in float32."""


class Sized(Protocol):
    """An item that adds `rows` rows of at most `width` tokens to a batch."""

    @property
    def rows(self) -> int:
        """Number of rows that it needs in a batch."""

    @property
    def width(self) -> int:
        """Number of tokens in its longest row."""

    @property
    def positions(self) -> int:
        """Number of positions whose logits it needs."""


S = TypeVar("S", bound=Sized)
T = TypeVar("T")
R = TypeVar("R")


def most_positions(vocabulary: int) -> int:
    """The number of positions at which a pass may compute logits, so that these take no more than LOGITS_BYTES."""
    return max(1, LOGITS_BYTES // (4 * vocabulary))


def batches(items: Sequence[S], token_budget: int, pass_tokens: int, positions: int, common: int = 0) -> list[list[S]]:
    """Sort all items by width and cut them into the batches that cost least in total.

    A batch costs its number of rows times the width of its widest row, plus `pass_tokens`: the fixed cost of a forward
    pass, given in tokens. The first `common` tokens are the same in all rows, and each batch reads them once. A batch
    has at most `token_budget` tokens, and needs logits at no more than `positions` positions, unless it is a single
    item.
    """
    ordered = sorted(items, key=lambda item: item.width)
    sizes = [(item.rows, item.width, item.positions) for item in ordered]
    costs, starts = [0], [0]
    for end in range(1, len(ordered) + 1):
        cost, start = min(_last_batches(sizes[:end], costs, token_budget, positions, common))
        costs.append(cost + pass_tokens + common)
        starts.append(start)
    found: list[list[S]] = []
    end = len(ordered)
    while end:
        found.insert(0, ordered[starts[end] : end])
        end = starts[end]
    return found


def _last_batches(
    sizes: Sequence[tuple[int, int, int]], costs: Sequence[int], token_budget: int, positions: int, common: int
) -> Iterator[tuple[int, int]]:
    """For each possible last batch of items of these sizes (rows, width, positions), in order of width: the total cost
    with the cheapest batches before it, and its start."""
    total_rows, last = 0, len(sizes) - 1
    width = sizes[last][1]
    for start in range(last, -1, -1):
        rows, _, needed = sizes[start]
        total_rows += rows
        positions -= needed
        if start < last and (total_rows * width > token_budget or positions < 0):
            return
        yield costs[start] + total_rows * (width - common), start


def halving_on_out_of_memory(
    run: Callable[[Sequence[T]], list[R | JobError]], items: Sequence[T]
) -> list[R | JobError]:
    """`run(items)`; if memory runs out, each half is run alone, and so on. The results are in the order of `items`.

    If memory runs out with one item alone, its result is JobError "out_of_memory", which is worth a retry: another
    worker may have more memory, or this one later.
    """
    if (found := unless_out_of_memory(lambda: run(items))) is not None:
        return found
    if len(items) == 1:
        return [out_of_memory()]
    half = len(items) // 2
    return halving_on_out_of_memory(run, items[:half]) + halving_on_out_of_memory(run, items[half:])


def unless_out_of_memory(run: Callable[[], R]) -> R | None:
    """The result of `run`, or None if memory ran out."""
    try:
        return run()
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
    # Free memory outside the except block: inside it, the traceback still refers to the tensors of the failed run.
    torch.cuda.empty_cache()
    return None


def out_of_memory() -> JobError:
    """The error of a job that does not fit into memory even alone."""
    too_much = "this job alone needs more memory than the worker has: shorten the prompt, or give it more memory"
    return JobError(too_much, code="out_of_memory", retry=True)


def _is_out_of_memory(error: Exception) -> bool:
    """Whether an error means that memory ran out. On the CPU torch raises a plain RuntimeError with such a message."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
