"""Tokens with which all rows of a pass begin, computed once.

The rows of a table that begin with the template's words, and the examples of a task, are such rows. If they are also
answered under the same composition, the pass over the rows begins with the keys and values of these tokens.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TypeVar

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from loracomp.model.forward import CACHE
from loracomp.model.head import head_at
from loracomp.model.states import sum_of_states

T = TypeVar("T")


@dataclass(frozen=True)
class Prefix:
    """The first tokens of all rows, as the model has read them under one composition."""

    tokens: int
    """How many they are."""
    cache: Cache
    """Their keys and values, for a pass over rows of further tokens. A pass leaves it unchanged."""
    state: Tensor | None
    """[d], the sum of the hidden states of all but the first token (`sum_of_states`), if the model shows them."""


class _SharedLayer(DynamicLayer):  # type: ignore[misc]  # transformers has no types
    """A layer's keys and values of a prefix, each [1, heads, tokens, size], which every row of a pass continues."""

    def __init__(self, read: DynamicLayer) -> None:
        super().__init__()
        self.keys, self.values = read.keys, read.values
        self.dtype, self.device = read.keys.dtype, read.keys.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: object, **_kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """The keys and values that each row attends to: the prefix's, then the row's own. Nothing is stored."""
        return _continued(self.keys, key_states), _continued(self.values, value_states)


def _continued(shared: Tensor, own: Tensor) -> Tensor:
    return torch.cat([shared.expand(len(own), -1, -1, -1), own], dim=2)


@torch.inference_mode()
def read_prefix(model: PreTrainedModel, tokens: Sequence[int]) -> Prefix:
    """Run these tokens through the model, which may be under a composition of one row."""
    read = DynamicCache()
    ids = torch.tensor([tokens], device=model.get_input_embeddings().weight.device)
    with head_at(model, [(0, len(tokens) - 1)]), sum_of_states(model) as sums:
        model(input_ids=ids, use_cache=True, **{CACHE: read})
    state = sums[0] if sums else None
    return Prefix(len(tokens), Cache(layers=[_SharedLayer(layer) for layer in read.layers]), state)


def groups_by_start(
    items: Iterable[T], key: Callable[[T], Hashable], tokens: Callable[[T], Sequence[int]], first: int
) -> Iterator[tuple[int, list[T]]]:
    """Groups of items with the same key and the same first `first` tokens; with each, the number of first tokens that
    are the same in all its items, which is 0 for a single item."""
    groups: dict[tuple[Hashable, ...], list[T]] = {}
    for item in items:
        groups.setdefault((key(item), *tokens(item)[:first]), []).append(item)
    for group in groups.values():
        yield in_common([tokens(item) for item in group]), group


def in_common(rows: Sequence[Sequence[int]]) -> int:
    """Number of first tokens that are the same in all rows; 0 for a single row."""
    if len(rows) < 2:
        return 0
    # All rows between the first and the last one, in alphabetical order, begin with what these two have in common.
    pairs = zip(min(map(tuple, rows)), max(map(tuple, rows)), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
