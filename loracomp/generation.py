"""Greedy generation for a batch of prompts, each with its own length limit and stop strings."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Prompt:
    """A tokenised prompt, and when its answer ends."""

    tokens: Sequence[int]
    max_new_tokens: int
    stop: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Generated:
    """The text after a prompt, cut before the first stop string and before end-of-text."""

    text: str
    tokens: int
    """Generated until it ended, those of the stop string included, end-of-text not."""
    finite: bool
    """False where the model gave NaN or infinity at any step: the text is then worthless."""


def generate(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]) -> list[Generated]:
    """The most likely token at each step, until end-of-text, a stop string or max_new_tokens, for each prompt.

    transformers' `generate` with a KV cache, over prompts padded on the left; row i is prompts[i]. Penalties and
    sampling that the model's own generation settings ask for are not applied.
    """
    end_tokens = _end_tokens(model, tokenizer)
    input_ids, attention_mask = pad_left([prompt.tokens for prompt in prompts], model.device)
    ends = _Ends(tokenizer, prompts, end_tokens, input_ids.shape[1])
    finite = _Finite(len(prompts), model.device)
    output = model.generate(
        input_ids=input_ids,
        attention_mask=attention_mask,
        generation_config=_greedy(max(prompt.max_new_tokens for prompt in prompts), end_tokens),
        stopping_criteria=[ends],
        logits_processor=[finite],
    )
    new_tokens = output[:, input_ids.shape[1] :].tolist()
    return [
        Generated(*_cut(tokenizer, tokens[: ends.at[row]], prompt.stop, end_tokens), bool(finite.rows[row]))
        for row, (tokens, prompt) in enumerate(zip(new_tokens, prompts, strict=True))
    ]


def pad_left(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask [rows, longest], padded on the left: all next tokens follow the last column."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids.to(device), mask.to(device)


def _greedy(max_new_tokens: int, end_tokens: list[int]) -> GenerationConfig:
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        # At their neutral values: unset, they would be taken from the model's own settings.
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        temperature=1.0,
        top_k=50,
        top_p=1.0,
        eos_token_id=end_tokens,
        pad_token_id=0,
    )


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that end a text, by the model's settings (one or several) and by the tokenizer."""
    of_model = model.generation_config.eos_token_id
    ids = of_model if isinstance(of_model, list) else [of_model]
    return sorted({id_ for id_ in [*ids, tokenizer.eos_token_id] if id_ is not None})


class _Ends:
    """A stopping criterion with one answer a row; keeps in `at` after how many new tokens each row ended."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], end_tokens: list[int], width: int
    ) -> None:
        self.at: list[int | None] = [None] * len(prompts)
        self._tokenizer, self._prompts, self._end_tokens, self._width = tokenizer, prompts, end_tokens, width

    def __call__(self, input_ids: Tensor, _scores: Any, **_: Any) -> Tensor:
        for row, tokens in enumerate(input_ids[:, self._width :].tolist()):
            if self.at[row] is None and self._has_ended(self._prompts[row], tokens):
                self.at[row] = len(tokens)
        return torch.tensor([at is not None for at in self.at], device=input_ids.device)

    def _has_ended(self, prompt: Prompt, tokens: list[int]) -> bool:
        if len(tokens) >= prompt.max_new_tokens or tokens[-1] in self._end_tokens:
            return True
        return bool(prompt.stop) and any(stop in _decode(self._tokenizer, tokens) for stop in prompt.stop)


class _Finite:
    """A logits processor that changes nothing, and notes the rows whose logits were all finite so far."""

    def __init__(self, rows: int, device: torch.device) -> None:
        self.rows = torch.ones(rows, dtype=torch.bool, device=device)

    def __call__(self, _input_ids: Tensor, scores: Tensor) -> Tensor:
        self.rows &= scores.amax(-1).isfinite()  # the largest is NaN where any is
        return scores


def _cut(
    tokenizer: PreTrainedTokenizerBase, tokens: list[int], stop: Sequence[str], end_tokens: list[int]
) -> tuple[str, int]:
    """Text and token count of what was generated, without the end-of-text token and what begins with a stop string."""
    if tokens and tokens[-1] in end_tokens:
        tokens = tokens[:-1]
    text = _decode(tokenizer, tokens)
    found = [at for s in stop if (at := text.find(s)) >= 0]
    return text[: min(found, default=len(text))], len(tokens)


def _decode(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> str:
    text: str = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text
