"""Computes log-likelihoods of choices after a prompt, as lm-evaluation-harness defines acc and acc_norm.

`encode_choices` turns a prompt and its choices into rows of tokens, and marks the tokens to score. `log_likelihoods`
runs a batch of them through the model once, with gradients if these are enabled. All choices continue one copy of
their prompt as branches, so that the prompt is computed only once.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from inspect import signature
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loracomp.errors import JobError
from loracomp.model.cpu import ROW_TOKENS
from loracomp.model.longrope import frequencies_of, frequencies_of_rows


class PlacesAtHead(NamedTuple):
    """The places that the output head computes in a pass: tensors [places]."""

    row: Tensor
    position: Tensor
    number: Tensor
    """Its number among the places of its row, from 0."""
    most: int
    """The most places that a row has: known here, so that no device has to be asked for it."""


_PLACES_AT_HEAD: ContextVar[PlacesAtHead | None] = ContextVar("places_at_head", default=None)


def places_at_head() -> PlacesAtHead | None:
    """Within `head_at`, what the output head computes; None in other passes, in which the head gets whole rows."""
    return _PLACES_AT_HEAD.get()


class ScoredToken(NamedTuple):
    """A token to score: the output at `position` of a row predicts `token`, which belongs to choice `choice`."""

    position: int
    token: int
    choice: int


@dataclass(frozen=True, slots=True)
class Row:
    """The token ids of a prompt and of the branches that continue it, and the tokens to score.

    A branch attends to the prompt and itself, never to another branch; its positions follow those of the prompt.
    """

    prompt: tuple[int, ...]
    branches: tuple[tuple[int, ...], ...]
    scored: tuple[ScoredToken, ...]

    @property
    def tokens(self) -> tuple[int, ...]:
        """The token ids in the order in which the model reads them: the prompt, then each branch."""
        return (*self.prompt, *chain.from_iterable(self.branches))

    @property
    def length(self) -> int:
        """Number of tokens of the prompt and its longest branch."""
        return len(self.prompt) + max(map(len, self.branches), default=0)


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt and its choices, tokenised. The counts have one number for each choice."""

    rows: tuple[Row, ...]
    prompt_tokens: int
    token_counts: tuple[int, ...]
    character_counts: tuple[int, ...]
    """Number of characters of each choice, without the white space before it; acc_norm divides by it."""


def encode_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, rendered: bool = False
) -> list[list[int]]:
    """The token ids of each text, with a leading BOS token if the tokenizer adds one, and never with an EOS token.

    With `rendered` the texts come from a chat template, which has put special tokens where it wants them.
    """
    encoded: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    bos = tokenizer.bos_token_id
    if rendered or bos is None or tokenizer("a")["input_ids"][:1] != [bos]:
        return encoded
    return [ids if ids[:1] == [bos] else [bos, *ids] for ids in encoded]


def check_length(tokens: int, context_length: int, what: str) -> None:
    """Raise JobError 'prompt_too_long' if `tokens` exceeds the base model's context length; `what` names the text."""
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
    length_limits: Sequence[int] = (),
    rendered: bool = False,
) -> Question:
    """Tokenise a prompt and its choices by lm-evaluation-harness's rule.

    White space at the end of the prompt is moved to the start of the choice (a space if there is none). Prompt + choice
    are tokenised together, and all tokens after the number that the prompt alone has belong to the choice. If the
    tokenizer merges characters of both into one token, that rule would lose a part of the choice, so the choice is
    tokenised alone.

    The choices are branches of one row, or of several rows if one would be longer than twice its prompt and than
    ROW_TOKENS. Without `shared_prompt` (for models that can't branch, `shares_prompts`) each choice has its own row. A
    choice of one token needs no branch. Choices share a row only if prompt and choice are on the same side of each of
    `length_limits` (`longrope.length_limits`), because the prompt's keys depend on that. After a prompt that a chat
    template has `rendered`, a choice follows without a space, because it is the whole reply.

    Raises JobError 'prompt_too_long', which gives the number of tokens and the
    limit, and 'prompt_blank' if the prompt is only white space.
    """
    context = prompt if rendered else prompt.rstrip()
    if not context:
        raise JobError("prompt is blank: write a text that the choices continue", code="prompt_blank")
    gap = "" if rendered else prompt[len(context) :] or " "
    start = encode_texts(tokenizer, [context], rendered=rendered)[0]
    # Check early, before the prompt is tokenised again with each of up to a thousand choices.
    check_length(len(start), context_length, "prompt")
    wholes = encode_texts(tokenizer, [context + gap + choice for choice in choices], rendered=rendered)
    continuations = [
        _continuation(tokenizer, start, whole, gap + choice) for whole, choice in zip(wholes, choices, strict=True)
    ]
    # Minus 1, because the last token is only predicted and never an input.
    longest = len(start) + max(map(len, continuations)) - 1
    check_length(longest, context_length, "prompt and its longest choice")
    limit = max(ROW_TOKENS, 2 * len(start)) if shared_prompt else 0
    alike: dict[int, dict[int, list[int]]] = {}
    for choice, ids in enumerate(continuations):
        alike.setdefault(frequencies_of(len(start) + len(ids) - 1, length_limits), {})[choice] = ids
    return Question(
        rows=tuple(chain.from_iterable(_rows(tuple(start), each, limit) for each in alike.values())),
        prompt_tokens=len(start),
        token_counts=tuple(map(len, continuations)),
        character_counts=tuple(map(len, choices)),
    )


