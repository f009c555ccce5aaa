"""A prompt's state: the mean of its hidden states after two thirds of the model's layers, as a unit vector.

A classifier of prompts uses it as a feature (`engine.calibration`); docs/decisions.md compares layers.
"""

from collections.abc import Iterator, Sequence
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
    model: PreTrainedModel, questions: Sequence[Question], wanted: Sequence[int]
) -> Iterator[dict[int, Tensor]]:
    """Within this context, a pass over the rows of all questions fills the dictionary with states.

    Each question of `wanted` (their numbers) gets a state [d] in float32. The prompt's first token is left out if there
    are others, because its hidden state is large and hardly depends on the text. The states are empty if the model does
    not show its layers' hidden states.
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
            prompt = by_row[first_row[number], min(1, length - 1) : length]
            states[number] = nn.functional.normalize(prompt.mean(dim=0, dtype=torch.float32), dim=0)

    layer = _layer(model) if wanted else None
    handle = layer.register_forward_hook(read) if layer is not None else None
    try:
        yield states
    finally:
        if handle is not None:
            handle.remove()


def _layer(model: PreTrainedModel) -> nn.Module | None:
    """The layer after which states are read; None if the model has no list of all its layers."""
    count = getattr(model.config.get_text_config(), "num_hidden_layers", 0)
    lists = (each for each in model.modules() if isinstance(each, nn.ModuleList))
    layers = next((each for each in lists if len(each) == count), None)
    return layers[max(round(DEPTH * count), 1) - 1] if layers else None
