"""Generation for a batch of prompts, greedy or sampled, each with its own length limit, stop strings and seed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation import GenerateDecoderOnlyOutput

CACHE = "cache" if "cache" in GenerateDecoderOnlyOutput.__dataclass_fields__ else "past_key_values"
"""What this release of transformers calls the keys and values of what has been read."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A tokenised prompt, how its answer is drawn, and when it ends."""

    tokens: Sequence[int]
    max_new_tokens: int
    stop: Sequence[str] = ()
    temperature: float = 0.0
    """0: the most likely token at each step; else one drawn from softmax(logits / temperature)."""
    top_p: float = 1.0
    """It is drawn from the fewest tokens whose probability reaches this."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Generated:
    """The text after a prompt, cut before the first stop string and before end-of-text."""

    text: str
    tokens: int
    """Generated until it ended, those of the stop string included, end-of-text not."""
    finite: bool
    """False where the model gave NaN or infinity at any step: the text is then worthless."""
    finish_reason: str = "length"
    """What ended it: end_of_text, stop, length (max_new_tokens), or no_tokens: end-of-text came first."""


Under = Callable[[Sequence[int]], AbstractContextManager[None]]
"""Lets a batch of the prompts of these numbers go through the model, each under what is its own."""


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    under: Under = lambda _: nullcontext(),
    wanted: Sequence[Callable[[], bool]] | None = None,
) -> list[Generated | None]:
    """Tokens until end-of-text, a stop string or max_new_tokens, for each prompt, one KV cache for all.

    transformers' `generate`, over prompts padded on the left. Rows that have ended leave the batch, half of it at a
    time: each time the cache and the factors of the rest are copied. What is drawn for a row depends on its seed and
    logits alone, not on its neighbours. Penalties and sampling that the model's own generation settings ask for are not
    applied. Whether a row is wanted is asked with each of its tokens: one that is not, for good, ends and gives None.
    """
    wants = wanted or [lambda: True for _ in prompts]
    ends = _end_tokens(model, tokenizer)
    rows = [_Row(prompt, tokenizer, ends, want) for prompt, want in zip(prompts, wants, strict=True)]
    input_ids, attention_mask = pad_left([prompt.tokens for prompt in prompts], model.device)
    running, cache = list(range(len(rows))), None
    while running:
        with under(running), _contiguous_head(model):
            output = _until_half_have_ended(model, [rows[i] for i in running], input_ids, attention_mask, cache)
        going_on = [place for place, i in enumerate(running) if not rows[i].ended]
        running = [running[place] for place in going_on]
        if running:
            input_ids = output.sequences[going_on]
            new = input_ids.new_ones(len(running), input_ids.shape[1] - attention_mask.shape[1])
            attention_mask = torch.cat([attention_mask[going_on], new], dim=1)
            if (cache := getattr(output, CACHE, None)) is not None:
                cache.batch_select_indices(torch.tensor(going_on, device=input_ids.device))
    return [row.result() if row.wanted() else None for row in rows]


def pad_left(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask [rows, longest], padded on the left: all next tokens follow the last column."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids.to(device), mask.to(device)


@contextmanager
def _contiguous_head(model: PreTrainedModel) -> Iterator[None]:
    """Let the output head see rows side by side in memory.

    Of the prompts it gets a slice, the last column; torch would copy the head's weights for each row to multiply that.
    """
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda _, args: (args[0].contiguous(), *args[1:]))
    try:
        yield
    finally:
        handle.remove()


def _until_half_have_ended(
    model: PreTrainedModel, rows: "Sequence[_Row]", input_ids: Tensor, attention_mask: Tensor, cache: Any
) -> Any:
    """Continue generating from `input_ids`. `cache`, if given, has the keys and values of all columns but the last."""
    return model.generate(
        input_ids=input_ids,
        attention_mask=attention_mask,
        generation_config=_settings(max(row.tokens_left for row in rows), rows[0].end_tokens),
        stopping_criteria=[_Ends(rows)],
        logits_processor=[_Chooses(rows)],
        **({} if cache is None else {CACHE: cache}),
    )


def _settings(max_new_tokens: int, end_tokens: list[int]) -> GenerationConfig:
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
        return_dict_in_generate=True,
    )


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that end a text, by the model's settings (one or several) and by the tokenizer."""
    of_model = model.generation_config.eos_token_id
    ids = of_model if isinstance(of_model, list) else [of_model]
    return sorted({id_ for id_ in [*ids, tokenizer.eos_token_id] if id_ is not None})


