"""Log-likelihoods of choices after a prompt, as lm-evaluation-harness defines acc and acc_norm.

A prompt and its choices become rows of tokens with scored spots (`encode_choices`); a batch of them goes through the
model once (`log_likelihoods`), with gradients where they are on. Choices branch off one copy of their prompt, so that
it is computed once.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from inspect import signature
from itertools import chain, repeat
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loracomp.errors import JobError
from loracomp.model.cpu import ROW_TOKENS

_ROWS_AT_HEAD: ContextVar[Tensor | None] = ContextVar("rows_at_head", default=None)


def rows_at_head() -> Tensor | None:
    """The row of each place that the output head computes [places], in order, in a pass that scores.

    None in other passes, in which the head gets whole rows.
    """
    return _ROWS_AT_HEAD.get()


class Spot(NamedTuple):
    """The model's output at `position` of a row predicts `token`, a token of choice number `choice` (from 0)."""

    position: int
    token: int
    choice: int


@dataclass(frozen=True, slots=True)
class Row:
    """A prompt's token ids, the branches that go on from it, and where tokens of choices are scored.

    A branch sees the prompt and itself, never another branch; its positions go on from the prompt's.
    """

    prompt: tuple[int, ...]
    branches: tuple[tuple[int, ...], ...]
    spots: tuple[Spot, ...]

    @property
    def tokens(self) -> tuple[int, ...]:
        """Token ids as the model gets them: the prompt, then every branch."""
        return (*self.prompt, *chain.from_iterable(self.branches))


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt and its choices, tokenised. Counts are one a choice, in the choices' order."""

    rows: tuple[Row, ...]
    prompt_tokens: int
    token_counts: tuple[int, ...]
    character_counts: tuple[int, ...]
    """Characters of the choice itself, without the white space that parts it from the prompt (acc_norm)."""


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, after a BOS token where the tokenizer puts one; never with an EOS token."""
    encoded: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    bos = tokenizer.bos_token_id
    if bos is None or tokenizer("a")["input_ids"][:1] != [bos]:
        return encoded
    return [ids if ids[:1] == [bos] else [bos, *ids] for ids in encoded]


def check_length(tokens: int, context_length: int, what: str) -> None:
    """Raise JobError 'prompt_too_long' where `tokens` do not fit the base model's context."""
    if tokens > context_length:
        raise JobError(
            f"{what} take {tokens} tokens; the base model takes at most {context_length}: shorten the prompt",
            code="prompt_too_long",
        )


def encode_choices(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    choices: Sequence[str],
    context_length: int,
    *,
    shared_prompt: bool = True,
) -> Question:
    """Split prompt + choice into context and continuation tokens, by lm-evaluation-harness's rule.

    The prompt's trailing white space belongs to the continuation (a space where there is none); the continuation's
    tokens are those of the whole text after as many as the context has. Where the tokenizer merges the two across the
    seam that rule would lose a part of the choice, and the continuation is tokenised alone instead.

    Choices branch off one row, or off several where they would make it more than twice as long as its prompt (and
    longer than ROW_TOKENS); without `shared_prompt`, for models that can't (`shares_prompts`), each has a row. Those of
    one token need no branch. Raises JobError 'prompt_too_long' with the tokens counted and the limit, 'prompt_blank'
    where nothing is left.
    """
    context = prompt.rstrip()
    if not context:
        raise JobError("prompt is blank: nothing to score the choices after", code="prompt_blank")
    gap = prompt[len(context) :] or " "
    start = encode_texts(tokenizer, [context])[0]
    # Before the prompt is tokenised again with each of a thousand choices.
    check_length(len(start), context_length, "prompt")
    wholes = encode_texts(tokenizer, [context + gap + choice for choice in choices])
    continuations = [
        _continuation(tokenizer, start, whole, gap + choice) for whole, choice in zip(wholes, choices, strict=True)
    ]
    # The last token is only predicted, never fed.
    longest = len(start) + max(map(len, continuations)) - 1
    check_length(longest, context_length, "prompt and its longest choice")
    return Question(
        rows=tuple(_rows(tuple(start), continuations, max(ROW_TOKENS, 2 * len(start)) if shared_prompt else 0)),
        prompt_tokens=len(start),
        token_counts=tuple(map(len, continuations)),
        character_counts=tuple(map(len, choices)),
    )


def _continuation(tokenizer: PreTrainedTokenizerBase, start: list[int], whole: list[int], text: str) -> list[int]:
    if whole[: len(start)] == start and len(whole) > len(start):
        return whole[len(start) :]
    alone: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return alone


def _rows(prompt: tuple[int, ...], continuations: Sequence[list[int]], limit: int) -> Iterator[Row]:
    """Rows of at most `limit` tokens, or of one branch; one-token choices ride on the first, which may have none."""
    last = len(prompt) - 1
    branches: list[tuple[int, ...]] = []
    spots = [Spot(last, ids[0], choice) for choice, ids in enumerate(continuations) if len(ids) == 1]
    length = len(prompt)
    for choice, ids in enumerate(continuations):
        if len(ids) == 1:
            continue
        if branches and length + len(ids) - 1 > limit:
            yield Row(prompt, tuple(branches), tuple(spots))
            branches, spots, length = [], [], len(prompt)
        places = (last, *range(length, length + len(ids) - 1))
        spots += map(Spot, places, ids, repeat(choice))
        branches.append(tuple(ids[:-1]))
        length += len(ids) - 1
    yield Row(prompt, tuple(branches), tuple(spots))


