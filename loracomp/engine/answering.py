"""Requests in the model, each under its own mix: choices are scored in batches, texts generated step by step."""

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from operator import attrgetter

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from loracomp.composition.composer import BASE_ALONE
from loracomp.composition.layers import AdapterStack
from loracomp.composition.strategies import Mix
from loracomp.engine.repeats import KnownScores, Scores, key_of
from loracomp.engine.series import SeriesScores
from loracomp.errors import JobError
from loracomp.model.batching import batches, halving_on_out_of_memory, most_positions
from loracomp.model.cpu import PASS_TOKENS
from loracomp.model.generation import Ready, Texts
from loracomp.model.loading import BaseModel
from loracomp.model.prefix import groups_by_start, in_common, read_prefix
from loracomp.model.scoring import log_likelihoods, normalize
from loracomp.model.states import prompt_states
from loracomp.model.text import Generated, Prompt, Text
from loracomp.model.tokens import Question, check_length, encode_choices, encode_prompt, render
from loracomp.records import Prediction, Request

ALIKE = 8
"""Requests are looked at together if at least this many first tokens are the same."""


@dataclass(slots=True, eq=False)
class PendingRequest:
    """A request in the model. `mix` and `encoded` are set unless it failed before it could join."""

    request: Request
    wanted: Callable[[], bool]
    background: bool = False
    """Whether requests that are not in the background come first."""
    begun: bool = False
    """Whether any part of it has been in a forward pass."""
    mix: Mix = BASE_ALONE
    encoded: Question | Prompt | None = None
    parts: list[Question] = field(default_factory=list)
    """What is left to score of its prompt and choices. A part is scored in one pass."""
    log_likelihoods: Tensor = field(default_factory=lambda: torch.zeros(()))
    """[choices], summed over the parts that have been scored."""
    state: npt.NDArray[np.float32] | None = None
    """The prompt's state [d] (`model.states`), if the request reads it and has been in a pass."""
    key: bytes | None = None
    """Requests with the same key have the same scores (`repeats.key_of`)."""
    repeats: list["PendingRequest"] = field(default_factory=list)
    """Requests with the same key that were added while this one waited, and get its scores."""
    outcome: Prediction | JobError | None = None
    """The model's prediction, or the error that prevented one; None until either is known."""

    @property
    def question(self) -> Question:
        """The tokenised prompt and choices of a request that has choices."""
        assert isinstance(self.encoded, Question)
        return self.encoded

    @property
    def rows(self) -> int:
        """Number of rows that its next part needs in a pass."""
        return len(self.parts[0].rows)

    @property
    def width(self) -> int:
        """Number of tokens in the longest of these rows."""
        return max(len(row.tokens) for row in self.parts[0].rows)

    @property
    def positions(self) -> int:
        """Number of positions of these rows whose logits are needed."""
        return sum(row.positions for row in self.parts[0].rows)