class _Row:
    """What was generated for a prompt so far."""

    def __init__(
        self, prompt: Prompt, tokenizer: PreTrainedTokenizerBase, end_tokens: list[int], wanted: Callable[[], bool]
    ) -> None:
        self.prompt = prompt
        self.wanted = wanted
        self.tokens: list[int] = []
        self.finite = True
        self.end_tokens = end_tokens
        # On the CPU, so that another device draws the same.
        self.generator = torch.Generator().manual_seed(prompt.seed)
        self._tokenizer = tokenizer

    @property
    def tokens_left(self) -> int:
        return self.prompt.max_new_tokens - len(self.tokens)

    @property
    def ended(self) -> bool:
        if not self.wanted() or self.tokens_left <= 0 or (self.tokens and self.tokens[-1] in self.end_tokens):
            return True
        return bool(self.prompt.stop) and any(stop in self._text(self.tokens) for stop in self.prompt.stop)

    def result(self) -> Generated:
        """Without the end-of-text token, and without what begins with a stop string."""
        at_end = bool(self.tokens) and self.tokens[-1] in self.end_tokens
        tokens = self.tokens[:-1] if at_end else self.tokens
        text = self._text(tokens)
        found = [at for stop in self.prompt.stop if (at := text.find(stop)) >= 0]
        reason = "no_tokens" if not tokens else "stop" if found else "end_of_text" if at_end else "length"
        return Generated(text[: min(found, default=len(text))], len(tokens), self.finite, reason)

    def _text(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


class _Ends:
    """A stopping criterion: notes each new token, and stops all rows when half of them, or the last one, has ended."""

    def __init__(self, rows: Sequence[_Row]) -> None:
        self._rows = rows
        self._ended = [False] * len(rows)

    def __call__(self, input_ids: Tensor, _scores: Any, **_: Any) -> Tensor:
        for place, (row, token) in enumerate(zip(self._rows, input_ids[:, -1].tolist(), strict=True)):
            if not self._ended[place]:
                row.tokens.append(token)
                self._ended[place] = row.ended
        stop = 2 * sum(self._ended) >= len(self._ended)
        return torch.tensor([stop or ended for ended in self._ended], device=input_ids.device)


class _Chooses:
    """A logits processor that leaves to each sampled row its drawn token alone, and notes rows that are not finite."""

    def __init__(self, rows: Sequence[_Row]) -> None:
        self._rows = rows
        self._sampled = [place for place, row in enumerate(rows) if row.prompt.temperature > 0]

    def __call__(self, _input_ids: Tensor, scores: Tensor) -> Tensor:
        largest = scores.amax(-1)  # NaN where any is
        for row, finite in zip(self._rows, largest.isfinite().tolist(), strict=True):
            row.finite &= finite
        if not self._sampled:
            return scores
        drawn = _draw([self._rows[place] for place in self._sampled], scores[self._sampled])
        chosen = torch.full_like(scores[self._sampled], -torch.inf).scatter_(1, drawn[:, None], 0.0)
        return scores.index_copy(0, torch.tensor(self._sampled, device=scores.device), chosen)


def _draw(rows: Sequence[_Row], logits: Tensor) -> Tensor:
    """A token for each row of logits [rows, vocabulary], by its temperature, top_p and generator: [rows]."""
    settings = [(row.prompt.temperature, row.prompt.top_p) for row in rows]
    temperature, top_p = torch.tensor(settings, device=logits.device).T[:, :, None]
    # From the largest down, so that no temperature above 0 makes infinities of logits, however small; one that is none
    # in float32 is taken for the smallest, which is greedy all the same.
    below = logits.float() - logits.float().amax(-1, keepdim=True)
    probabilities = (below / temperature.clamp(min=torch.finfo(torch.float32).tiny)).softmax(-1)
    # Ranked by probability, the fewest whose sum reaches top_p: those before which it is not reached yet.
    ranked, tokens = probabilities.sort(dim=-1, descending=True, stable=True)
    reached = ranked.cumsum(-1)
    mass = (ranked * (reached - ranked < top_p)).cumsum(-1)
    points = torch.stack([torch.rand((), generator=row.generator) for row in rows]).to(logits.device)
    place = torch.searchsorted(mass, points[:, None] * mass[:, -1:], right=True)
    drawn: Tensor = tokens.gather(1, place.clamp(max=tokens.shape[1] - 1))[:, 0]
    return drawn
