"""Gives each row of a batch the rotary frequencies of its own length, in models whose frequencies depend on the length.

LongRoPE (Phi-3 and others) has one set of frequencies for texts of at most `original_max_position_embeddings` tokens,
and another for longer ones. transformers takes the set of the batch's longest row for all rows, so that a short text
beside a long one would be answered otherwise than alone. Dynamic NTK scaling needs no such care: it begins at
`max_position_embeddings` tokens, and jobs have at most as many.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def length_limits(model: PreTrainedModel) -> tuple[int, ...]:
    """The numbers of tokens after which the model's rotary frequencies change; none for most models."""
    given = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    # Some models have parameters for each type of layer.
    found = [given, *(each for each in given.values() if isinstance(each, dict))]
    limits = {each["original_max_position_embeddings"] for each in found if each.get("rope_type") == "longrope"}
    return tuple(sorted(limits))


def frequencies_of(length: int, limits: Sequence[int]) -> int:
    """A number that is equal for texts of such lengths that the model gives them the same frequencies."""
    return sum(length > limit for limit in limits)


@contextmanager
def frequencies_of_rows(model: PreTrainedModel, lengths: Sequence[int]) -> Iterator[None]:
    """Within this context each row gets the frequencies of a text of its length.

    This is the length of the whole text, of which a pass may read only a part.
    """
    limits = length_limits(model)
    if not any(frequencies_of(length, limits) for length in lengths):
        yield
        return
    alike: dict[int, list[int]] = {}
    for row, length in enumerate(lengths):
        alike.setdefault(frequencies_of(length, limits), []).append(row)
    # For all of these rows, the longest stands for its own length.
    groups = [(rows, max(lengths[row] for row in rows)) for rows in alike.values()]

    def again(module: nn.Module, args: tuple[Any, ...], given: dict[str, Any], output: Any) -> Any:
        bound = signature(module.forward).bind(*args, **given).arguments
        positions: Tensor = bound["position_ids"].expand(len(lengths), -1)
        parts = [module.forward(**bound | {"position_ids": _ending_at(positions[rows], n)}) for rows, n in groups]
        order = [row for rows, _ in groups for row in rows]
        if isinstance(output, Tensor):
            return _in_order(parts, order)
        return tuple(_in_order(each, order) for each in zip(*parts, strict=True))

    rotary = [module for module in model.modules() if "longrope" in _rope_types(module)]
    handles = [module.register_forward_hook(again, with_kwargs=True) for module in rotary]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _rope_types(module: nn.Module) -> Sequence[str]:
    found = getattr(module, "rope_type", None) or ""
    return list(found.values()) if isinstance(found, dict) else [found]


def _ending_at(positions: Tensor, length: int) -> Tensor:
    """These positions [rows, tokens] and one column more, so that the highest position is that of a text's last token.

    By that transformers chooses. The positions of padding may be higher, and nothing depends on them.
    """
    return torch.cat([positions, positions.new_full((len(positions), 1), length)], dim=1).clamp(max=length - 1)


def _in_order(parts: Sequence[Tensor], order: Sequence[int]) -> Tensor:
    """Rows of groups, without the column that `_ending_at` added, in the order of the batch."""
    found = torch.cat(list(parts))[:, :-1]
    return found[torch.tensor(order, device=found.device).argsort()]