def pad_right(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask [rows, longest], padded on the right: positions stay 0, 1, 2, ... in every row."""
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    ids = torch.zeros(mask.shape, dtype=torch.long)
    ids[mask] = torch.tensor([token for row in rows for token in row])
    return ids.to(device), mask.long().to(device)


def log_likelihoods(model: PreTrainedModel, questions: Sequence[Question]) -> list[Tensor]:
    """Sum of log-softmax over each choice's tokens, in nats and float32: for every question a tensor [choices].

    One forward pass; logits are computed at the scored spots only, those of the scored tokens in float32 whatever the
    model's dtype. Differentiable where gradients are on; `model` may be wrapped by PEFT. Rows enter the model in the
    order of `question.rows`, question by question.
    """
    device = model.get_input_embeddings().weight.device
    rows = [row for question in questions for row in question.rows]
    inputs = _inputs(rows, device, model.dtype)
    counts = [len(question.token_counts) for question in questions]
    # Several spots may share a place (row, position), as one-token choices do: its logits are computed once.
    places: dict[tuple[int, int], int] = {}
    spots = [
        (places.setdefault((index, spot.position), len(places)), spot.token, first_choice + spot.choice)
        for index, (row, first_choice) in enumerate(_rows_with_first_choice(questions))
        for spot in row.spots
    ]
    place, token, choice = torch.tensor(spots, device=device).T
    with _head_at(model, torch.tensor(list(places), device=device), place, token):
        logits = model(**inputs, use_cache=False).logits[0]
    place, token, choice = place.to(logits.device), token.to(logits.device), choice.to(logits.device)
    # In parts, so that there is no float32 copy of all logits.
    normalizers = torch.cat([part.float().logsumexp(-1) for part in torch.split(logits, 256)])
    token_scores = logits[place, token].float() - normalizers[place]
    scores = token_scores.new_zeros(sum(counts)).index_add(0, choice, token_scores)
    return list(scores.split(counts))


def _inputs(rows: Sequence[Row], device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """What the model is called with; where no row branches, a plain padded batch."""
    input_ids, attention_mask = pad_right([row.tokens for row in rows], device)
    if all(len(row.branches) <= 1 for row in rows):
        return {"input_ids": input_ids, "attention_mask": attention_mask}
    branch, positions = _branches_and_positions(rows, input_ids.shape[1])
    sees = (branch[:, None, :] == branch[:, :, None]) | (branch[:, None, :] == 0)
    mask = torch.zeros(sees.shape, dtype=dtype).masked_fill_(~sees.tril_(), torch.finfo(dtype).min)
    return {"input_ids": input_ids, "position_ids": positions.to(device), "attention_mask": mask[:, None].to(device)}


def _branches_and_positions(rows: Sequence[Row], width: int) -> tuple[Tensor, Tensor]:
    """Of every token [rows, width]: its branch (0: the prompt; -1: padding) and its position in its own sequence."""
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
    """Whether choices may branch off one copy of their prompt, unseen by each other.

    Tried out, for models differ: those with a sliding window, a recurrent state or ALiBi need a row a choice.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"} or "position_ids" not in signature(model.forward).parameters:
        return False
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return False
    try:
        scores = [_second_branch(model, first) for first in ((1, 2, 3), (4, 5, 6))]
    except (RuntimeError, ValueError, TypeError):
        return False
    return torch.equal(*scores)


def _second_branch(model: PreTrainedModel, first: tuple[int, ...]) -> Tensor:
    """Score of a branch that stands behind the branch `first`."""
    row = Row((1, 2, 3), (first, (7,)), (Spot(6, 0, 0),))
    return log_likelihoods(model, [Question((row,), 3, (1,), (1,))])[0]


def _rows_with_first_choice(questions: Sequence[Question]) -> Iterator[tuple[Row, int]]:
    first = 0
    for question in questions:
        yield from ((row, first) for row in question.rows)
        first += len(question.token_counts)


@contextmanager
def _head_at(model: PreTrainedModel, places: Tensor, place: Tensor, token: Tensor) -> Iterator[None]:
    """Let the output head compute only `places` [n, 2] (row, position), and logits of `token` at `place` in float32.

    Logits come out as [1, n, vocabulary]. Hooks on the head, not a call past the model's own forward: what models do to
    logits after it (soft caps, scaling), PEFT and autocast stay in force.
    """

    def gather(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        row, position = places.T.to(args[0].device)
        return (args[0][row, position][None],)

    def sharpen(head: nn.Module, args: tuple[Tensor], logits: Tensor) -> Tensor:
        # bfloat16 tells logits near 20 apart by 0.125 only: one in ten True / False questions would be a tie.
        if logits.dtype == torch.float32 or type(head) is not nn.Linear or head.bias is not None:
            return logits
        at, of = place.to(logits.device), token.to(logits.device)
        exact = (args[0][0, at].float() * head.weight[of].float()).sum(-1)
        return logits.float().index_put_((torch.zeros_like(at), at, of), exact)

    head = model.get_output_embeddings()
    # First of the hooks after the head: adapters add to what it gives.
    handles = [head.register_forward_pre_hook(gather), head.register_forward_hook(sharpen, prepend=True)]
    rows = _ROWS_AT_HEAD.set(places[:, 0])
    try:
        yield
    finally:
        _ROWS_AT_HEAD.reset(rows)
        for handle in handles:
            handle.remove()


def normalize(scores: Tensor, question: Question, normalization: str) -> Tensor:
    """Scores [choices] divided by nothing ('none', acc), by 'characters' (acc_norm) or by 'tokens'."""
    if normalization == "none":
        return scores
    counts = question.character_counts if normalization == "characters" else question.token_counts
    return scores / torch.tensor(counts, dtype=scores.dtype, device=scores.device)
