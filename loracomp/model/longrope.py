"""Gives each row of a batch the rotary frequencies that belong to its own length.

Models with LongRoPE (Phi-3 and others) have one set of frequencies for texts of at most
`original_max_position_embeddings` tokens, and another set for longer texts. transformers chooses one set for a whole
batch, by its longest row, so that the answer to a short text would depend on whether a long text stands beside it.
Dynamic NTK scaling changes frequencies too, but only above `max_position_embeddings` tokens, and no job is that long.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def length_limits(model: PreTrainedModel) -> tuple[int, ...]:
    """The lengths in tokens above which the model uses other rotary frequencies; empty for most models."""
    given = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    # Some models have a dictionary of parameters for each type of layer.
    found = [given, *(each for each in given.values() if isinstance(each, dict))]
    limits = {each["original_max_position_embeddings"] for each in found if each.get("rope_type") == "longrope"}
    return tuple(sorted(limits))


def frequencies_of(length: int, limits: Sequence[int]) -> int:
    """Which set of frequencies a text of this length gets: 0 up to the first of `limits`, then 1, and so on."""
    return sum(length > limit for limit in limits)


@contextmanager
def frequencies_of_rows(model: PreTrainedModel, lengths: Sequence[int]) -> Iterator[None]:
    """Within this context each row gets the frequencies of a text of its length.

    `lengths` are the lengths in tokens of the rows' whole texts; a pass may read only a part of them.
    """
    limits = length_limits(model)
    if not any(frequencies_of(length, limits) for length in lengths):
        yield
        return
    alike: dict[int, list[int]] = {}
    for row, length in enumerate(lengths):
        alike.setdefault(frequencies_of(length, limits), []).append(row)
    groups = [(rows, max(lengths[row] for row in rows)) for rows in alike.values()]

    def by_group(module: nn.Module, args: tuple[Any, ...], given: dict[str, Any], output: Any) -> Any:
        bound = signature(module.forward).bind(*args, **given).arguments
        positions: Tensor = bound["position_ids"].expand(len(lengths), -1)
        parts = [module.forward(**bound | {"position_ids": _ending_at(positions[rows], n)}) for rows, n in groups]
        order = [row for rows, _ in groups for row in rows]
        if isinstance(output, Tensor):
            return _in_order(parts, order)
        return tuple(_in_order(each, order) for each in zip(*parts, strict=True))

    rotary = [module for module in model.modules() if "longrope" in _rope_types(module)]
    handles = [module.register_forward_hook(by_group, with_kwargs=True) for module in rotary]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _rope_types(module: nn.Module) -> Sequence[str]:
    found = getattr(module, "rope_type", None) or ""
    return list(found.values()) if isinstance(found, dict) else [found]


def _ending_at(positions: Tensor, length: int) -> Tensor:
    """These positions [rows, tokens] with one column added, so that the highest is the last of a text of this length.

    transformers chooses the frequencies by the highest position. Higher ones belong to padding and are lowered, because
    nothing depends on them.
    """
    return torch.cat([positions, positions.new_full((len(positions), 1), length)], dim=1).clamp(max=length - 1)


def _in_order(parts: Sequence[Tensor], order: Sequence[int]) -> Tensor:
    """The rows of all groups in the order of the batch, without the column that `_ending_at` added."""
    found = torch.cat(list(parts))[:, :-1]
    return found[torch.tensor(order, device=found.device).argsort()]
