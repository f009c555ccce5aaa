"""Turns texts into tokens: chat templates, prompts to continue, and prompts with the choices to score."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from loracomp.errors import JobError
from loracomp.model.cpu import ROW_TOKENS
from loracomp.model.longrope import frequencies_of

MOST_CHARACTERS = 4_000_000
"""Maximum number of characters to tokenise for a prompt, which is tokenised with each of its choices. They take two to
ten seconds, for which other jobs wait."""
BRANCHED_TOKENS = 8192
"""Maximum number of tokens of a row with several branches, whose attention mask has as many rows and columns."""


def render(tokenizer: PreTrainedTokenizerBase, prompt: str, system_text: str | None = None) -> str:
    """A chat with the prompt as the user's message, up to where the model's answer begins; special tokens are text.

    Without `system_text` the chat has the template's own system message, if the template has one. Raises JobError
    'chat_template' if the tokenizer has no template, or if the template refuses the messages; some templates refuse a
    system message.
    """
    system = [] if system_text is None else [{"role": "system", "content": system_text}]
    messages = [*system, {"role": "user", "content": prompt}]
    if tokenizer.chat_template is None:
        option = "chat_template" if system_text is None else "system_text"
        raise JobError(f"the base model's tokenizer has no chat template: leave {option} out", code="chat_template")
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # a template may raise anything
        told = str(error).strip().partition("\n")[0]
        without = "leave system_text out, or " if system else ""
        raise JobError(
            f"the base model's chat template refuses this job ({told}): {without}set chat_template to false",
            code="chat_template",
        ) from error
    assert isinstance(text, str)
    return text


class ScoredToken(NamedTuple):
    """A token to score: the output at `column` of a row predicts `token`, which belongs to choice `choice`."""

    column: int
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

    @property
    def positions(self) -> int:
        """Number of positions whose logits are needed."""
        return len({each.column for each in self.scored})

    def after(self, first: int) -> "Row":
        """The row without its `first` first tokens, which must be fewer than the prompt's tokens."""
        scored = tuple(each._replace(column=each.column - first) for each in self.scored)
        return Row(self.prompt[first:], self.branches, scored)

    def divided(self, most_positions: int) -> Iterator["Row"]:
        """The row several times, each time with at most `most_positions` of the positions to score."""
        columns = sorted({each.column for each in self.scored})
        for start in range(0, len(columns), most_positions):
            some = {*columns[start : start + most_positions]}
            yield replace(self, scored=tuple(each for each in self.scored if each.column in some))


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt and its choices, tokenised. The counts have one number for each choice."""

    rows: tuple[Row, ...]
    prompt_tokens: int
    token_counts: tuple[int, ...]
    character_counts: tuple[int, ...]
    """Number of characters of each choice, without the white space before it; acc_norm divides by it."""

    def after(self, first: int) -> "Question":
        """The question without the first tokens of its rows (`Row.after`)."""
        return replace(self, rows=tuple(row.after(first) for row in self.rows))

    def parts(self, most_tokens: int, most_positions: int) -> Iterator["Question"]:
        """The question divided into parts. A part has at most `most_tokens` tokens with padding, or a single row; and
        logits are needed at no more than `most_positions` of its positions.

        The log-likelihood of a choice is the sum over the parts, because each of its tokens is scored in one part.
        """
        rows: list[Row] = []
        width = positions = 0
        for row in chain.from_iterable(row.divided(most_positions) for row in self.rows):
            length = len(row.tokens)
            positions += row.positions
            if rows and ((len(rows) + 1) * max(width, length) > most_tokens or positions > most_positions):
                yield replace(self, rows=tuple(rows))
                rows, width, positions = [], 0, row.positions
            rows.append(row)
            width = max(width, length)
        yield replace(self, rows=tuple(rows))


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


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str, *, rendered: bool = False) -> list[int]:
    """The token ids of a prompt, as `encode_texts` returns them. Raises JobError 'prompt_blank' if there are none,
    because some tokenizers drop characters that they don't know."""
    if found := encode_texts(tokenizer, [prompt], rendered=rendered)[0]:
        return found
    raise JobError("prompt has no characters that the base model's tokenizer knows: write others", code="prompt_blank")


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

    White space at the end of the prompt is moved to the start of the choice; if there is none, a space is added.
    Prompt and choice are tokenised together. If the prompt alone has n tokens, all after the first n belong to the
    choice. If the tokenizer merges characters of both into one token, this rule would lose a part of the choice, so the
    choice is tokenised alone.

    The choices are branches of one row, or of several rows if one row would be longer than ROW_TOKENS and longer than
    twice the prompt, or longer than BRANCHED_TOKENS or the context. Without `shared_prompt`, for models that can't
    branch (`shares_prompts`), each choice has its own row. A choice of one token needs no branch. Choices share a row
    only if prompt and choice together are on the same side of each of `length_limits` (`longrope.length_limits`),
    because the prompt's keys depend on that. After a prompt that a chat template has `rendered`, a choice follows
    without a space, because it is the whole reply.

    Raises JobError 'prompt_too_long', which gives the number of tokens and the limit (or of characters, if these are so
    many that they are not tokenised), and 'prompt_blank' or 'choice_blank' if the prompt, or a choice, has only white
    space or no token.
    """
    context = prompt if rendered else prompt.rstrip()
    if not context:
        raise JobError("prompt is blank: write a text that the choices continue", code="prompt_blank")
    gap = "" if rendered else prompt[len(context) :] or " "
    characters = sum(len(prompt) + len(choice) for choice in choices)
    if characters > MOST_CHARACTERS:
        raise JobError(
            f"prompt and choices have {characters:,} characters if the prompt is counted with each choice; the worker "
            f"takes at most {MOST_CHARACTERS:,}: shorten the prompt, or give fewer choices",
            code="prompt_too_long",
        )
    start = encode_prompt(tokenizer, context, rendered=rendered)
    # Check early, before the prompt is tokenised again with each of up to a thousand choices.
    check_length(len(start), context_length, "prompt")
    bare, *wholes = encode_texts(tokenizer, [context + gap + choice for choice in ("", *choices)], rendered=rendered)
    continuations = [
        _continuation(tokenizer, start, whole, gap + choice) for whole, choice in zip(wholes, choices, strict=True)
    ]
    for choice, whole, ids in zip(choices, wholes, continuations, strict=True):
        if whole == bare or not ids:
            raise JobError(
                f"choice {choice[:100]!r} has no characters that the base model's tokenizer knows: write others",
                code="choice_blank",
            )
    # Minus 1, because the last token is only predicted and never an input.
    longest = len(start) + max(map(len, continuations)) - 1
    check_length(longest, context_length, "prompt and its longest choice")
    # GPT-Neo and BigBird can't run a row that is longer than their context, even if its positions stay within it.
    limit = min(max(ROW_TOKENS, 2 * len(start)), BRANCHED_TOKENS, context_length) if shared_prompt else 0
    alike: dict[int, dict[int, list[int]]] = {}
    for number, ids in enumerate(continuations):
        alike.setdefault(frequencies_of(len(start) + len(ids) - 1, length_limits), {})[number] = ids
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

    The keys of `continuations` are the numbers of the choices. Equal choices share a branch, so that their scores are
    equal to the last bit.
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
        columns = (last, *range(length, length + len(branch) - 1))
        scored += (
            ScoredToken(column, token, choice)
            for choice in choices
            for column, token in zip(columns, branch, strict=True)
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
