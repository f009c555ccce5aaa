"""The predict step: answers requests, each under its own composition, in as few forward passes as memory allows."""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from loracomp.composition.checking import MergeChecker
from loracomp.composition.composer import Composed, Composer
from loracomp.composition.layers import SideBySide
from loracomp.composition.resident import Fetch, Loaded, ResidentAdapters
from loracomp.composition.strategies import Mix
from loracomp.errors import JobError
from loracomp.model.batching import batches, halving_on_out_of_memory
from loracomp.model.chat import render
from loracomp.model.cpu import PASS_TOKENS
from loracomp.model.generation import Generated, Prompt, generate
from loracomp.model.loading import BaseModel
from loracomp.model.scoring import Question, check_length, encode_choices, encode_texts, log_likelihoods, normalize
from loracomp.records import Answer, Composition, Request


@dataclass(frozen=True, slots=True, eq=False)
class _Item:
    """A request that is tokenised and composed, ready for the model."""

    request: Request
    composed: Composed
    encoded: Question | Prompt
    wanted: Callable[[], bool]

    @property
    def scored(self) -> bool:
        return isinstance(self.encoded, Question)

    @property
    def mixes(self) -> tuple[Mix, ...]:
        """The mixes to run this request under: its composition and, with contrast, the base model alone."""
        mix = self.composed.mix
        return (mix, Mix()) if self.scored and self.request.contrast and mix.adapters else (mix,)

    @property
    def rows(self) -> int:
        return len(self.mixes) * (len(self.encoded.rows) if isinstance(self.encoded, Question) else 1)

    @property
    def width(self) -> int:
        """Number of tokens in its longest row, including the tokens to generate."""
        if isinstance(self.encoded, Question):
            return max(len(row.tokens) for row in self.encoded.rows)
        return len(self.encoded.tokens) + self.encoded.max_new_tokens


_Answering: TypeAlias = Callable[[SideBySide, Sequence[_Item]], list[Answer | JobError]]
"""Answers requests by one or more forward passes, with the adapters stacked in the first argument."""


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
        check_one_in: int = 0,
        fidelity_one_in: int = 1,
    ) -> None:
        """`token_budget` limits the tokens of one forward pass, including padding; `cache_bytes` limits the memory kept
        on the device between batches (three quarters for adapters, one quarter for compositions). One scoring pass in
        `check_one_in` is compared with merged weights (`MergeChecker`); 0: none. `fidelity_one_in` as in `Composer`.
        """
        self._base = base
        self._token_budget = token_budget
        self._adapters = ResidentAdapters(cache_bytes * 3 // 4, base.model.device)
        self._composer = Composer(base, cache_bytes=cache_bytes // 4, fidelity_one_in=fidelity_one_in)
        self._checker = MergeChecker(base.model, check_one_in)

    def predict(self, requests: Sequence[Request], fetch: Fetch) -> list[Answer | JobError]:
        """Load the adapters, compose them and answer the requests; `fetch` reads adapters from the database."""
        compositions = [request.composition for request in requests]
        return self.answer(requests, self.compose(compositions, self.load(compositions, fetch)))

    def load(self, compositions: Sequence[Composition], fetch: Fetch) -> Loaded:
        """The compositions' adapters, on the device; one call of `fetch` brings those that are not there yet."""
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
        """For each request, in order, its answer under its composition, or the error that concerns it alone.

        A request with a NaN or infinite result runs again alone, because one adapter's overflow may have spoiled the
        other rows of the batch. `wanted(i)` is called between forward passes; once it is false, request i leaves its
        batch with 'lease_lost'.

        JobError codes: those in `compositions`, 'prompt_too_long', 'prompt_blank', 'chat_template', 'not_finite',
        'lease_lost', and 'out_of_memory' (the only one worth a retry).
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
        # After a failure (out of memory, overflow) a part of the batch is tried with only the adapters that it uses.
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
        prompt, rendered = request.prompt, request.chat_template
        if rendered:
            prompt = render(tokenizer, prompt, request.system_text)
        if request.choices is not None:
            shared = self._base.shares_prompts
            return encode_choices(tokenizer, prompt, request.choices, limit, shared_prompt=shared, rendered=rendered)
        assert request.max_new_tokens is not None  # never None here: a trigger sets it for jobs without choices
        tokens = encode_texts(tokenizer, [prompt], rendered=rendered)[0]
        check_length(len(tokens) + request.max_new_tokens, limit, "prompt and max_new_tokens")
        return Prompt(tokens, request.max_new_tokens, request.stop, request.temperature, request.top_p, request.seed)

    @torch.inference_mode()
    def _score(self, adapters: SideBySide, items: Sequence[_Item]) -> list[Answer | JobError]:
        asked = [(item.encoded, mix) for item in items for mix in item.mixes if isinstance(item.encoded, Question)]
        rows = [mix for question, mix in asked for _ in question.rows]
        with adapters.composed(rows, max(item.width for item in items)):
            given = log_likelihoods(self._base.model, [question for question, _ in asked])
        self._checker.check(asked, given)
        scores = iter(given)
        return [_chosen(item, *(next(scores) for _ in item.mixes)) for item in items]

    def _generate(self, adapters: SideBySide, items: Sequence[_Item]) -> list[Answer | JobError]:
        prompts = [item.encoded for item in items if isinstance(item.encoded, Prompt)]
        sizes = [(len(prompt.tokens), prompt.max_new_tokens) for prompt in prompts]

        def under(numbers: Sequence[int]) -> AbstractContextManager[None]:
            # Average width of a generation's passes: the first is as wide as the prompts, each later one is one token.
            longest, passes = (max(each) for each in zip(*(sizes[number] for number in numbers), strict=True))
            return adapters.composed([items[number].composed.mix for number in numbers], 1 + longest // passes)

        wanted = [item.wanted for item in items]
        generated = generate(self._base.model, self._base.tokenizer, prompts, under, wanted)
        return [_written(item, text) for item, text in zip(items, generated, strict=True)]


def _chosen(item: _Item, composed: Tensor, base: Tensor | None = None) -> Answer | JobError:
    """The answer with the highest score; among equal scores, the first choice.

    `composed` and `base` are the choices' log-likelihoods [choices] under the composition and, if the request uses
    contrast, under the base model.
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
        finish_reason=generated.finish_reason,
        norm_ratio=item.composed.norm_ratio,
        cosine=item.composed.cosine,
    )


def _is_not_finite(answer: Answer | JobError) -> bool:
    return isinstance(answer, JobError) and answer.code == "not_finite"


def _lease_lost() -> JobError:
    return JobError("the job's lease was lost, so its answer could not be recorded", code="lease_lost")


def _not_finite() -> JobError:
    return JobError(
        "the model's output contains NaN or infinity: the sum of its adapters overflows in this precision; "
        "try another policy or a worker with dtype float32",
        code="not_finite",
    )