def _continuation(tokenizer: PreTrainedTokenizerBase, start: list[int], whole: list[int], text: str) -> list[int]:
    if whole[: len(start)] == start and len(whole) > len(start):
        return whole[len(start) :]
    alone: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return alone


def _rows(prompt: tuple[int, ...], continuations: Mapping[int, list[int]], limit: int) -> Iterator[Row]:
    """Rows of at most `limit` tokens, or with one branch only. The first row also scores the choices of one token.

    `continuations` are by the number of their choice. Equal choices share a branch, so that their scores are equal to
    the last bit.
    """
    equal: dict[tuple[int, ...], list[int]] = {}
    for choice, ids in continuations.items():
        equal.setdefault(tuple(ids), []).append(choice)
    last = len(prompt) - 1
    branches: list[tuple[int, ...]] = []
    scored = [
        ScoredToken(last, ids[0], choice) for ids, choices in equal.items() if len(ids) == 1 for choice in choices
    ]
    length = len(prompt)
    for branch, choices in equal.items():
        if len(branch) == 1:
            continue
        if branches and length + len(branch) - 1 > limit:
            yield Row(prompt, tuple(branches), tuple(scored))
            branches, scored, length = [], [], len(prompt)
        places = (last, *range(length, length + len(branch) - 1))
        scored += (
            ScoredToken(place, token, choice) for choice in choices for place, token in zip(places, branch, strict=True)
        )
        branches.append(branch[:-1])
        length += len(branch) - 1
    yield Row(prompt, tuple(branches), tuple(scored))