class Answering:
    """`add` takes a request at any time; each `step` continues some requests, and gives an outcome to those that end.

    JobError codes: 'prompt_too_long', 'prompt_blank', 'choice_blank', 'chat_template', 'not_finite', 'lease_lost', and
    'out_of_memory' (the only one worth a retry).
    """

    def __init__(self, base: BaseModel, token_budget: int, series: SeriesScores, known: KnownScores) -> None:
        """`token_budget` means the same as in `Predictor`; `series` and `known` have the scores of earlier requests."""
        self._base = base
        self._series = series
        self._known = known
        self._token_budget = token_budget
        self._positions = most_positions(base.model.config.get_text_config().vocab_size)
        self._pass_tokens = PASS_TOKENS if base.model.device.type == "cpu" else token_budget
        self._shares_prefixes = base.shares_prefixes
        self._to_score: list[PendingRequest] = []
        """Requests with choices, in the order in which they were added."""
        self._passes: list[list[PendingRequest]] = []
        """The requests of `_to_score` that come first, divided into passes; emptied when a request is added."""
        self._last_passes: dict[str | None, int] = {}
        """For each submitter the number of the last pass that scored a request of theirs; forgotten when all ended."""
        self._encoded_last: tuple[Request, Question] | None = None
        """The request that was tokenised last. A measurement asks the same under each of its adapters."""
        self._scored_last = False
        """Whether the last step was a pass that scores choices."""
        self._choice_adapters = self._stack_of([])
        self._text_adapters = self._stack_of([])
        self._texts = Texts(
            base.model,
            base.tokenizer,
            self._ready_for,
            token_budget=token_budget,
            pass_tokens=self._pass_tokens,
            shares_prefixes=base.shares_prompts,
        )

    def __bool__(self) -> bool:
        return bool(self._to_score or self._texts)

    def add(
        self,
        request: Request,
        mix: Mix | JobError,
        wanted: Callable[[], bool] = lambda: True,
        *,
        background: bool = False,
    ) -> PendingRequest:
        """Add a request. If `wanted` returns False before one of its passes, its answer is JobError 'lease_lost'.

        A request in the background waits as long as any other request is waiting.
        """
        pending = PendingRequest(request, wanted, background)
        try:
            if isinstance(mix, JobError):
                raise mix
            pending.mix, pending.encoded = mix, self._encode(request)
        except JobError as error:
            pending.outcome = error
            return pending
        if isinstance(pending.encoded, Prompt):
            self._texts.add(
                pending.encoded,
                item=pending,
                composition=request.composition,
                wanted=wanted,
                background=background,
                submitter=request.submitted_by,
            )
        else:
            pending.parts = list(pending.question.parts(self._token_budget, self._positions))
            pending.key = key_of(request)
            self._line_up(pending)
        return pending

    def _line_up(self, pending: PendingRequest) -> None:
        """Let a request wait for a pass, unless its scores are known, or will be because another one waits for them."""
        if pending.key is not None:
            if (known := self._known.get(pending.key)) is not None:
                _take_scores(pending, known)
                self._choose([pending])
                return
            for other in self._to_score:
                if (other.key, other.background) == (pending.key, pending.background):
                    other.repeats.append(pending)
                    return
        self._to_score.append(pending)
        self._passes = []

    def step(self) -> None:
        """Run a pass that scores choices, or add a token to each text; if both are waiting, they take turns.

        Submitters take turns: a scoring pass contains the first request of the submitter whose last pass is longest
        ago, and others that fit beside it. A request that is too large for one pass is scored in several passes; after
        each of them it goes behind the others, so that they get a turn. For texts, see `Texts`.
        """
        self._scored_last = bool(self._to_score) and not (self._scored_last and self._texts)
        if self._scored_last:
            self._score_some()
        elif self._texts:
            for text in self._texts.step():
                text.item.outcome = _written(text.item, text.result())
        if not self:
            self._last_passes.clear()
            self._encoded_last = None  # a worker that waits for jobs keeps no text of a job that may be erased

    def _encode(self, request: Request) -> Question | Prompt:
        tokenizer, limit = self._base.tokenizer, self._base.context_length
        prompt, rendered = request.prompt, request.chat_template
        if rendered:
            prompt = render(tokenizer, prompt, request.system_text)
        if request.choices is not None:
            if self._encoded_last is None or not _ask_the_same(self._encoded_last[0], request):
                question = encode_choices(
                    tokenizer,
                    prompt,
                    request.choices,
                    limit,
                    shared_prompt=self._base.shares_prompts,
                    length_limits=self._base.length_limits,
                    rendered=rendered,
                )
                self._encoded_last = request, question
            return self._encoded_last[1]
        assert request.max_new_tokens is not None  # never None here: a trigger sets it for jobs without choices
        tokens = encode_prompt(tokenizer, prompt, rendered=rendered)
        check_length(len(tokens) + request.max_new_tokens, limit, "prompt and max_new_tokens")
        return Prompt(tokens, request.max_new_tokens, request.stop, request.temperature, request.top_p, request.seed)

    def _score_some(self) -> None:
        self._let_go()
        if not self._to_score:
            return
        # Requests in the background get their own passes, because each request in a pass makes the others wait longer.
        first = [item for item in self._to_score if not item.background] or self._to_score
        if not self._passes:
            self._passes = [*self._divided(first)]
            self._choice_adapters = self._stack_of(item.mix for item in first)
        # The queue lets submitters take turns too, but a worker holds many jobs, and a pass may take half a minute.
        next_item = min(first, key=lambda item: self._last_passes.get(item.request.submitted_by, 0))
        together = next(batch for batch in self._passes if next_item in batch)
        self._passes.remove(together)
        number = 1 + max(self._last_passes.values(), default=0)
        self._last_passes |= {item.request.submitted_by: number for item in together}
        for item, scores in self._scores(together).items():
            _note_scores(item, scores)
        scored = [item for item in together if item.outcome is None and not item.parts]
        self._choose([*scored, *(repeat for item in scored for repeat in self._share(item))])
        unfinished = [item for item in together if item.outcome is None]
        self._to_score = [item for item in self._to_score if item not in together] + unfinished
        if unfinished:
            self._passes = []
        self._line_up_repeats(together)

    def _share(self, item: PendingRequest) -> list[PendingRequest]:
        """Keep the scores of a request for later ones, and give them to its repeats, which are returned."""
        if item.key is None:
            return []
        scores = Scores(item.log_likelihoods, item.state)
        if scores.log_likelihoods.isfinite().all():
            self._known.put(item.key, scores)
        repeats, item.repeats = item.repeats, []
        for repeat in repeats:
            _take_scores(repeat, scores)
        return repeats

    def _line_up_repeats(self, ended: Iterable[PendingRequest]) -> None:
        """Let the repeats of requests that ended without scores wait for a pass of their own."""
        for item in ended:
            if item.outcome is not None:
                repeats, item.repeats = item.repeats, []
                for repeat in repeats:
                    self._line_up(repeat)

    def _choose(self, items: Sequence[PendingRequest]) -> None:
        """Give their answers to these requests, all of whose parts are scored.

        All their scores are added to their series first, because the rows of a new table come together.
        """
        scores = {
            item: normalize(item.log_likelihoods, item.question, item.request.normalization).tolist() for item in items
        }
        in_series = {
            item: series
            for item in items
            if (series := item.request.series) is not None and all(map(math.isfinite, scores[item]))
        }
        for item, series in in_series.items():
            self._series.add(series, scores[item])
        for item, series in in_series.items():
            item.request = replace(item.request, choice_biases=self._series.biases(series, scores[item]))
        for item in items:
            if item.request.classifier is not None and item.state is not None:
                item.request = replace(item.request, label_scores=item.request.classifier(item.state))
            item.outcome = _chosen(item, scores[item])

    def _let_go(self) -> None:
        """End all requests whose lease is lost, even in the background, where a request may wait long for its turn."""
        if gone := {item for item in self._to_score if not item.wanted()}:
            for item in gone:
                item.outcome = lease_lost()
            self._to_score = [item for item in self._to_score if item not in gone]
            self._passes = []
            self._line_up_repeats(gone)

    def _scores(self, items: Sequence[PendingRequest]) -> dict[PendingRequest, Tensor | JobError]:
        """Score a part of each item in one pass; an item whose scores are not finite is scored again alone.

        The cause may be an adapter of another item that overflows. Such adapters are in the stack even if the pass has
        a single item, because the same stack serves the items of later passes.
        """
        for item in items:
            item.begun = True
        run = partial(self._some, items)
        scores = dict(zip(items, halving_on_out_of_memory(run, items), strict=True))
        spoilt = [item for item, own in scores.items() if isinstance(own, Tensor) and not own.isfinite().all()]
        # These passes load adapters again while those of the first pass are still there: memory may run out here too.
        return scores | {item: halving_on_out_of_memory(run, [item])[0] for item in spoilt}

    def _some(self, items: Sequence[PendingRequest], some: Sequence[PendingRequest]) -> list[Tensor | JobError]:
        # After memory ran out or an adapter overflowed, some items are run with only the adapters that they use.
        adapters = self._choice_adapters if some is items else self._stack_of(item.mix for item in some)
        return self._score(adapters, some)

    @torch.inference_mode()
    def _score(self, adapters: AdapterStack, items: Sequence[PendingRequest]) -> list[Tensor | JobError]:
        """Score the next part of each item: log-likelihoods [choices] of its choices under its mix."""
        model, rows = self._base.model, [item.mix for item in items for _ in range(item.rows)]
        readers = [number for number, item in enumerate(items) if item.request.reads_state]
        parts, prefix = [item.parts[0] for item in items], None
        if common := self._common(items):
            with adapters.composed(rows[:1], common):
                prefix = read_prefix(model, parts[0].rows[0].prompt[:common])
            parts = [part.after(common) for part in parts]
        with (
            adapters.composed(rows, max(item.width for item in items) - common),
            prompt_states(model, parts, readers, prefix.state if prefix else None) as states,
        ):
            on_device = log_likelihoods(model, parts, prefix)
        if states:
            for number, state in zip(states, torch.stack([*states.values()]).cpu().numpy(), strict=True):
                items[number].state = state
        # One copy from the device, which waits for the whole pass.
        return [*torch.split(torch.cat(on_device).cpu(), [len(each) for each in on_device])]

    def _divided(self, items: Sequence[PendingRequest]) -> Iterator[list[PendingRequest]]:
        """The requests in passes. Those that begin alike under one composition have passes of their own, if that saves
        time."""
        others = list(items)
        if self._shares_prefixes:
            others = []
            for common, group in groups_by_start(items, _composition, _first_tokens, ALIKE):
                if self._saves(common, sum(item.rows for item in group)):
                    yield from batches(group, self._token_budget, self._pass_tokens, self._positions, common)
                else:
                    others += group
        yield from batches(others, self._token_budget, self._pass_tokens, self._positions)

    def _common(self, items: Sequence[PendingRequest]) -> int:
        """Number of first tokens to compute once for all rows of these requests."""
        if not self._shares_prefixes or len({*map(_composition, items)}) > 1:
            return 0
        # Each row keeps its prompt's last token, because the logits after it are needed.
        rows = [row.prompt[:-1] for item in items for row in item.parts[0].rows]
        common = in_common(rows)
        return common if self._saves(common, len(rows)) else 0

    def _saves(self, common: int, rows: int) -> bool:
        """Whether computing `common` tokens once instead of in each row is worth two more passes: one for these tokens,
        and one because other requests can't be in the same pass."""
        return (rows - 1) * common > 2 * self._pass_tokens

    def _ready_for(self, texts: Sequence[Text], tokens: int) -> Ready:
        for text in texts:
            text.item.begun = True
        mixes = [text.item.mix for text in texts]
        # A text is tried again alone because the adapter of another text may overflow, so the stack must not have it.
        if any(text.in_own_pass for text in texts) or not self._text_adapters.covers(mixes):
            self._text_adapters = self._stack_of(mixes)
        return self._text_adapters.ready(mixes, tokens)

    def _stack_of(self, mixes: Iterable[Mix]) -> AdapterStack:
        return AdapterStack(self._base.model, mixes)


