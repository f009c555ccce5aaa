"""A text that is being generated: its prompt, its tokens so far, how the next one is drawn, and when it ends."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loracomp.errors import JobError

SPARE = 16
"""Characters decoded before the place where a stop text may begin, because the first and the last decoded token may
have a part of a character."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A tokenised prompt, how its answer is drawn, and when the answer ends."""

    tokens: Sequence[int]
    max_new_tokens: int
    stop: Sequence[str] = ()
    temperature: float = 0.0
    """0: the most likely token at each step; above 0: one drawn from softmax(logits / temperature)."""
    top_p: float = 1.0
    """Tokens are drawn from the fewest whose probabilities add up to this (nucleus sampling)."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Generated:
    """The text after a prompt, cut before the first stop string and before the end-of-text token."""

    text: str
    """It ends with a whole character: if max_new_tokens ended it within one, that character is left out."""
    tokens: int
    """Number of generated tokens, including the stop string's tokens, but not the end-of-text token."""
    finite: bool
    """False if the model gave NaN or infinity at any step, which makes the text worthless."""
    finish_reason: str = "length"
    """What ended it: end_of_text, stop, length (max_new_tokens), or no_tokens: end-of-text came first."""


class Text:
    """A prompt and what has been generated for it so far."""

    rows = positions = 1
    """Number of rows in a batch, and of positions whose logits are needed (`batching.Sized`)."""

    def __init__(
        self,
        prompt: Prompt,
        tokenizer: PreTrainedTokenizerBase,
        end_tokens: Sequence[int],
        *,
        item: Any = None,
        composition: Hashable = None,
        wanted: Callable[[], bool] = lambda: True,
        background: bool = False,
        submitter: str | None = None,
    ) -> None:
        """`item` is for the caller's use. Texts with equal `composition` run under the same adapters and weights.

        The text ends as soon as `wanted` returns False. One in the background joins after all others. Submitters take
        turns.
        """
        self.prompt = prompt
        self.item = item
        self.composition = composition
        self.wanted = wanted
        self.background = background
        self.submitter = submitter
        self.tokens: list[int] = []
        self.joined_at = 0
        """Number of tokens that it had when it joined the running texts."""
        self.finite = True
        self.error: JobError | None = None
        """Why generation can't go on."""
        self.in_own_pass = False
        """Whether its next forward pass has only this text and its own adapters, because its logits were not finite."""
        # On the CPU, so that a seed draws the same text on every device.
        self.generator = torch.Generator().manual_seed(prompt.seed)
        self._tokenizer = tokenizer
        self._end_tokens = end_tokens
        self._looked_at = 0
        """Number of tokens after which a stop text was last looked for."""
        self._has_ended = False
        """Whether a stop text was found."""

    @property
    def read(self) -> list[int]:
        """The model's input: the prompt and all generated tokens."""
        return [*self.prompt.tokens, *self.tokens]

    @property
    def width(self) -> int:
        """Number of tokens in `read`."""
        return len(self.prompt.tokens) + len(self.tokens)

    @property
    def longest(self) -> int:
        """Number of tokens that `read` may grow to."""
        return len(self.prompt.tokens) + self.prompt.max_new_tokens

    @property
    def ended(self) -> bool:
        """Whether no more tokens are to be generated."""
        if self.error or not self.finite or not self.wanted() or len(self.tokens) >= self.prompt.max_new_tokens:
            return True
        if self.tokens and self.tokens[-1] in self._end_tokens:
            return True
        if self._looked_at != len(self.tokens):
            self._looked_at, self._has_ended = len(self.tokens), bool(self.prompt.stop) and self._has_stop()
        return self._has_ended

    def had_turn(self, tokens: int) -> bool:
        """Whether it has got this many tokens since it joined the running texts."""
        return len(self.tokens) - self.joined_at >= tokens

    def result(self) -> Generated | JobError | None:
        """The finished text, or the error that ended it; None if the text is no longer wanted."""
        if self.error or not self.wanted():
            return self.error
        at_end = bool(self.tokens) and self.tokens[-1] in self._end_tokens
        tokens = self.tokens[:-1] if at_end else self.tokens
        text = self._decoded(tokens) if at_end else self._whole(tokens)
        found = [at for stop in self.prompt.stop if (at := text.find(stop)) >= 0]
        reason = "no_tokens" if not tokens else "stop" if found else "end_of_text" if at_end else "length"
        return Generated(text[: min(found, default=len(text))], len(tokens), self.finite, reason)

    def _has_stop(self) -> bool:
        """Whether a stop text has been generated. It then ends in the last token, because this looks for stop texts
        after each token.

        Therefore only the last tokens are decoded: the last one, and before it as many tokens as the longest stop text
        has characters. The decoded text may begin within a character, so a stop text that it seems to contain is looked
        for in the whole text.
        """
        stops = self.prompt.stop
        enough = max(map(len, stops)) + SPARE
        count = enough
        while len(self._decoded(self.tokens[-count:-1])) < enough and count < len(self.tokens):
            count *= 2
        return all(_any_in(stops, self._whole(tokens)) for tokens in (self.tokens[-count:], self.tokens))

    def _whole(self, tokens: list[int]) -> str:
        """Decode tokens, but leave out a last character that is incomplete.

        An incomplete character is decoded as U+FFFD. So is a U+FFFD that the model wrote, but that one has the tokens
        that it is encoded as, which are at most its three bytes.
        """
        text = self._decoded(tokens)
        if not text.endswith("\ufffd"):
            return text
        if self._tokenizer.encode(text[-SPARE:], add_special_tokens=False)[-3:] == tokens[-3:]:
            return text
        return text.rstrip("\ufffd")

    def _decoded(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


def _any_in(stops: Sequence[str], text: str) -> bool:
    return any(stop in text for stop in stops)


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that end a text, from the model's settings (one or several) and from the tokenizer."""
    of_model = model.generation_config.eos_token_id
    ids = of_model if isinstance(of_model, list) else [of_model]
    return sorted({id_ for id_ in [*ids, tokenizer.eos_token_id] if id_ is not None})


def draw(texts: Sequence[Text], logits: Tensor) -> Tensor:
    """Draw a token for each text from logits [texts, vocabulary], by its temperature, top_p and generator: [texts]."""
    settings = [(text.prompt.temperature, text.prompt.top_p) for text in texts]
    temperature, top_p = torch.tensor(settings, device=logits.device).T[:, :, None]
    # Subtract the largest logit first, so that dividing by a small temperature gives no infinity. A temperature that
    # float32 rounds to 0 is replaced by the smallest number, which picks the most likely token all the same.
    below = logits.float() - logits.float().amax(-1, keepdim=True)
    probabilities = (below / temperature.clamp(min=torch.finfo(torch.float32).tiny)).softmax(-1)
    # The nucleus: the most probable tokens, until their probabilities add up to top_p.
    ranked, tokens = probabilities.sort(dim=-1, descending=True, stable=True)
    reached = ranked.cumsum(-1)
    mass = (ranked * (reached - ranked < top_p)).cumsum(-1)
    points = torch.stack([torch.rand((), generator=text.generator) for text in texts]).to(logits.device)
    rank = torch.searchsorted(mass, points[:, None] * mass[:, -1:], right=True)
    drawn: Tensor = tokens.gather(1, rank.clamp(max=tokens.shape[1] - 1))[:, 0]
    return drawn
