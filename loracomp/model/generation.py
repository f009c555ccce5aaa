"""Generation, greedy or sampled: texts join and leave a running batch at every step, each under what is its own."""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from inspect import signature
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.generation import GenerateDecoderOnlyOutput

from loracomp.errors import JobError
from loracomp.model.batching import batches, out_of_memory, unless_out_of_memory
from loracomp.model.row_cache import RowCache
from loracomp.model.scoring import pad_right

CACHE = "cache" if "cache" in GenerateDecoderOnlyOutput.__dataclass_fields__ else "past_key_values"
"""What this release of transformers calls the keys and values of what has been read."""
ALIKE = 32
"""Prompts share what they begin with from so many tokens on: for fewer, a pass of its own costs more."""


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


class Text:
    """A prompt and what was generated for it so far."""

    rows = 1

    def __init__(
        self,
        prompt: Prompt,
        tokenizer: PreTrainedTokenizerBase,
        end_tokens: Sequence[int],
        *,
        of: Any = None,
        under: Hashable = None,
        wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        """`of` is the caller's. Texts with the same `under` go through the model under the same changes."""
        self.prompt = prompt
        self.of = of
        self.under = under
        self.wanted = wanted
        self.tokens: list[int] = []
        self.finite = True
        self.error: JobError | None = None
        """Why it cannot go on."""
        self.alone = False
        """Its next pass is its own, for one with others was not finite."""
        # On the CPU, so that another device draws the same.
        self.generator = torch.Generator().manual_seed(prompt.seed)
        self._tokenizer = tokenizer
        self._end_tokens = end_tokens

    @property
    def read(self) -> list[int]:
        """What the model is shown: the prompt and all that was generated."""
        return [*self.prompt.tokens, *self.tokens]

    @property
    def width(self) -> int:
        """Tokens of `read`."""
        return len(self.prompt.tokens) + len(self.tokens)

    @property
    def longest(self) -> int:
        """Tokens that it may come to."""
        return len(self.prompt.tokens) + self.prompt.max_new_tokens

    @property
    def ended(self) -> bool:
        """Whether nothing more is to be generated for it."""
        if self.error or not self.finite or not self.wanted() or len(self.tokens) >= self.prompt.max_new_tokens:
            return True
        if self.tokens and self.tokens[-1] in self._end_tokens:
            return True
        return bool(self.prompt.stop) and any(stop in self._decoded(self.tokens) for stop in self.prompt.stop)

    def result(self) -> Generated | JobError | None:
        """Without the end-of-text token, and without what begins with a stop string; None where nobody wants it."""
        if self.error or not self.wanted():
            return self.error
        at_end = bool(self.tokens) and self.tokens[-1] in self._end_tokens
        tokens = self.tokens[:-1] if at_end else self.tokens
        text = self._decoded(tokens)
        found = [at for stop in self.prompt.stop if (at := text.find(stop)) >= 0]
        reason = "no_tokens" if not tokens else "stop" if found else "end_of_text" if at_end else "length"
        return Generated(text[: min(found, default=len(text))], len(tokens), self.finite, reason)

    def _decoded(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


Pass = Callable[[], AbstractContextManager[None]]
Under = Callable[[Sequence[Text], int], Pass]
"""Gives what to enter for each pass of texts over so many tokens of each, so that each goes under its own."""


class Texts:
    """Texts that are generated together; a `step` is a token more for each.

    A step is a pass over the last token of every text that runs, and passes over what texts that join are to read. What
    is drawn for a text depends on its seed and logits alone, not on its neighbours. Penalties and sampling that the
    model's own generation settings ask for are not applied.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        under: Under = lambda *_: nullcontext,
        *,
        token_budget: int = 16384,
        pass_tokens: int = 16384,
        shares_prefixes: bool = False,
    ) -> None:
        """`token_budget` bounds the texts that run, times the longest that one of them may become.

        `pass_tokens`: see `batches`. `shares_prefixes`: whether what prompts under the same changes begin with is
        computed once.
        """
        self._model = model
        self._tokenizer = tokenizer
        self._under = under
        self._budget = token_budget
        self._pass_tokens = pass_tokens
        self._shares_prefixes = shares_prefixes
        self._end_tokens = _end_tokens(model, tokenizer)
        self._takes_positions = "position_ids" in signature(model.forward).parameters
        self._keeps = _keeps_what_it_has_read(model)
        self._waiting: deque[Text] = deque()
        self._running: list[Text] = []
        self._read = RowCache()
        self._pass: Pass | None = None
        """For the texts that run, until others do."""

    def __len__(self) -> int:
        return len(self._waiting) + len(self._running)

    def add(self, prompt: Prompt, **about: Any) -> Text:
        """A text that joins as soon as there is room; `about`: see `Text`."""
        text = Text(prompt, self._tokenizer, self._end_tokens, **about)
        self._waiting.append(text)
        return text

    @torch.inference_mode()
    def step(self) -> list[Text]:
        """A token more for each text that there is room for; gives those that have ended or are not wanted any more."""
        ended = self._let_go()
        joining = self._joining()
        if self._running:
            self._advance()
        for common, together in self._passes(joining):
            self._begin(common, together)
        return ended + self._let_go()

    def _let_go(self) -> list[Text]:
        ended = [text for text in (*self._running, *self._waiting) if text.ended]
        self._remove(ended)
        self._waiting = deque(text for text in self._waiting if text not in ended)
        return ended

    def _joining(self) -> list[Text]:
        """Those first in turn that there is room for; where nothing runs, one at least."""
        joining: list[Text] = []
        longest = max((text.longest for text in self._running), default=0)
        while self._waiting:
            longest, rows = max(longest, self._waiting[0].longest), len(self._running) + len(joining) + 1
            if rows > 1 and rows * longest > self._budget:
                break
            joining.append(self._waiting.popleft())
        return joining

    def _advance(self) -> None:
        """The next token of each text that runs, by one pass."""
        texts = list(self._running)
        logits = unless_out_of_memory(self._next_logits if self._keeps else partial(self._logits, texts))
        if logits is None:
            self._make_room(texts[len(texts) // 2 :])
        else:
            self._take(texts, logits)

    def _next_logits(self) -> Tensor:
        self._read.room_for_a_column()
        mask, positions = self._read.inputs(self._device)
        self._pass = self._pass or self._under(self._running, 1)
        ids = torch.tensor([text.tokens[-1:] for text in self._running], device=self._device)
        with self._pass():
            logits = self._forward(ids, mask, positions, self._read.cache)[:, -1]
        self._read.advance()
        return logits

    def _begin(self, common: int, texts: Sequence[Text]) -> None:
        """Let texts join, whose first `common` tokens are alike, by a pass over what they are to read: a token each."""
        cache = DynamicCache() if self._keeps else None
        logits = unless_out_of_memory(partial(self._joined, texts, common, cache))
        if logits is None:
            self._make_room(texts)
        else:
            self._running += texts
            self._pass = None
            self._take(texts, logits)

    def _joined(self, texts: Sequence[Text], common: int, cache: Cache | None) -> Tensor:
        if cache is None:
            return self._logits(texts)
        cache = self._beginning(texts, common) if common else cache
        logits = self._logits(texts, cache)
        self._read.append(cache, [text.width for text in texts])
        return logits

    def _beginning(self, texts: Sequence[Text], common: int) -> Cache:
        """Keys and values of the tokens that texts begin with, for each of them; what runs may have some already."""
        tokens = texts[0].read[:common]
        known, row = self._known(texts[0].under, tokens)
        cache = self._read.beginning(row, known) if known else DynamicCache()
        if known < common:
            self._logits(texts[:1], cache, common)
        cache.batch_repeat_interleave(len(texts))
        return cache

    def _known(self, under: Hashable, tokens: Sequence[int]) -> tuple[int, int]:
        """How many of the tokens a text that runs begins with, and its row."""
        rows = [
            (alike(text.prompt.tokens, tokens), row) for row, text in enumerate(self._running) if text.under == under
        ]
        known, row = max(rows, default=(0, 0))
        return (known, row) if known >= ALIKE else (0, 0)

    def _passes(self, texts: Sequence[Text]) -> Iterator[tuple[int, list[Text]]]:
        """Texts that go through the model together, and how many tokens they begin with that are computed once."""
        alone, others = [text for text in texts if text.alone], [text for text in texts if not text.alone]
        yield from ((0, [text]) for text in alone)
        rest: list[Text] = []
        for common, together in self._alike(others):
            if common:
                yield common, together
            else:
                rest += together
        yield from ((0, together) for together in batches(rest, self._budget, self._pass_tokens))

    def _alike(self, texts: Sequence[Text]) -> Iterator[tuple[int, list[Text]]]:
        if not (self._shares_prefixes and self._keeps):
            yield 0, list(texts)
            return
        groups: dict[Hashable, list[Text]] = {}
        for text in texts:
            groups.setdefault(text.under, []).append(text)
        for under, group in groups.items():
            for together in _runs_alike(sorted(group, key=lambda text: text.read)):
                # The last token of each is its own: its logits are needed.
                shortest = min(text.width for text in together) - 1
                common = min(alike(together[0].read, together[-1].read), shortest)
                if len(together) == 1:
                    common, _ = self._known(under, together[0].read[:common])
                yield common, together

    def _logits(self, texts: Sequence[Text], cache: Cache | None = None, until: int | None = None) -> Tensor:
        """Logits after what each text is to read, [texts, vocabulary], or after its first so many tokens.

        `cache` has the keys and values of the same number of first tokens of each, and gets those of the others.
        """
        known = 0 if cache is None else cache.get_seq_length()
        ids, mask = pad_right([text.read[known:until] for text in texts], self._device)
        last = mask.sum(1) - 1
        positions = torch.arange(known, known + ids.shape[1], device=self._device).expand_as(ids)
        mask = torch.cat([mask.new_ones(len(texts), known), mask], dim=1)
        entered = self._under(texts, ids.shape[1])
        with entered(), _head_at(self._model, last):
            return self._forward(ids, mask, positions, cache)[:, 0]

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Cache | None) -> Tensor:
        inputs = {"input_ids": ids, "attention_mask": mask, CACHE: cache, "use_cache": cache is not None}
        if self._takes_positions:
            inputs["position_ids"] = positions
        logits: Tensor = self._model(**inputs).logits
        return logits

    @property
    def _device(self) -> torch.device:
        device: torch.device = self._model.get_input_embeddings().weight.device
        return device

    def _take(self, texts: Sequence[Text], logits: Tensor) -> None:
        """The next token of each. One whose logits are not finite, maybe for its neighbours, is tried again alone."""
        scores = logits.float()
        finite = scores.amax(-1).isfinite().tolist()  # NaN where any is
        tokens = scores.argmax(-1).tolist()
        sampled = [place for place, text in enumerate(texts) if text.prompt.temperature > 0 and finite[place]]
        if sampled:
            drawn = _draw([texts[place] for place in sampled], scores[sampled]).tolist()
            for place, token in zip(sampled, drawn, strict=True):
                tokens[place] = token
        for text, token, is_finite in zip(texts, tokens, finite, strict=True):
            text.alone = not is_finite and len(texts) > 1
            text.finite = is_finite or text.alone
            if is_finite:
                text.tokens.append(token)
        self._put_back([text for text in texts if text.alone])

    def _make_room(self, texts: Sequence[Text]) -> None:
        """Memory ran out: these texts wait until fewer run. They will read again what they have generated."""
        together = {*self._running, *texts}
        if len(together) == 1:
            texts[0].error = out_of_memory()
        self._budget = min(self._budget, len(together) * max(text.longest for text in together) // 2)
        self._put_back(texts)

    def _put_back(self, texts: Sequence[Text]) -> None:
        self._remove(texts)
        self._waiting.extendleft(reversed(texts))

    def _remove(self, texts: Iterable[Text]) -> None:
        """Take texts out of those that run, where they do."""
        for text in texts:
            if text in self._running:
                row = self._running.index(text)
                if self._keeps:
                    self._read.drop(row)
                # As the cache does it.
                self._running[row] = self._running[-1]
                self._running.pop()
                self._pass = None


def generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]
) -> list[Generated | JobError | None]:
    """What the base model alone generates for each prompt, in one batch."""
    texts = Texts(model, tokenizer)
    asked = [texts.add(prompt) for prompt in prompts]
    while texts:
        texts.step()
    return [text.result() for text in asked]


def alike(one: Sequence[int], other: Sequence[int]) -> int:
    """How many first tokens are the same."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _runs_alike(texts: Sequence[Text]) -> Iterator[list[Text]]:
    """Sorted texts, cut where two neighbours don't begin alike."""
    run: list[Text] = []
    for text in texts:
        if run and alike(run[0].read, text.read) < ALIKE:
            yield run
            run = []
        run.append(text)
    yield run


@contextmanager
def _head_at(model: PreTrainedModel, last: Tensor) -> Iterator[None]:
    """Let the output head see but the place `last` of each row: logits come out as [rows, 1, vocabulary]."""

    def pick(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # Side by side in memory: for a slice torch would copy the head's weights for each row.
        rows = torch.arange(len(last), device=args[0].device)
        return (args[0][rows, last.to(args[0].device)][:, None], *args[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()


def _keeps_what_it_has_read(model: PreTrainedModel) -> bool:
    """Whether keys and values are all that a pass needs of those before. Else each one reads everything again."""
    layers = DynamicCache(config=model.config).layers
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


def _end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that end a text, by the model's settings (one or several) and by the tokenizer."""
    of_model = model.generation_config.eos_token_id
    ids = of_model if isinstance(of_model, list) else [of_model]
    return sorted({id_ for id_ in [*ids, tokenizer.eos_token_id] if id_ is not None})


def _draw(texts: Sequence[Text], logits: Tensor) -> Tensor:
    """A token for each text, of logits [texts, vocabulary], by its temperature, top_p and generator: [texts]."""
    settings = [(text.prompt.temperature, text.prompt.top_p) for text in texts]
    temperature, top_p = torch.tensor(settings, device=logits.device).T[:, :, None]
    # From the largest down, so that no temperature above 0 makes infinities of logits, however small; one that is none
    # in float32 is taken for the smallest, which is greedy all the same.
    below = logits.float() - logits.float().amax(-1, keepdim=True)
    probabilities = (below / temperature.clamp(min=torch.finfo(torch.float32).tiny)).softmax(-1)
    # Ranked by probability, the fewest whose sum reaches top_p: those before which it is not reached yet.
    ranked, tokens = probabilities.sort(dim=-1, descending=True, stable=True)
    reached = ranked.cumsum(-1)
    mass = (ranked * (reached - ranked < top_p)).cumsum(-1)
    points = torch.stack([torch.rand((), generator=text.generator) for text in texts]).to(logits.device)
    place = torch.searchsorted(mass, points[:, None] * mass[:, -1:], right=True)
    drawn: Tensor = tokens.gather(1, place.clamp(max=tokens.shape[1] - 1))[:, 0]
    return drawn
