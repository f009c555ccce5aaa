"""Tries out a base model before it is registered: runs what a worker will need, with a few tokens."""

import contextlib
from collections.abc import Iterator, Sequence

import torch

from loracomp.errors import LoracompError, RefusedError
from loracomp.model.generation import generate
from loracomp.model.loading import BaseModel
from loracomp.model.scoring import encode_choices, encode_texts, log_likelihoods
from loracomp.model.text import Generated, Prompt

PROMPTS = ("A cup of tea", "A cup of tea with milk and a little sugar")
CHOICES = ("is hot", "sleeps", "and another one")
NATS = {torch.float32: 1e-3}
"""Largest allowed difference in nats of a choice's log-likelihood in a batch vs. alone; in 16 bits it is MORE_NATS."""
MORE_NATS = 0.5


@torch.inference_mode()
def try_out(base: BaseModel) -> None:
    """Raise RefusedError, which names the source, unless a worker can serve the model.

    The model must be causal (later tokens do not change earlier logits), give finite logits, have an embedding for each
    token of its tokenizer, and score and generate in a padded batch the same as in a batch of one.
    """
    with _refused(base, "has no tokenizer that fits it"):
        _check_tokenizer(base)
    with _refused(base, "cannot run"):
        _check_logits(base)
    with _refused(base, "cannot score choices in a batch"):
        _check_scores(base)
    with _refused(base, "cannot generate in a batch"):
        _check_generation(base)


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


def _check_scores(base: BaseModel) -> None:
    questions = [
        encode_choices(base.tokenizer, prompt, CHOICES, base.context_length, shared_prompt=base.shares_prompts)
        for prompt in PROMPTS
    ]
    together = log_likelihoods(base.model, questions)
    alone = [log_likelihoods(base.model, [question])[0] for question in questions]
    difference = max(float((a - b).abs().max()) for a, b in zip(together, alone, strict=True))
    if not difference <= NATS.get(base.model.dtype, MORE_NATS):
        raise _refusal(base, f"scores choices differently in a batch than alone (by {difference:.3g} nats)")


def _check_generation(base: BaseModel) -> None:
    # Two lengths and limits, so that one prompt is padded and one ends before the other.
    prompts = [
        Prompt(tokens, count) for tokens, count in zip(encode_texts(base.tokenizer, PROMPTS), (2, 5), strict=True)
    ]
    together = _generated(base, prompts)
    alone = [_generated(base, [prompt])[0] for prompt in prompts]
    # In 16 bits two tokens can have equal logits, so that either may be chosen: compare in float32 only.
    if base.model.dtype == torch.float32 and [each.text for each in together] != [each.text for each in alone]:
        raise _refusal(base, "generates different text in a batch than alone")


def _generated(base: BaseModel, prompts: Sequence[Prompt]) -> list[Generated]:
    return [each for each in generate(base.model, base.tokenizer, prompts) if isinstance(each, Generated)]
