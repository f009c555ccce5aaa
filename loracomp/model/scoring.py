"""Computes log-likelihoods of choices after a prompt, as lm-evaluation-harness defines acc and acc_norm.

`log_likelihoods` runs a batch of tokenised questions (`model.tokens`) through the model once, with gradients if these
are enabled. All choices continue one copy of their prompt as branches, so that the prompt is computed only once.
"""

from collections.abc import Iterator, Sequence
from inspect import signature

import torch
from torch import Tensor
from transformers import PreTrainedModel

from loracomp.model.forward import CACHE
from loracomp.model.head import head_at, sharpened
from loracomp.model.longrope import frequencies_of_rows
from loracomp.model.prefix import Prefix
from loracomp.model.tokens import Question, Row, ScoredToken, pad_right


def log_likelihoods(
    model: PreTrainedModel, questions: Sequence[Question], prefix: Prefix | None = None
) -> list[Tensor]:
    """For each question a tensor [choices]: the sum of log-softmax over each choice's tokens, in nats and float32.

    Runs one forward pass. Logits are computed only where tokens are scored, and the scored tokens' logits in float32
    whatever the model's dtype. Differentiable if gradients are enabled; `model` may be wrapped by PEFT. The batch has
    the rows of all questions, in the order of `questions`. All rows continue `prefix`, if there is one.
    """
    device = model.get_input_embeddings().weight.device
    rows = [row for question in questions for row in question.rows]
    inputs = _inputs(rows, device, model.dtype, known=prefix.tokens if prefix else 0)
    cache = {CACHE: prefix.cache, "use_cache": True} if prefix else {"use_cache": False}
    counts = [len(question.token_counts) for question in questions]
    # Tokens of several choices may be scored at one position (row, column); the logits there are computed only once.
    positions: dict[tuple[int, int], int] = {}
    scored = [
        (positions.setdefault((index, each.column), len(positions)), each.token, first_choice + each.choice)
        for index, (row, first_choice) in enumerate(_rows_with_first_choice(questions))
        for each in row.scored
    ]
    position, token, choice = torch.tensor(scored, device=device).T
    lengths = [row.length for row in rows]
    with frequencies_of_rows(model, lengths), head_at(model, list(positions)), sharpened(model, position, token):
        logits = model(**inputs, **cache).logits[0]
    position, token, choice = position.to(logits.device), token.to(logits.device), choice.to(logits.device)
    # In parts, to avoid a float32 copy of all logits.
    normalizers = torch.cat([part.float().logsumexp(-1) for part in torch.split(logits, 256)])
    token_scores = logits[position, token].float() - normalizers[position]
    scores = token_scores.new_zeros(sum(counts)).index_add(0, choice, token_scores)
    return list(scores.split(counts))


def _inputs(rows: Sequence[Row], device: torch.device, dtype: torch.dtype, known: int) -> dict[str, Tensor]:
    """The model's inputs after `known` tokens; a plain padded batch if no row has more than one branch."""
    if any(len(row.branches) > 1 for row in rows):
        return _branched(rows, device, dtype, known)
    input_ids, attention_mask = pad_right([row.tokens for row in rows], device)
    if not known:
        return {"input_ids": input_ids, "attention_mask": attention_mask}
    positions = torch.arange(known, known + input_ids.shape[1], device=device).expand_as(input_ids)
    mask = torch.cat([attention_mask.new_ones(len(rows), known), attention_mask], dim=1)
    return {"input_ids": input_ids, "position_ids": positions, "attention_mask": mask}


def _branched(rows: Sequence[Row], device: torch.device, dtype: torch.dtype, known: int) -> dict[str, Tensor]:
    """The model's inputs [rows, n]; the mask [rows, 1, n, known + n] keeps branches apart."""
    input_ids, _ = pad_right([row.tokens for row in rows], device)
    branch, positions = (each.to(device) for each in _branches_and_positions(rows, input_ids.shape[1]))
    sees = (branch[:, None, :] == branch[:, :, None]) | (branch[:, None, :] == 0)
    sees = torch.cat([sees.new_ones(*sees.shape[:2], known), sees.tril_()], dim=2)
    mask = torch.zeros(sees.shape, dtype=dtype, device=device).masked_fill_(~sees, torch.finfo(dtype).min)
    return {"input_ids": input_ids, "position_ids": positions + known, "attention_mask": mask[:, None]}


def _branches_and_positions(rows: Sequence[Row], width: int) -> tuple[Tensor, Tensor]:
    """For each token [rows, width] its branch (0: the prompt; -1: padding), and its position in prompt + branch."""
    branch, positions = torch.full((2, len(rows), width), -1)
    for index, row in enumerate(rows):
        start = 0
        for number, part in enumerate((row.prompt, *row.branches)):
            first = 0 if number == 0 else len(row.prompt)
            branch[index, start : start + len(part)] = number
            positions[index, start : start + len(part)] = torch.arange(first, first + len(part))
            start += len(part)
    return branch, positions.clamp_(min=0)


@torch.inference_mode()
def shares_prompts(model: PreTrainedModel) -> bool:
    """Whether the model can score several choices as branches of one prompt that don't affect each other.

    Models with a sliding window, a recurrent state or ALiBi can't, and need one row for each choice. Tried out with a
    few tokens, because a worker asks it at each start. So few don't leave a window, which is why its settings are
    looked at; `trial.try_out` finds a window whose settings have other names.
    """
    config = model.config.get_text_config()
    # Only GPT-Neo has a list of attention_layers; its "local" layers slide.
    kinds = {*(getattr(config, "layer_types", None) or ()), *(getattr(config, "attention_layers", None) or ())}
    if not kinds <= {"full_attention", "global"} or "position_ids" not in signature(model.forward).parameters:
        return False
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return False
    try:
        scores = [_second_branch(model, first) for first in ((1, 2, 3), (4, 5, 6))]
    except Exception:  # the model's code may raise anything
        return False
    return torch.equal(*scores)


def _second_branch(model: PreTrainedModel, first: tuple[int, ...]) -> Tensor:
    """The score of a fixed second branch; it must not depend on the branch `first` before it."""
    row = Row((1, 2, 3), (first, (7,)), (ScoredToken(6, 0, 0),))
    return log_likelihoods(model, [Question((row,), 3, (1,), (1,))])[0]


def _rows_with_first_choice(questions: Sequence[Question]) -> Iterator[tuple[Row, int]]:
    first = 0
    for question in questions:
        yield from ((row, first) for row in question.rows)
        first += len(question.token_counts)


def normalize(scores: Tensor, question: Question, normalization: str) -> Tensor:
    """Log-likelihoods [choices], undivided ('none', acc) or divided by 'characters' (acc_norm) or 'tokens'."""
    if normalization == "none":
        return scores
    counts = question.character_counts if normalization == "characters" else question.token_counts
    return scores / torch.tensor(counts, dtype=scores.dtype, device=scores.device)