def _composition(item: PendingRequest) -> Hashable:
    return item.request.composition


def _first_tokens(item: PendingRequest) -> Sequence[int]:
    return item.parts[0].rows[0].prompt[:-1]


def _ask_the_same(one: Request, other: Request) -> bool:
    """Whether two requests with choices have the same tokens."""
    shown = attrgetter("prompt", "choices", "chat_template", "system_text")
    return bool(shown(one) == shown(other))


def _take_scores(item: PendingRequest, scores: Scores) -> None:
    """Give a request the scores of an earlier one with the same key."""
    item.log_likelihoods, item.state, item.parts, item.begun = *scores, [], True


def _note_scores(item: PendingRequest, scores: Tensor | JobError) -> None:
    """Add the log-likelihoods [choices] of a part."""
    if isinstance(scores, JobError):
        item.outcome = scores
        return
    item.log_likelihoods = item.log_likelihoods + scores
    del item.parts[0]


def _chosen(item: PendingRequest, of_mix: Sequence[float]) -> Prediction | JobError:
    """The choice with the highest score; among equal scores, the first. `of_mix` are its mix's normalised scores."""
    assert item.request.choices is not None
    scores = _calibrated(item.request, of_mix)
    if not all(map(math.isfinite, scores)):
        return _not_finite(item)
    best = scores.index(max(scores))
    return Prediction(
        output=item.request.choices[best],
        choice_index=best + 1,
        choice_scores=tuple(scores),
        choice_biases=item.request.choice_biases or None,
        label_scores=item.request.label_scores or None,
        description_similarities=item.request.description_similarities or None,
        score_weights=item.request.score_weights if _is_more_than_the_mix(item.request) else None,
        prompt_tokens=item.question.prompt_tokens,
        output_tokens=item.question.token_counts[best],
    )


