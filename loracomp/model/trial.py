"""Tries out a base model before it is registered: compares what a worker will do with plain passes of the model.

A plain pass is `model(input_ids)` over one row, without padding, and without positions, masks or a cache of ours.
"""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from loracomp.errors import JobError, LoracompError, RefusedError
from loracomp.model.batching import unless_out_of_memory
from loracomp.model.cpu import ROW_TOKENS
from loracomp.model.generation import ALIKE, Ready, Texts
from loracomp.model.loading import BaseModel
from loracomp.model.prefix import read_prefix
from loracomp.model.scoring import log_likelihoods
from loracomp.model.text import Prompt, Text
from loracomp.model.tokens import Question, Row, ScoredToken, encode_choices, encode_texts

PROMPTS = ("A cup of tea", "A cup of tea with milk and a little sugar", "A cup of tea")
CHOICES = ("is hot", "sleeps", "and another one")
NATS = {torch.float32: 1e-3}
"""Largest allowed difference in nats of a choice's log-likelihood from a plain pass; in 16 bits it is MORE_NATS."""
MORE_NATS = 0.2
MOVED = {torch.float32: 1e-3}
"""Largest allowed share of probability that moves to other tokens, averaged over a text; in 16 bits MORE_MOVED."""
MORE_MOVED = 0.02


@dataclass(frozen=True)
class Way:
    """How the rows of a trial go through the model, by the number of each row's prompt."""

    serving: Callable[[Sequence[int], int], Ready] = lambda *_: nullcontext
    """Prepares passes of a worker over rows of these prompts, with a number of tokens for each."""
    plain: Callable[[int], AbstractContextManager[None]] = lambda _: nullcontext()
    """A context for plain passes over a row of this prompt."""
    rounding: float = 1
    """How many times as large the differences may be in 16 bits."""

    def allows(self, difference: float, dtype: torch.dtype, exact: Mapping[torch.dtype, float], other: float) -> bool:
        """Whether the difference can be rounding; NaN can't."""
        return difference <= exact.get(dtype, other * self.rounding)


ALONE = Way()
"""The base model without adapters."""


@torch.inference_mode()
def try_out(base: BaseModel) -> None:
    """Raise RefusedError, which names the source, unless a worker can serve the model.

    The model must be causal (later tokens do not change earlier logits), give finite logits, have an embedding for each
    token of its tokenizer, and score and generate in a batch as in plain passes.
    """
    with _refused(base, "has no tokenizer that fits it"):
        _check_tokenizer(base)
    with _refused(base, "cannot run"):
        _check_logits(base)
    with _refused(base, "cannot score choices in a batch"):
        _in_doubt_exactly(base, check_scores)
        _in_doubt_exactly(base, _check_long_row)
    with _refused(base, "cannot generate in a batch"):
        _in_doubt_exactly(base, check_texts)


def _in_doubt_exactly(base: BaseModel, check: Callable[[BaseModel], None]) -> None:
    """Run a check; if it fails in 16 bits, again in float32, because the difference may be rounding."""
    try:
        check(base)
    except RefusedError:
        if base.model.dtype == torch.float32:
            raise
        with in_float32(base):
            check(base)


@contextlib.contextmanager
def in_float32(base: BaseModel) -> Iterator[None]:
    """Within this context the model computes in float32, unless it is quantised.

    Raises RefusedError if memory doesn't suffice for that.
    """
    dtype = base.model.dtype
    if dtype == torch.float32 or getattr(base.model, "is_quantized", False):
        yield
        return
    try:
        if unless_out_of_memory(base.model.float) is None:
            raise _refusal(
                base,
                "gives other numbers in a batch, and there is too little memory to find out in float32 whether that is "
                "only rounding: use a machine with more memory",
            )
        yield
    finally:
        base.model.to(dtype)


@contextlib.contextmanager
def _refused(base: BaseModel, what: str) -> Iterator[None]:
    """Turn any error of the model's code into a RefusedError that says what the model cannot do."""
    try:
        yield
    except RefusedError:
        raise
    except Exception as error:
        detail = str(error) if isinstance(error, LoracompError) else f"{type(error).__name__}: {error}"
        raise _refusal(base, f"{what}: {detail.strip().partition(chr(10))[0]}") from error


def _refusal(base: BaseModel, what: str) -> RefusedError:
    return RefusedError(f"model source {base.source!r} ({base.architecture}) {what}")


def _check_tokenizer(base: BaseModel) -> None:
    rows = base.model.get_input_embeddings().num_embeddings
    largest = max(base.tokenizer.get_vocab().values(), default=-1)
    if not 0 <= largest < rows:
        raise _refusal(base, f"has embeddings for {rows} tokens, but its tokenizer's largest token id is {largest}")


def _check_logits(base: BaseModel) -> None:
    tokens = encode_texts(base.tokenizer, [PROMPTS[1]])[0]
    half, rows = len(tokens) // 2, base.model.get_input_embeddings().num_embeddings
    other = [*tokens[:half], *((token + 1) % rows for token in tokens[half:])]
    texts = torch.tensor([tokens, other], device=base.model.get_input_embeddings().weight.device)
    first, second = (base.model(text[None], use_cache=False).logits[0].float() for text in texts)
    if not (first.isfinite().all() and second.isfinite().all()):
        raise _refusal(base, "gives NaN or infinity")
    difference = (first[:half] - second[:half]).abs().max() / first.abs().max()
    # A model that attends to later tokens differs by more than this, even if it was never trained.
    if difference > (1e-4 if base.model.dtype == torch.float32 else 0.02):
        raise _refusal(base, "is no causal language model: later tokens change its output at earlier positions")


