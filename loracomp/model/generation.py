"""Generation, greedy or sampled: texts join and leave a running batch at every step, each under its own adapters."""

from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from loracomp.errors import JobError
from loracomp.model.batching import batches, most_positions, out_of_memory, unless_out_of_memory
from loracomp.model.forward import Forward, RowCache, keys_and_values_suffice
from loracomp.model.prefix import groups_by_start
from loracomp.model.text import Generated, Prompt, Text, draw, end_tokens

ALIKE = 64
"""Texts share their first tokens if at least this many are equal; for fewer, the extra forward pass costs more."""
REGAINED = 8
"""After memory ran out, the budget of tokens grows again with each text that ends: by one token for every 8 tokens of
the text."""
TURN = 64
"""Tokens that a text gets before it may have to wait for other submitters' texts. Reading its tokens again, which it
must when it joins again, costs about as much as a few of them."""
Ready = Callable[[], AbstractContextManager[None]]
"""Makes a context for one forward pass, in which each row goes through the model with its own adapters."""
Stack = Callable[[Sequence[Text], int], Ready]
"""Stacks the adapters for passes over these texts, with a number of tokens for each."""


class Texts:
    """Texts that are generated together; a `step` adds a token to each.

    A step is one forward pass over the last token of every running text, and passes over the prompts of texts that
    join. A text's tokens depend on its seed and its own logits, not on the other texts. Penalties and sampling that the
    model's generation settings ask for are not applied.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        stack: Stack = lambda *_: nullcontext,
        *,
        token_budget: int = 16384,
        pass_tokens: int = 16384,
        shares_prefixes: bool = False,
    ) -> None:
        """`token_budget` limits the number of running texts times the length that the longest may grow to. Within it,
        submitters take turns.

        `pass_tokens`: see `batches`. `shares_prefixes`: compute the first tokens that prompts under the same
        composition, which join together, have in common only once.
        """
        self._forward = Forward(model)
        self._tokenizer = tokenizer
        self._stack = stack
        self._largest_budget = self._budget = token_budget
        self._pass_tokens = pass_tokens
        self._positions = most_positions(model.config.get_text_config().vocab_size)
        self._shares_prefixes = shares_prefixes
        self._end_tokens = end_tokens(model, tokenizer)
        self._has_cache = keys_and_values_suffice(model)
        self._waiting: deque[Text] = deque()
        """Submitters whose last text joined long ago come first."""
        self._running: list[Text] = []
        """The text of each row of the cache."""
        self._cache = RowCache()
        self._ready: Ready | None = None
        """For passes over one token of each running text; None after the running texts have changed."""

    def __len__(self) -> int:
        return len(self._waiting) + len(self._running)

    def add(self, prompt: Prompt, **about: Any) -> Text:
        """Add a text, which joins as soon as there is room; `about`: see `Text`."""
        text = Text(prompt, self._tokenizer, self._end_tokens, **about)
        self._waiting.append(text)
        return text

    @torch.inference_mode()
    def step(self) -> list[Text]:
        """Add a token to each text that there is room for; returns the texts that ended or are no longer wanted."""
        ended = self._remove_ended()
        self._put_back([text for text in self._running if self._keys_are_stale(text)])
        self._give_way()
        joining = self._joining()
        if self._running:
            self._advance()
        for common, together in self._passes(joining):
            self._begin(common, together)
        return ended + self._remove_ended()

    def _remove_ended(self) -> list[Text]:
        ended = [text for text in (*self._running, *self._waiting) if text.ended]
        self._stop_running(ended)
        self._regain_budget(ended)
        self._waiting = deque(text for text in self._waiting if text not in ended)
        return ended

    def _keys_are_stale(self, text: Text) -> bool:
        """Whether with its last token a text has got so long that all its tokens must be read again."""
        return self._forward.frequencies(text.width) != self._forward.frequencies(text.width - 1)

    def _joining(self) -> list[Text]:
        """The next waiting texts, as many as there is room for; at least one if none is running."""
        joining: list[Text] = []
        while self._waiting:
            together = [*self._running, *joining]
            text = self._next(together)
            if not self._fit([*together, text]):
                break
            self._waiting.remove(text)
            joining.append(text)
            # The submitter's other texts go behind those of others.
            self._waiting = deque(sorted(self._waiting, key=lambda other: other.submitter == joining[-1].submitter))
        return joining

    def _next(self, running: Sequence[Text]) -> Text:
        """The waiting text that joins next: the first of the submitter who has the fewest texts running.

        Texts of background jobs come after all others.
        """
        counts = Counter(text.submitter for text in running)
        return min(self._waiting, key=lambda text: (text.background, counts[text.submitter]))

    def _fit(self, texts: Sequence[Text]) -> bool:
        return len(texts) == 1 or len(texts) * max(text.longest for text in texts) <= self._budget

    def _give_way(self) -> None:
        """Let texts that had their turn wait again, if a submitter who has none running needs their room.

        The submitter with the most running texts gives way first.
        """
        if not self._waiting:
            return
        staying, leaving, text = list(self._running), list[Text](), self._next(self._running)
        if text.submitter in {other.submitter for other in staying}:
            return
        while not self._fit([*staying, text]):
            counts = Counter(other.submitter for other in staying)
            had_turn = [other for other in staying if other.had_turn(TURN) and other.background >= text.background]
            if not had_turn:
                return
            leaving.append(max(had_turn, key=lambda other: (other.background, counts[other.submitter], other.longest)))
            staying.remove(leaving[-1])
        self._stop_running(leaving)
        self._waiting.extend(leaving)

    def _advance(self) -> None:
        """Add a token to each running text, by one pass."""
        texts = list(self._running)
        logits = unless_out_of_memory(self._next_logits if self._has_cache else partial(self._logits, texts))
        if logits is None:
            self._make_room(texts[len(texts) // 2 :])
        else:
            self._take(texts, logits)

    def _next_logits(self) -> Tensor:
        self._cache.room_for_a_column()
        mask, positions = self._cache.inputs(self._forward.device)
        self._ready = self._ready or self._stack(self._running, 1)
        last = [text.tokens[-1] for text in self._running]
        lengths = [text.width for text in self._running]
        with self._ready():
            logits = self._forward.after_tokens(last, mask, positions, lengths, self._cache.cache)
        self._cache.advance()
        return logits

    def _begin(self, common: int, texts: Sequence[Text]) -> None:
        """Let texts, whose first `common` tokens are equal, join by a pass over their prompts; adds a token to each."""
        cache = DynamicCache() if self._has_cache else None
        logits = unless_out_of_memory(partial(self._joined, texts, common, cache))
        if logits is None:
            self._make_room(texts)
        else:
            self._running += texts
            self._ready = None
            for text in texts:
                text.joined_at = len(text.tokens)
            self._take(texts, logits)

    def _joined(self, texts: Sequence[Text], common: int, cache: Cache | None) -> Tensor:
        """Logits after the texts, whose keys and values get rows of their own."""
        if cache is None:
            return self._logits(texts)
        if common:
            self._logits(texts[:1], cache, common)
            cache.batch_repeat_interleave(len(texts))
        logits = self._logits(texts, cache)
        self._cache.append(cache, [text.width for text in texts])
        return logits

    def _passes(self, texts: Sequence[Text]) -> Iterator[tuple[int, list[Text]]]:
        """The texts of each pass, after the number of their first tokens that are computed once for all of them."""
        own, others = [text for text in texts if text.in_own_pass], [text for text in texts if not text.in_own_pass]
        yield from ((0, [text]) for text in own)
        rest: list[Text] = []
        for common, group in self._alike(others):
            if common:
                parts = batches(group, self._budget, self._pass_tokens, self._positions, common)
                yield from ((common, part) for part in parts)
            else:
                rest += group
        yield from ((0, part) for part in batches(rest, self._budget, self._pass_tokens, self._positions))

    def _alike(self, texts: Sequence[Text]) -> Iterator[tuple[int, list[Text]]]:
        """Texts that begin alike under one composition, after the number of first tokens to share; 0: none."""
        if not (self._shares_prefixes and self._has_cache):
            yield 0, list(texts)
            return

        def under(text: Text) -> Hashable:
            return text.composition, self._forward.frequencies(text.width)

        # Each text keeps its last token, because the logits after it are needed.
        for common, group in groups_by_start(texts, under, lambda text: text.read[:-1], ALIKE):
            yield common if common >= ALIKE else 0, group

    def _logits(self, texts: Sequence[Text], cache: Cache | None = None, until: int | None = None) -> Tensor:
        """Logits after what each text has read, or after its first `until` tokens; `cache` has the tokens before."""
        known = 0 if cache is None else cache.get_seq_length()
        rows = [text.read[known:until] for text in texts]
        with self._stack(texts, max(map(len, rows)))():
            return self._forward.after_rows(rows, [text.width for text in texts], cache)

    def _take(self, texts: Sequence[Text], logits: Tensor) -> None:
        """Add the next token to each text. If a text's logits are not finite, it is tried again in a pass of its own.

        The reason is that the adapters of another text may have made them so, even of one that has ended.
        """
        scores = logits.float()
        largest, at = scores.max(-1)  # NaN if any logit is
        # One copy from the device, which waits for the whole pass.
        tokens, finite = torch.stack([at, largest.isfinite()]).tolist()
        sampled = [row for row, text in enumerate(texts) if text.prompt.temperature > 0 and finite[row]]
        if sampled:
            drawn = draw([texts[row] for row in sampled], scores[sampled]).tolist()
            for row, token in zip(sampled, drawn, strict=True):
                tokens[row] = token
        for text, token, is_finite in zip(texts, tokens, finite, strict=True):
            text.in_own_pass = not (is_finite or text.in_own_pass)
            text.finite = bool(is_finite) or text.in_own_pass
            if is_finite:
                text.tokens.append(token)
        self._put_back([text for text in texts if text.in_own_pass])

    def _make_room(self, texts: Sequence[Text]) -> None:
        """After memory ran out: these texts wait until fewer are running, and then read all their tokens again."""
        together = {*self._running, *texts}
        if len(together) == 1:
            texts[0].error = out_of_memory()
        self._budget = min(self._budget, len(together) * max(text.longest for text in together) // 2)
        self._put_back(texts)

    def _regain_budget(self, ended: Sequence[Text]) -> None:
        """Raise the budget again, slowly, so that memory runs out only rarely on a device that has too little of it."""
        tokens = sum(text.longest for text in ended if text.error is None)
        self._budget = min(self._largest_budget, self._budget + -(-tokens // REGAINED))

    def _put_back(self, texts: Sequence[Text]) -> None:
        self._stop_running(texts)
        self._waiting.extendleft(reversed(texts))

    def _stop_running(self, texts: Iterable[Text]) -> None:
        """Remove texts from the running ones; texts that are not running are left alone."""
        for text in texts:
            if text in self._running:
                row = self._running.index(text)
                if self._has_cache:
                    self._cache.drop(row)
                # As in the cache, the last row gets the number of the row that left.
                self._running[row] = self._running[-1]
                self._running.pop()
                self._ready = None


def generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]
) -> list[Generated | JobError | None]:
    """What the base model alone generates for each prompt, in one batch."""
    texts = Texts(model, tokenizer)
    added = [texts.add(prompt) for prompt in prompts]
    while texts:
        texts.step()
    return [text.result() for text in added]