def _calibrated(request: Request, scores: Sequence[float]) -> list[float]:
    """The choices' scores with what labelled rows, descriptions and other rows of the series add to them."""
    (of_mix, _, of_descriptions), nothing = request.score_weights, (0.0,) * len(scores)
    added = (request.choice_biases, request.label_scores, request.description_similarities)
    parts = zip(scores, *(each or nothing for each in added), strict=True)
    return [of_mix * score + bias + label + of_descriptions * similar for score, bias, label, similar in parts]


def _is_more_than_the_mix(request: Request) -> bool:
    return bool(request.choice_biases or request.description_similarities)


def _written(item: PendingRequest, generated: Generated | JobError | None) -> Prediction | JobError:
    assert isinstance(item.encoded, Prompt)
    if generated is None:
        return lease_lost()
    if isinstance(generated, JobError):
        return generated
    if not generated.finite:
        return _not_finite(item)
    return Prediction(
        output=generated.text,
        prompt_tokens=len(item.encoded.tokens),
        output_tokens=generated.tokens,
        finish_reason=generated.finish_reason,
    )


def lease_lost() -> JobError:
    """The error of a job that is no longer wanted."""
    return JobError("the job's lease was lost, so its answer could not be recorded", code="lease_lost")


def _not_finite(item: PendingRequest) -> JobError:
    ids = ", ".join(map(str, item.request.composition.adapter_ids)) or "none"
    return JobError(
        f"the model's output contains NaN or infinity: its sum with the adapters (ids: {ids}) overflows in this "
        "precision; if one of them fails alone, retire it (`loracomp adapter list` has the ids), otherwise try another "
        "policy or a worker with dtype float32",
        code="not_finite",
    )
