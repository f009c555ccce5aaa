"""The predict step: requests with a composition each -> answers, in as few forward passes as memory allows."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from loracomp.composition.composer import Composed, Composer
from loracomp.composition.layers import SideBySide
from loracomp.composition.resident import Fetch, Loaded, ResidentAdapters
from loracomp.composition.strategies import Mix
from loracomp.errors import JobError
from loracomp.model.batching import batches, halving_on_out_of_memory
from loracomp.model.cpu import PASS_TOKENS
from loracomp.model.generation import Generated, Prompt, generate
from loracomp.model.loading import BaseModel
from loracomp.model.scoring import Question, check_length, encode_choices, encode_texts, log_likelihoods, normalize
from loracomp.records import Answer, Composition, Request


@dataclass(frozen=True, slots=True, eq=False)
class _Item:
    """A request ready for the model."""

    request: Request
    composed: Composed
    encoded: Question | Prompt
    wanted: Callable[[], bool]

    @property
    def scored(self) -> bool:
        return isinstance(self.encoded, Question)

    @property
    def mixes(self) -> tuple[Mix, ...]:
        """What the model is run under; with contrast the base model alone comes after the composition."""
        mix = self.composed.mix
        return (mix, Mix()) if self.scored and self.request.contrast and mix.adapters else (mix,)

    @property
    def rows(self) -> int:
        return len(self.mixes) * (len(self.encoded.rows) if isinstance(self.encoded, Question) else 1)

    @property
    def width(self) -> int:
        """Tokens of its longest row, those to be generated included."""
        if isinstance(self.encoded, Question):
            return max(len(row.tokens) for row in self.encoded.rows)
        return len(self.encoded.tokens) + self.encoded.max_new_tokens


_Answering: TypeAlias = Callable[[SideBySide, Sequence[_Item]], list[Answer | JobError]]
"""One or several forward passes."""


class Predictor:
    """Answers requests with one base model, each under its own composition.

    `load` may run in one thread while `compose` and `answer` run in another.
    """

    def __init__(
        self,
        base: BaseModel,
        *,
        token_budget: int = 16384,
        cache_bytes: int = 2 << 30,
    ) -> None:
        """`token_budget` bounds the tokens of one forward pass, padding included; `cache_bytes` what is kept on the
        device between batches (three quarters adapters, one quarter compositions).
        """
        self._base = base
        self._token_budget = token_budget
        self._adapters = ResidentAdapters(cache_bytes * 3 // 4, base.model.device)
        self._composer = Composer(base, cache_bytes=cache_bytes // 4)

    def predict(self, requests: Sequence[Request], fetch: Fetch) -> list[Answer | JobError]:
        """Load, compose and answer in one go."""
        compositions = [request.composition for request in requests]
        return self.answer(requests, self.compose(compositions, self.load(compositions, fetch)))

    def load(self, compositions: Sequence[Composition], fetch: Fetch) -> Loaded:
        """The adapters of compositions, on the device; those that are not there yet come by one call of `fetch`."""
        return self._adapters.get({id_: None for each in compositions for id_ in each.adapter_ids}, fetch)

    def compose(self, compositions: Sequence[Composition], adapters: Loaded) -> list[Composed | JobError]:
        """See `Composer.compose`."""
        return self._composer.compose(compositions, adapters)

    def answer(
        self,
        requests: Sequence[Request],
        compositions: Sequence[Composed | JobError],
        wanted: Callable[[int], bool] = lambda _: True,
    ) -> list[Answer | JobError]:
        """Each request's answer under its composition, or why it alone has none, in order.

        What is not finite in a batch is asked again alone, for an adapter that overflows may spoil its neighbours.
        `wanted` is asked between forward passes by the number of a request: one that is not wanted any more, for good,
        leaves its batch.

        JobError codes: those of the compositions, and 'prompt_too_long', 'prompt_blank', 'not_finite', 'lease_lost',
        'out_of_memory' (the only one worth a retry).
        """
        prepared = [
            self._prepared(request, composition, partial(wanted, number))
            for number, (request, composition) in enumerate(zip(requests, compositions, strict=True))
        ]
        items = [item for item in prepared if isinstance(item, _Item)]
        pass_tokens = PASS_TOKENS if self._base.model.device.type == "cpu" else self._token_budget
        answers = self._run(self._score, [item for item in items if item.scored], pass_tokens)
        answers |= self._run(self._generate, [item for item in items if not item.scored], self._token_budget)
        return [item if isinstance(item, JobError) else answers.get(item) or _lease_lost() for item in prepared]

    def _run(self, answer: _Answering, items: Sequence[_Item], pass_tokens: int) -> dict[_Item, Answer | JobError]:
        answers: dict[_Item, Answer | JobError] = {}
        adapters = self._side_by_side(items)
        for together in batches(items, self._token_budget, pass_tokens):
            batch = [item for item in together if item.wanted()]
            if not batch:
                continue
            run = partial(self._part, answer, adapters, batch)
            answers |= zip(batch, halving_on_out_of_memory(run, batch), strict=True)
            spoilt = [item for item in batch if _is_not_finite(answers[item])]
            if len(batch) > 1:
                answers |= {item: run([item])[0] for item in spoilt}
        return answers

    def _part(
        self, answer: _Answering, adapters: SideBySide, batch: Sequence[_Item], asked: Sequence[_Item]
    ) -> list[Answer | JobError]:
        # Where memory ran out, or an adapter overflows, a part has those adapters alone that it uses.
        return answer(adapters if asked is batch else self._side_by_side(asked), asked)

    def _side_by_side(self, items: Sequence[_Item]) -> SideBySide:
        return SideBySide(self._base.model, [item.composed.mix for item in items])

    def _prepared(
        self, request: Request, composition: Composed | JobError, wanted: Callable[[], bool]
    ) -> _Item | JobError:
        if isinstance(composition, JobError):
            return composition
        try:
            return _Item(request, composition, self._encode(request), wanted)
        except JobError as error:
            return error

    def _encode(self, request: Request) -> Question | Prompt:
        tokenizer, limit = self._base.tokenizer, self._base.context_length
        if request.choices is not None:
            shared = self._base.shares_prompts
            return encode_choices(tokenizer, request.prompt, request.choices, limit, shared_prompt=shared)
        assert request.max_new_tokens is not None  # never None here: a trigger sets it for jobs without choices
        tokens = encode_texts(tokenizer, [request.prompt])[0]
        check_length(len(tokens) + request.max_new_tokens, limit, "prompt and max_new_tokens")
        return Prompt(tokens, request.max_new_tokens, request.stop, request.temperature, request.top_p, request.seed)

    @torch.inference_mode()
    def _score(self, adapters: SideBySide, items: Sequence[_Item]) -> list[Answer | JobError]:
        asked = [(item.encoded, mix) for item in items for mix in item.mixes if isinstance(item.encoded, Question)]
        rows = [mix for question, mix in asked for _ in question.rows]
        with adapters.composed(rows, max(item.width for item in items)):
            scores = iter(log_likelihoods(self._base.model, [question for question, _ in asked]))
        return [_chosen(item, *(next(scores) for _ in item.mixes)) for item in items]

    def _generate(self, adapters: SideBySide, items: Sequence[_Item]) -> list[Answer | JobError]:
        prompts = [item.encoded for item in items if isinstance(item.encoded, Prompt)]
        sizes = [(len(prompt.tokens), prompt.max_new_tokens) for prompt in prompts]

        def under(numbers: Sequence[int]) -> AbstractContextManager[None]:
            # Over all its passes: the first is as wide as the prompts, the others are one token.
            longest, passes = (max(each) for each in zip(*(sizes[number] for number in numbers), strict=True))
            return adapters.composed([items[number].composed.mix for number in numbers], 1 + longest // passes)

        wanted = [item.wanted for item in items]
        generated = generate(self._base.model, self._base.tokenizer, prompts, under, wanted)
        return [_written(item, text) for item, text in zip(items, generated, strict=True)]


def _chosen(item: _Item, composed: Tensor, base: Tensor | None = None) -> Answer | JobError:
    """The choice of the highest score; of equal ones the first.

    Log-likelihoods [choices] under the composition are those of its own; under the base model too, with contrast.
    """
    assert item.request.choices is not None and isinstance(item.encoded, Question)
    contrasted = composed if base is None else composed - item.request.contrast * base
    scores = normalize(contrasted, item.encoded, item.request.normalization).tolist()
    if not all(map(math.isfinite, scores)):
        return _not_finite()
    best = scores.index(max(scores))
    return Answer(
        output=item.request.choices[best],
        choice_index=best + 1,
        choice_scores=tuple(scores),
        prompt_tokens=item.encoded.prompt_tokens,
        output_tokens=item.encoded.token_counts[best],
        norm_ratio=item.composed.norm_ratio,
        cosine=item.composed.cosine,
    )


def _written(item: _Item, generated: Generated | None) -> Answer | JobError:
    assert isinstance(item.encoded, Prompt)
    if generated is None:
        return _lease_lost()
    if not generated.finite:
        return _not_finite()
    return Answer(
        output=generated.text,
        prompt_tokens=len(item.encoded.tokens),
        output_tokens=generated.tokens,
        norm_ratio=item.composed.norm_ratio,
        cosine=item.composed.cosine,
    )


def _is_not_finite(answer: Answer | JobError) -> bool:
    return isinstance(answer, JobError) and answer.code == "not_finite"


def _lease_lost() -> JobError:
    return JobError("its lease was lost, so nobody waits for its answer", code="lease_lost")


def _not_finite() -> JobError:
    return JobError(
        "the model gave NaN or infinity: its adapters don't go together in this precision; "
        "try another policy or a worker with dtype float32",
        code="not_finite",
    )