def pad_right(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask [rows, longest], padded on the right: positions are 0, 1, 2, ... in all rows."""
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    ids = torch.zeros(mask.shape, dtype=torch.long)
    ids[mask] = torch.tensor([token for row in rows for token in row])
    return ids.to(device), mask.long().to(device)


def log_likelihoods(model: PreTrainedModel, questions: Sequence[Question]) -> list[Tensor]:
    """For each question a tensor [choices]: the sum of log-softmax over each choice's tokens, in nats and float32.

    Runs one forward pass. Logits are computed only where tokens are scored, and the scored tokens' logits in float32
    whatever the model's dtype. Differentiable if gradients are enabled; `model` may be wrapped by PEFT. The batch has
    the rows of all questions, in the order of `questions`.
    """
    device = model.get_input_embeddings().weight.device
    rows = [row for question in questions for row in question.rows]
    inputs = _inputs(rows, device, model.dtype)
    counts = [len(question.token_counts) for question in questions]
    # Tokens of several choices may be scored at one place (row, position); the logits there are computed only once.
    places: dict[tuple[int, int], int] = {}
    scored = [
        (places.setdefault((index, each.position), len(places)), each.token, first_choice + each.choice)
        for index, (row, first_choice) in enumerate(_rows_with_first_choice(questions))
        for each in row.scored
    ]
    place, token, choice = torch.tensor(scored, device=device).T
    lengths = [row.length for row in rows]
    with frequencies_of_rows(model, lengths), head_at(model, list(places)), _sharpened(model, place, token):
        logits = model(**inputs, use_cache=False).logits[0]
    place, token, choice = place.to(logits.device), token.to(logits.device), choice.to(logits.device)
    # In parts, to avoid a float32 copy of all logits.
    normalizers = torch.cat([part.float().logsumexp(-1) for part in torch.split(logits, 256)])
    token_scores = logits[place, token].float() - normalizers[place]
    scores = token_scores.new_zeros(sum(counts)).index_add(0, choice, token_scores)
    return list(scores.split(counts))


def _inputs(rows: Sequence[Row], device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """The model's inputs; a plain padded batch if no row has more than one branch."""
    if any(len(row.branches) > 1 for row in rows):
        return _branched(rows, device, dtype)
    input_ids, attention_mask = pad_right([row.tokens for row in rows], device)
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def _branched(rows: Sequence[Row], device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """The model's inputs [rows, n]; the mask [rows, 1, n, n] keeps branches apart."""
    input_ids, _ = pad_right([row.tokens for row in rows], device)
    branch, positions = _branches_and_positions(rows, input_ids.shape[1])
    sees = (branch[:, None, :] == branch[:, :, None]) | (branch[:, None, :] == 0)
    mask = torch.zeros(sees.shape, dtype=dtype).masked_fill_(~sees.tril_(), torch.finfo(dtype).min)
    return {
        "input_ids": input_ids,
        "position_ids": positions.to(device),
        "attention_mask": mask[:, None].to(device),
    }


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

    Tried out with a few tokens: models with a sliding window, a recurrent state or ALiBi can't, and need one row for
    each choice.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"} or "position_ids" not in signature(model.forward).parameters:
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


def _places_at_head(places: Sequence[tuple[int, int]], device: torch.device) -> PlacesAtHead:
    """These (row, position) on the device, where they get there in one copy."""
    of_row: Counter[int] = Counter()
    numbered = []
    for row, position in places:
        numbered.append((row, position, of_row[row]))
        of_row[row] += 1
    row_of, position_of, number_of = torch.tensor(numbered, device=device).T
    return PlacesAtHead(row_of, position_of, number_of, max(of_row.values()))


@contextmanager
def head_at(model: PreTrainedModel, places: Sequence[tuple[int, int]]) -> Iterator[None]:
    """Within this context, the output head computes only these (row, position): logits [1, places, vocabulary].

    This uses a hook on the head rather than a call around the model's forward, so that PEFT, autocast and whatever the
    model does to logits (soft caps, scaling) still apply. Indexing copies the places side by side; for a slice torch
    would copy the head's weights for each row.
    """
    head = model.get_output_embeddings()
    at = _places_at_head(places, model.get_input_embeddings().weight.device)

    def gather(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0][at.row.to(args[0].device), at.position.to(args[0].device)][None], *args[1:])

    handle = head.register_forward_pre_hook(gather)
    before = _PLACES_AT_HEAD.set(at)
    try:
        yield
    finally:
        _PLACES_AT_HEAD.reset(before)
        handle.remove()


@contextmanager
def _sharpened(model: PreTrainedModel, place: Tensor, token: Tensor) -> Iterator[None]:
    """Within this context, the output head computes the logits of `token` at `place` in float32."""

    def sharpen(head: nn.Module, args: tuple[Tensor], logits: Tensor) -> Tensor:
        # bfloat16 has steps of 0.125 near 20, so that one in ten True / False questions would be a tie.
        if logits.dtype == torch.float32 or type(head) is not nn.Linear or head.bias is not None:
            return logits
        at, of = place.to(logits.device), token.to(logits.device)
        exact = (args[0][0, at].float() * head.weight[of].float()).sum(-1)
        return logits.float().index_put_((torch.zeros_like(at), at, of), exact)

    # It must be called before adapters' hooks, because it overwrites logits, and what they added would be lost.
    handle = model.get_output_embeddings().register_forward_hook(sharpen, prepend=True)
    try:
        yield
    finally:
        handle.remove()


def normalize(scores: Tensor, question: Question, normalization: str) -> Tensor:
    """Log-likelihoods [choices], undivided ('none', acc) or divided by 'characters' (acc_norm) or 'tokens'."""
    if normalization == "none":
        return scores
    counts = question.character_counts if normalization == "characters" else question.token_counts
    return scores / torch.tensor(counts, dtype=scores.dtype, device=scores.device)
