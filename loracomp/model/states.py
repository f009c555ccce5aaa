"""A prompt's state: the mean of its hidden states after two thirds of the model's layers, as a unit vector.

A classifier of prompts uses it as a feature (`engine.calibration`); docs/decisions.md compares layers.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from loracomp.model.tokens import Question

DEPTH = 2 / 3
"""Share of the layers after which hidden states are read."""


@contextmanager
def prompt_states(
    model: PreTrainedModel, questions: Sequence[Question], wanted: Sequence[int], before: Tensor | None = None
) -> Iterator[dict[int, Tensor]]:
    """Within this context, a pass over the rows of all questions fills the dictionary with states.

    Each question of `wanted` (their numbers) gets a state [d] in float32. The prompt's first token is left out if there
    are others, because its hidden state is large and hardly depends on the text. The states are empty if the model does
    not show its layers' hidden states. `before` is the sum (`sum_of_states`) of first tokens that are not in the rows.
    """
    states = dict.fromkeys(wanted, torch.empty(0))
    rows = [row for question in questions for row in question.rows]
    width = max(len(row.tokens) for row in rows)
    first_row = list(accumulate((len(question.rows) for question in questions), initial=0))

    def read(_: nn.Module, __: object, output: Tensor | tuple[Tensor, ...]) -> None:
        hidden = output if isinstance(output, Tensor) else output[0]
        if hidden.shape[:-1].numel() != len(rows) * width:
            return
        by_row = hidden.view(len(rows), width, -1)  # some models have [rows * tokens, d]
        for number in wanted:
            length = len(questions[number].rows[0].prompt)
            first = min(1, length - 1) if before is None else 0
            total = by_row[first_row[number], first:length].sum(dim=0, dtype=torch.float32)
            states[number] = nn.functional.normalize(total if before is None else total + before, dim=0)

    with _reading(model, read if wanted else None):
        yield states


@contextmanager
def sum_of_states(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """Within this context, a pass over a single row fills the list: with the sum [d] in float32 of the hidden states of
    all but the first token, if the model shows its layers' hidden states."""
    sums: list[Tensor] = []

    def read(_: nn.Module, __: object, output: Tensor | tuple[Tensor, ...]) -> None:
        hidden = output if isinstance(output, Tensor) else output[0]
        sums.append(hidden.view(-1, hidden.shape[-1])[1:].sum(dim=0, dtype=torch.float32))

    with _reading(model, read):
        yield sums


@contextmanager
def _reading(model: PreTrainedModel, read: Callable[..., None] | None) -> Iterator[None]:
    """Within this context, `read` is called with the output of the layer after which states are read."""
    layer = _layer(model) if read else None
    handle = layer.register_forward_hook(read) if layer is not None and read is not None else None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


def _layer(model: PreTrainedModel) -> nn.Module | None:
    """The layer after which states are read; None if the model has no list of all its layers."""
    count = getattr(model.config.get_text_config(), "num_hidden_layers", 0)
    lists = (each for each in model.modules() if isinstance(each, nn.ModuleList))
    layers = next((each for each in lists if len(each) == count), None)
    return layers[max(round(DEPTH * count), 1) - 1] if layers else None