@torch.inference_mode()
def check_scores(base: BaseModel, way: Way = ALONE) -> None:
    """Raise RefusedError unless choices score in a batch as in plain passes."""
    questions = [
        encode_choices(base.tokenizer, prompt, CHOICES, base.context_length, shared_prompt=base.shares_prompts)
        for prompt in PROMPTS
    ]
    rows = [number for number, question in enumerate(questions) for _ in question.rows]
    with way.serving(rows, max(len(row.tokens) for question in questions for row in question.rows))():
        found = log_likelihoods(base.model, questions)
    for number, (question, scores) in enumerate(zip(questions, found, strict=True)):
        with way.plain(number):
            expected = torch.stack([_plain_score(base, question, choice) for choice in range(len(CHOICES))])
        for each in (scores, *_after_a_prefix(base, way, number, question)):
            _compare(base, way, each, expected)


def _compare(base: BaseModel, way: Way, scores: Tensor, expected: Tensor) -> None:
    """Raise RefusedError unless scores in a batch are those of plain passes, except for rounding."""
    difference = float((scores - expected).abs().max())
    if not way.allows(difference, base.model.dtype, NATS, MORE_NATS):
        raise _wrong(base, f"scores choices differently in a batch than in a plain pass (by {difference:.3g} nats)")


def _check_long_row(base: BaseModel) -> None:
    """Raise RefusedError unless the last branch of a row sees the prompt even if it is as far away as branches get.

    A layer with a sliding window doesn't. `shares_prompts` looks for one in the model's settings, whose names it may
    not know, and the other rows of the trial are shorter than any window.
    """
    if not base.shares_prompts:
        return
    prompt, choice = encode_texts(base.tokenizer, [PROMPTS[1], CHOICES[-1]])
    between = (prompt * ROW_TOKENS)[: max(0, min(ROW_TOKENS, base.context_length) - len(prompt) - len(choice))]
    columns = (len(prompt) - 1, *range(len(prompt) + len(between), len(prompt) + len(between) + len(choice) - 1))
    scored = tuple(ScoredToken(column, token, 0) for column, token in zip(columns, choice, strict=True))
    row = Row(tuple(prompt), (tuple(between), tuple(choice[:-1])), scored)
    question = Question((row,), len(prompt), (len(choice),), (len(CHOICES[-1]),))
    _compare(base, ALONE, log_likelihoods(base.model, [question])[0], _plain_score(base, question, 0))


def _after_a_prefix(base: BaseModel, way: Way, number: int, question: Question) -> list[Tensor]:
    """The scores of the same question twice, in rows that continue the first half of the prompt; none if a worker would
    not score the question like that."""
    prompt = question.rows[0].prompt
    common = len(prompt) // 2
    if not (base.shares_prefixes and common):
        return []
    rest = question.after(common)
    with way.serving([number], common)():
        prefix = read_prefix(base.model, prompt[:common])
    with way.serving([number] * 2 * len(rest.rows), max(len(row.tokens) for row in rest.rows))():
        return log_likelihoods(base.model, [rest, rest], prefix)


def _plain_score(base: BaseModel, question: Question, choice: int) -> Tensor:
    tokens = [each.token for row in question.rows for each in row.scored if each.choice == choice]
    start = question.rows[0].prompt
    likely = _plain_pass(base, [*start, *tokens[:-1]])
    return likely[range(len(start) - 1, len(likely)), tokens].sum()


def _plain_pass(base: BaseModel, tokens: Sequence[int]) -> Tensor:
    """Log-probabilities [tokens, vocabulary] of what follows each token."""
    ids = torch.tensor([tokens], device=base.model.get_input_embeddings().weight.device)
    likely: Tensor = base.model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
    return likely


class _WatchedTexts(Texts):
    """Keeps the log-probabilities from which each token of a text was chosen."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.likely: defaultdict[Text, list[Tensor]] = defaultdict(list)

    def _take(self, texts: Sequence[Text], logits: Tensor) -> None:
        for text, scores in zip(texts, logits.float().log_softmax(-1), strict=True):
            self.likely[text].append(scores)
        super()._take(texts, logits)


@torch.inference_mode()
def check_texts(base: BaseModel, way: Way = ALONE) -> None:
    """Raise RefusedError unless texts are generated in a batch as in plain passes.

    A short text is running when two long ones join, which begin alike; they end at different steps.
    """
    short, longer = encode_texts(base.tokenizer, PROMPTS[:2])
    long = (longer * ALIKE)[: min(ALIKE + 8, base.context_length - 8)]
    prompts = [Prompt(short, 6), Prompt(long, 3), Prompt([*long[:-1], *short[:1]], 5)]
    texts = _WatchedTexts(
        base.model,
        base.tokenizer,
        lambda together, tokens: way.serving([text.item for text in together], tokens),
        shares_prefixes=base.shares_prompts,
    )
    added = [texts.add(prompts[0], item=0, composition=0)]
    texts.step()
    added += [texts.add(prompts[1], item=1, composition=1), texts.add(prompts[2], item=1, composition=1)]
    while texts:
        texts.step()
    for text in added:
        if isinstance(error := text.result(), JobError):
            raise error
        with way.plain(text.item):
            expected = _plain_pass(base, text.read[:-1])[len(text.prompt.tokens) - 1 :].exp()
        moved = float((torch.stack(texts.likely[text]).exp() - expected).abs().sum(-1).mean() / 2)
        if not way.allows(moved, base.model.dtype, MOVED, MORE_MOVED):
            raise _wrong(base, f"generates differently in a batch than in plain passes (by {moved:.2g} of probability)")


def _wrong(base: BaseModel, what: str) -> RefusedError:
    return _refusal(base, f"{what}: workers would give wrong answers with this architecture")
