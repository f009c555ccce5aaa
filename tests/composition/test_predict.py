"""The predict step on a tiny model, against merging and running each request alone; once on the real one."""

import math
import weakref
from dataclasses import dataclass, replace
from itertools import chain, combinations, pairwise

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loracomp.composition import layers
from loracomp.composition.blocks import Factors
from loracomp.composition.composer import Composer, ResidentAdapters
from loracomp.composition.fidelity import merged
from loracomp.composition.strategies import STRATEGIES, Mix, gated
from loracomp.errors import JobError
from loracomp.model.batching import batches
from loracomp.model.scoring import log_likelihoods
from loracomp.model.tokens import encode_choices
from loracomp.records import Composition, Prediction, Request
from model_fixtures import (
    TINY_CONTEXT,
    Fetching,
    as_base,
    compose,
    letter_tokenizer,
    linear_shapes,
    random_adapter,
    tiny_llama,
)

BROKEN, UNFIT, HUGE, ON_HEAD = 90, 91, 92, 93


class Library:
    """Adapters 0 to 9 for the tiny model, three that something is wrong with, and one of the head."""

    def __init__(self, model):
        shapes = linear_shapes(model, "q_proj", "v_proj")
        self.adapters = {i: random_adapter(shapes, rank=(2, 4)[i % 2], seed=i, scaling=3.0) for i in range(10)}
        self.adapters[UNFIT] = random_adapter({"model.layers.0.self_attn.q_proj": (32, 31)}, seed=UNFIT)
        self.adapters[ON_HEAD] = random_adapter(linear_shapes(model, "lm_head"), seed=ON_HEAD)
        self.adapters[HUGE] = random_adapter(shapes, seed=HUGE, size=1e25)
        self.fetched = []

    def fetch(self, adapter_ids):
        self.fetched.append(list(adapter_ids))
        if BROKEN in adapter_ids:
            raise JobError("adapter 90 is not in the registry", code="adapter_missing")
        return [self.adapters[id_] for id_ in adapter_ids]

    def composition(self, *ids, **settings):
        known = [self.adapters.get(id_) for id_ in ids]
        return Composition(
            adapter_ids=ids,
            adapter_sha256=tuple(adapter.sha256 if adapter else "f" * 64 for adapter in known),
            weights=tuple(1 / (i + 1.5) for i in range(len(ids))),
            **settings,
        )

    def merge(self, composition):
        if not composition.adapter_ids:
            return {}
        adapters = [self.adapters[id_] for id_ in composition.adapter_ids]
        return compose(composition.strategy, adapters, composition.weights, density=composition.density)


@pytest.fixture
def base():
    return as_base(tiny_llama(), letter_tokenizer())


@pytest.fixture
def library(base):
    return Library(base.model)


@pytest.fixture
def predictor(base, library):
    return Fetching(base, library.fetch)


def scored(prompt="Is it so?\nAnswer:", choices=("yes", "no", "perhaps"), **settings):
    return Request(prompt=prompt, choices=choices, max_new_tokens=None, **settings)


def written(prompt="Once upon", max_new_tokens=8, **settings):
    return Request(prompt=prompt, choices=None, max_new_tokens=max_new_tokens, **settings)


def sixteen(library):
    """Compositions that all differ: every strategy, one to four adapters, and the base model alone."""
    compositions = [
        library.composition(*range(i % 4, i % 4 + 1 + i % 4), strategy=STRATEGIES[i % 5], density=0.6)
        for i in range(15)
    ]
    return [*compositions, Composition()]


def forwards(model):
    """Shapes [rows, tokens] of the forward passes that go through the model from now on."""
    shapes = []
    model.model.embed_tokens.register_forward_hook(lambda _m, args, _o: shapes.append(tuple(args[0].shape)))
    return shapes


@torch.no_grad()
def scores_alone(base, library, request):
    question = encode_choices(base.tokenizer, request.prompt, request.choices, TINY_CONTEXT, shared_prompt=False)
    with merged(base.model, library.merge(request.composition)):
        return log_likelihoods(base.model, [question])[0]


def test_a_batch_of_different_compositions_is_one_pass_and_scores_as_each_alone(base, library, predictor):
    requests = [scored(f"Number {'x' * i} is:", composition=c) for i, c in enumerate(sixteen(library))]
    shapes = forwards(base.model)
    answers = predictor.predict(requests)
    assert [rows for rows, _ in shapes] == [16]
    for request, answer in zip(requests, answers, strict=True):
        expected = scores_alone(base, library, request)
        torch.testing.assert_close(torch.tensor(answer.choice_scores), expected, rtol=1e-5, atol=1e-5)
        assert answer.output == request.choices[answer.choice_index - 1] == request.choices[int(expected.argmax())]
    assert len({answer.choice_scores for answer in answers}) == 16
    assert len(library.fetched) == 1


def test_what_requests_under_one_composition_begin_with_is_computed_once(base, library, predictor):
    """Each pass of its own costs something, so few or different requests are scored whole."""
    ours, other = library.composition(1, 2), library.composition(3)
    start = "One long instruction that is the same for all of the rows: "
    requests = [scored(f"{start}{'x' * (i % 5)}{i}\nAnswer:", composition=ours) for i in range(10)]
    alone = [scored(f"{start}others\nAnswer:", composition=other), scored("Is it so?", composition=ours)]
    shapes = forwards(base.model)
    answers = predictor.predict([*requests, *alone])
    common = len(letter_tokenizer()(start)["input_ids"])
    assert shapes[0] == (1, common)
    assert sorted(rows for rows, _ in shapes[1:]) == [2, 10]
    for request, answer in zip([*requests, *alone], answers, strict=True):
        expected = scores_alone(base, library, request)
        torch.testing.assert_close(torch.tensor(answer.choice_scores), expected, rtol=1e-5, atol=1e-5)
    shapes.clear()
    predictor.predict([replace(request, prompt=request.prompt + "?") for request in requests[:2]])
    assert [rows for rows, _ in shapes] == [2]


def test_a_batch_generates_what_each_would_alone(base, library, predictor):
    """Rows of different lengths, limits and compositions, under one KV cache."""
    requests = [
        written("The end" + "s" * i, max_new_tokens=4 + i, composition=c) for i, c in enumerate(sixteen(library))
    ]
    answers = predictor.predict(requests)
    for request, answer in zip(requests, answers, strict=True):
        assert answer.output == base.tokenizer.decode(greedy_alone(base, library, request))
        assert answer.prompt_tokens == len(base.tokenizer(request.prompt)["input_ids"])
    assert len({answer.output[:4] for answer in answers}) > 4


@torch.no_grad()
def greedy_alone(base, library, request):
    """Argmax after argmax, without cache, padding or `generate`."""
    tokens = base.tokenizer(request.prompt)["input_ids"]
    start, ends = len(tokens), {base.tokenizer.eos_token_id, *ids_of(base.model.generation_config.eos_token_id)}
    with merged(base.model, library.merge(request.composition)):
        while len(tokens) < start + request.max_new_tokens:
            tokens = [*tokens, int(base.model(torch.tensor([tokens])).logits[0, -1].argmax())]
            if tokens[-1] in ends:
                return tokens[start:-1]
    return tokens[start:]


def ids_of(setting):
    return setting if isinstance(setting, list) else [setting]


def test_scored_and_generated_requests_mix_and_keep_their_order(predictor):
    answers = predictor.predict([scored(), written(), scored(), written(max_new_tokens=3)])
    assert [answer.choice_index is None for answer in answers] == [False, True, False, True]
    assert [answer.output_tokens for answer in answers[1::2]] == [8, 3]


def test_end_of_text_ends_a_row_alone_and_is_not_in_the_answer(base, library, predictor):
    requests = [written(max_new_tokens=12), written("Another start", max_new_tokens=12)]
    full, other = (greedy_alone(base, library, request) for request in requests)
    end = next(token for token in full[2:] if token not in full[:2] and token not in other)
    base.model.generation_config.eos_token_id = [0, end]  # a model may have several
    ended, went_on = predictor.predict(requests)
    at = full.index(end)
    assert (ended.output, ended.output_tokens) == (base.tokenizer.decode(full[:at]), at)
    assert (went_on.output, went_on.output_tokens) == (base.tokenizer.decode(other), 12)


def test_generation_takes_the_way_that_is_cheaper_for_each_pass(base, library, predictor, monkeypatch):
    """Over prompts each row has its own adapters; over a token each all are shared."""
    ways = []
    adding = layers._adding

    def noted(A, B, grouping, gated):
        ways.append("shared" if grouping.picked is None else "own")
        return adding(A, B, grouping, gated)

    monkeypatch.setattr(layers, "_adding", noted)
    requests = [
        written("a" * 60, max_new_tokens=9, composition=library.composition(number, strategy="cat"))
        for number in range(10)
    ]
    predictor.predict(requests)
    modules = len(linear_shapes(base.model, "q_proj", "v_proj"))
    assert ways == ["own"] * modules + ["shared"] * modules  # made once, though the texts take eight steps more


def test_stop_strings_cut_each_row_at_its_first(base, library, predictor):
    tokens = greedy_alone(base, library, written(max_new_tokens=12))
    text = base.tokenizer.decode(tokens)
    early, late = base.tokenizer.decode(tokens[2:4]), base.tokenizer.decode(tokens[5:8])
    cut_late, cut_early, whole = predictor.predict(
        [
            written(max_new_tokens=12, stop=(late,)),
            written(max_new_tokens=12, stop=("never there", late, early)),
            written(max_new_tokens=12),
        ]
    )
    assert (cut_late.output, cut_late.output_tokens) == (text[: text.index(late)], 8)  # the stop string's own count
    assert (cut_early.output, cut_early.output_tokens) == (text[: text.index(early)], 4)
    assert (whole.output, whole.output_tokens) == (text, 12)


def test_a_row_that_has_ended_leaves_at_once_and_changes_nothing_for_the_rest(base, library, predictor):
    """The rows that continue give the same results as each row alone, under its composition."""
    limits = (3, 20, 5, 14, 3, 9, 4, 2)
    requests = [
        written("Go on" + "n" * i, max_new_tokens=limit, composition=c)
        for i, (limit, c) in enumerate(zip(limits, sixteen(library), strict=False))
    ]
    alone = [predictor.predict([request])[0] for request in requests]
    shapes = forwards(base.model)
    assert predictor.predict(requests) == alone
    assert [shape for shape in shapes if shape[1] == 1] == [
        (sum(limit > step for limit in limits), 1) for step in range(1, 20)
    ]


COMPOSED = st.tuples(
    st.sampled_from(STRATEGIES), st.lists(st.integers(0, 9), max_size=4, unique=True), st.sampled_from([0.4, 1.0])
)
WRITTEN = st.tuples(
    st.text("abcd e", min_size=1, max_size=12), st.integers(1, 9), COMPOSED, st.none() | st.text("aeit")
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(WRITTEN, min_size=1, max_size=6), token_budget=st.sampled_from([64, 16384]))
def test_generated_rows_that_end_at_different_times_equal_each_alone_merged(base, library, rows, token_budget):
    """Requests with any strategies, including the base model alone, in one or several batches, with or without stop
    strings."""
    base.model.generation_config.eos_token_id = [1, 20, 30]  # so that some end early
    requests = [
        written(
            prompt if prompt.strip() else "a",
            max_new_tokens=limit,
            stop=(stop,) if stop else (),
            composition=library.composition(*ids, strategy=strategy, density=density),
        )
        for prompt, limit, (strategy, ids, density), stop in rows
    ]
    answers = Fetching(base, library.fetch, token_budget=token_budget).predict(requests)
    for request, answer in zip(requests, answers, strict=True):
        text = base.tokenizer.decode(greedy_alone(base, library, request), skip_special_tokens=True)
        assert answer.output == (text.partition(request.stop[0])[0] if request.stop else text)


@pytest.mark.parametrize("lost", [{1}, {0, 1}, {0, 1, 2}, {3}])
def test_what_is_not_wanted_any_more_leaves_its_batch_and_the_rest_stays_as_it_was(base, library, predictor, lost):
    requests = [written(max_new_tokens=n, composition=library.composition(n % 10)) for n in (30, 31, 9)]
    requests.append(scored())
    compositions = [request.composition for request in requests]
    shapes, expected = forwards(base.model), predictor.predict(requests)
    before = len(shapes)
    answers = predictor.answer(
        requests,
        predictor.compose(compositions, predictor.load(compositions)),
        lambda number: number not in lost or len(shapes) - before < 3,
    )
    gone = {number for number, answer in enumerate(answers) if isinstance(answer, JobError)}
    assert gone == lost - {3}  # whose one pass was the first
    assert {answers[number].code for number in gone} <= {"lease_lost"}
    assert [answers[n] for n in range(4) if n not in gone] == [expected[n] for n in range(4) if n not in gone]
    longest = max([requests[n].max_new_tokens for n in {0, 1, 2} - gone], default=2)
    assert len(shapes) - before == 1 + longest


def test_what_is_not_wanted_from_the_start_takes_no_pass(base, library, predictor):
    shapes, requests = forwards(base.model), [written(), scored()]
    compositions = predictor.compose([Composition()] * 2, predictor.load([]))
    answers = predictor.answer(requests, compositions, lambda _: False)
    assert [answer.code for answer in answers] == ["lease_lost"] * 2
    assert not shapes


def test_a_model_without_a_cache_generates_the_same(base, library, predictor):
    requests = [written(max_new_tokens=limit, composition=library.composition(1)) for limit in (2, 3, 9)]
    cached = predictor.predict(requests)
    base.model.generation_config.use_cache = False
    base.model.config.use_cache = False
    assert predictor.predict(requests) == cached


@dataclass(frozen=True)
class Sized:
    rows: int
    width: int
    positions: int = 1


@given(
    items=st.lists(st.builds(Sized, st.integers(1, 4), st.integers(1, 90), st.integers(1, 30)), max_size=8),
    token_budget=st.integers(1, 600),
    pass_tokens=st.integers(0, 100),
    positions=st.integers(1, 90),
    common=st.integers(0, 90),
)
def test_of_all_ways_to_cut_items_by_width_batches_are_a_cheapest(items, token_budget, pass_tokens, positions, common):
    common = min([common, *(item.width for item in items)])

    def cost(made):
        fit = all(len(batch) == 1 or (tokens(batch) <= token_budget and needed(batch) <= positions) for batch in made)
        read = sum(tokens(batch) - (sum(each.rows for each in batch) - 1) * common for batch in made)
        return read + len(made) * pass_tokens if fit else math.inf

    def needed(batch):
        return sum(each.positions for each in batch)

    def tokens(batch):
        return sum(each.rows for each in batch) * max(each.width for each in batch)

    ordered = sorted(items, key=lambda item: item.width)
    made = batches(items, token_budget, pass_tokens, positions, common)
    assert [each for batch in made for each in batch] == ordered
    cuts = chain.from_iterable(combinations(range(1, len(items)), n) for n in range(len(items)))
    ways = ([ordered[a:b] for a, b in pairwise([0, *cut, len(items)])] for cut in cuts)
    assert cost(made) == min(map(cost, ways), default=0)


def test_where_a_pass_costs_as_much_as_a_full_one_batches_are_few():
    items = [Sized(1, width) for width in range(1, 101)]
    assert [len(batch) for batch in batches(items, 100 * 100, 100 * 100, 1000)] == [100]
    assert [len(batch) for batch in batches(items, 80 * 80, 80 * 80, 1000)] == [50, 50]


def test_prompts_of_very_different_lengths_take_a_pass_each_and_answer_the_same(base, predictor):
    shapes, requests = forwards(base.model), [scored("a b c d e f g h " * 5), *[scored("a")] * 4]
    alone = [predictor.predict([request])[0] for request in requests]
    before = len(shapes)
    together = predictor.predict(requests)
    assert sorted(rows for rows, _ in shapes[before:]) == [1, 4]
    assert [each.output for each in together] == [each.output for each in alone]


def test_rows_come_to_the_output_head_side_by_side_and_its_weights_are_not_copied_for_each(base, predictor):
    seen = []
    head = base.model.get_output_embeddings()
    head.register_forward_hook(lambda _, args, __: seen.append((args[0].shape[:2].numel(), args[0].is_contiguous())))
    predictor.predict([written("a b c", max_new_tokens=2), written("d", max_new_tokens=2)])
    assert seen == [(2, True), (2, True)]


def sampled(seed, temperature=0.8, top_p=0.9, **settings):
    return written(temperature=temperature, top_p=top_p, seed=seed, **settings)


@torch.no_grad()
def sampled_alone(base, library, request):
    """Token by token, without cache or padding: the place of one uniform number in the nucleus, by plain loops."""
    tokens = base.tokenizer(request.prompt)["input_ids"]
    start, generator = len(tokens), torch.Generator().manual_seed(request.seed)
    with merged(base.model, library.merge(request.composition)):
        while len(tokens) < start + request.max_new_tokens and tokens[-1] != base.tokenizer.eos_token_id:
            logits = base.model(torch.tensor([tokens])).logits[0, -1].double() / request.temperature
            ranked = sorted(enumerate(logits.softmax(-1).tolist()), key=lambda pair: -pair[1])
            nucleus, mass = [], 0.0
            for token, probability in ranked:
                if mass >= request.top_p:
                    break
                nucleus.append((token, probability))
                mass += probability
            left = float(torch.rand((), generator=generator)) * mass
            while left >= nucleus[0][1]:
                left -= nucleus.pop(0)[1]
            tokens = [*tokens, nucleus[0][0]]
    return tokens[start:]


def test_sampled_text_is_what_its_seed_draws_whatever_stands_beside_it(base, library, predictor):
    requests = [
        sampled(seed, 0.5 + seed / 4, (0.3, 0.9, 1.0)[seed % 3], max_new_tokens=4 + seed, composition=composition)
        for seed, composition in enumerate(sixteen(library)[:6])
    ]
    answers = predictor.predict([*requests, written()])
    for request, answer in zip(requests, answers, strict=False):
        assert answer.output == base.tokenizer.decode(sampled_alone(base, library, request), skip_special_tokens=True)
    assert answers[-1] == predictor.predict([written()])[0]  # a greedy one among them stays greedy
    again = predictor.predict([replace(requests[0], seed=seed) for seed in range(5)])
    assert len({answer.output for answer in again}) > 1


def test_a_small_nucleus_is_greedy_and_draws_follow_the_probabilities(base, predictor):
    greedy = predictor.predict([written(max_new_tokens=6)])[0]
    assert predictor.predict([sampled(3, temperature=5.0, top_p=0.0001, max_new_tokens=6)])[0] == greedy
    tokens = base.tokenizer("Once upon")["input_ids"]
    with torch.no_grad():
        expected = (base.model(torch.tensor([tokens])).logits[0, -1] / 2).softmax(-1)
    drawn = predictor.predict([sampled(seed, 2.0, 1.0, max_new_tokens=1) for seed in range(400)])
    top = int(expected.argmax())
    share = sum(answer.output == base.tokenizer.decode([top]) for answer in drawn) / 400
    assert share == pytest.approx(float(expected[top]), abs=4 * (float(expected[top]) / 400) ** 0.5)


@pytest.mark.parametrize("temperature", [5e-324, 1e-46, 1e-38, 1e-20, 1e-6])
def test_the_smaller_a_temperature_is_the_greedier(predictor, temperature):
    greedy = predictor.predict([written(max_new_tokens=6)])[0]
    assert predictor.predict([sampled(3, temperature, 1.0, max_new_tokens=6)])[0] == greedy


def test_penalties_of_the_models_own_settings_are_not_applied(base, library, predictor):
    base.model.generation_config.repetition_penalty = 5.0
    expected = base.tokenizer.decode(greedy_alone(base, library, written()))
    assert predictor.predict([written()])[0].output == expected


def test_normalisation_decides(predictor):
    request = scored(choices=("es", "a long answer"))
    none, characters, tokens = predictor.predict(
        [replace(request, normalization=normalization) for normalization in ("none", "characters", "tokens")]
    )
    assert characters.choice_scores == pytest.approx((none.choice_scores[0] / 2, none.choice_scores[1] / 13))
    assert tokens.choice_scores == pytest.approx((none.choice_scores[0] / 2, none.choice_scores[1] / 14))
    assert none.choice_index == 1


def test_of_equal_scores_the_first_choice_wins(predictor):
    answer = predictor.predict([scored(choices=("zzzzzz", "no", "no"))])[0]
    assert answer.choice_scores[1] == answer.choice_scores[2] > answer.choice_scores[0]
    assert answer.choice_index == 2


def test_whatever_is_wrong_fails_its_request_alone(library, predictor):
    fine = [scored(composition=library.composition(1, 2)), written(composition=library.composition(3))]
    wrong = {
        "prompt_too_long": scored("a" * TINY_CONTEXT),
        "prompt_blank": scored("  "),
        "choice_blank": scored(choices=("yes", "\u00fc")),
        "adapter_missing": scored(composition=library.composition(1, BROKEN)),
        "adapter_unfit": scored(composition=library.composition(UNFIT)),
        "adapter_changed": scored(composition=replace(library.composition(1), adapter_sha256=("e" * 64,))),
        "composition_refused": scored(composition=library.composition(1, strategy="svd")),
        "not_finite": scored(composition=library.composition(HUGE)),
    }
    alone = [predictor.predict([request])[0] for request in fine]
    answers = predictor.predict([fine[0], *wrong.values(), fine[1]])
    assert [error.code for error in answers[1:-1]] == list(wrong)
    assert not any(error.retry for error in answers[1:-1])
    assert f"adapters (ids: {HUGE})" in str(answers[-2])
    for answer, expected in zip((answers[0], answers[-1]), alone, strict=True):
        assert answer.output == expected.output
    assert answers[0].choice_scores == pytest.approx(alone[0].choice_scores, rel=1e-5)


@pytest.mark.parametrize("strategy", ["cat", "linear"])
def test_an_adapter_of_the_output_head_changes_its_own_rows_alone(base, library, predictor, strategy):
    """The head sees the scored places of all rows together, of which some have several."""
    on_head = scored(composition=library.composition(1, ON_HEAD, strategy=strategy), choices=("yes", "n", "perhaps"))
    requests = [on_head, scored(), on_head, scored(composition=library.composition(2))]
    for answer, request in zip(predictor.predict(requests), requests, strict=True):
        assert answer.choice_scores == pytest.approx(scores_alone(base, library, request).tolist(), rel=1e-5)


def test_a_generation_that_is_too_long_or_not_finite_fails_alone(library, predictor):
    too_long, not_finite, fine = predictor.predict(
        [
            written("abc", max_new_tokens=TINY_CONTEXT - 2),
            written(composition=library.composition(HUGE)),
            written("abc", max_new_tokens=8),
        ]
    )
    assert "take 257 tokens; the base model takes at most 256" in str(too_long)
    assert (too_long.code, not_finite.code) == ("prompt_too_long", "not_finite")
    assert f"adapters (ids: {HUGE})" in str(not_finite)
    assert fine.output_tokens == 8


OVERFLOWING = {"A": (3e4, 1e-3), "B": (1e-3, 1e5)}
"""Sizes of an adapter's factors of which one overflows in float16: A x in a pass, or B itself."""


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("overflows", OVERFLOWING)
@pytest.mark.parametrize("token_budget", [16384, 1])  # in one pass, and each in its own
def test_an_adapter_that_overflows_in_float16_fails_its_own_jobs_alone(overflows, shared, token_budget, monkeypatch):
    """The healthy adapters are few, so that no pass makes a smaller stack, without the adapter that overflows."""
    monkeypatch.setattr(layers, "_shared_is_cheaper", lambda *_, **__: shared)
    base = as_base(tiny_llama().half(), letter_tokenizer())
    library = Library(base.model)
    sizes = OVERFLOWING[overflows]
    factors = library.adapters[1].factors.items()
    large = {module: Factors(f.A.sign() * sizes[0], f.B.sign() * sizes[1]) for module, f in factors}
    library.adapters[HUGE] = replace(library.adapters[HUGE], factors=large)
    compositions = [library.composition(*ids) for ids in ((HUGE,), (2,), ())]
    requests = [ask(composition=each) for ask in (scored, written) for each in compositions]
    alone = [Fetching(base, library.fetch).predict([request])[0] for request in requests]
    for order in ([0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]):
        together = Fetching(base, library.fetch, token_budget=token_budget).predict([requests[at] for at in order])
        for at, answer in zip(order, together, strict=True):
            if at % 3 == 0:
                assert (answer.code, f"adapters (ids: {HUGE})" in str(answer)) == ("not_finite", True)
            else:
                assert answer.output == alone[at].output


def test_a_text_that_comes_after_an_adapter_overflowed_has_nothing_of_it(library):
    """The adapters of a text that has ended stay in the stack of the texts that follow."""
    base = as_base(tiny_llama().half(), letter_tokenizer())
    factors = library.adapters[1].factors.items()
    large = {module: Factors(f.A.sign() * 1e-3, f.B.sign() * 1e5) for module, f in factors}
    library.adapters[HUGE] = replace(library.adapters[HUGE], factors=large)
    bad, good = (written(composition=library.composition(each)) for each in (HUGE, 2))
    predictor = Fetching(base, library.fetch)
    expected = predictor.predict([good])[0].output
    mixes = predictor.compose([good.composition, bad.composition], predictor.load([good.composition, bad.composition]))
    answering = predictor.begin()
    first, lost = answering.add(good, mixes[0]), answering.add(bad, mixes[1])
    while answering:
        answering.step()
    after = answering.add(good, mixes[0])
    while answering:
        answering.step()
    assert [each.outcome.output for each in (first, after)] == [expected] * 2
    assert lost.outcome.code == "not_finite"


def test_an_adapter_that_overflows_does_not_change_the_rows_that_do_not_use_it(library):
    """These rows need not be tried again alone, at each token, while the other text goes on."""
    narrow = as_base(tiny_llama().half(), letter_tokenizer())
    factors = library.adapters[1].factors.items()
    large = {module: Factors(f.A.sign() * 3e4, f.B * 0) for module, f in factors}
    packed = library.adapters[2].packed(), replace(library.adapters[HUGE], factors=large).packed()
    good, bad = (gated("cat", [each], [1.0]) for each in packed)
    ids = torch.tensor([[5, 6, 7]] * 2)
    for shared in (True, False):
        with layers.AdapterStack(narrow.model, [good, bad]).composed([good, bad], shared=shared):
            beside = narrow.model(ids).logits
        with layers.AdapterStack(narrow.model, [good]).composed([good], shared=shared):
            alone = narrow.model(ids[:1]).logits
        assert beside[1].isnan().any()
        torch.testing.assert_close(beside[:1], alone, rtol=1e-2, atol=1e-2)


def test_a_batch_is_cut_by_the_token_budget_and_what_came_first_is_in_the_first_pass(base, library):
    requests = [scored("a" * length, choices=("xy", "z")) for length in (40, 5, 20, 60, 8, 33)]
    whole = Fetching(base, library.fetch).predict(requests)
    shapes = forwards(base.model)
    cut = Fetching(base, library.fetch, token_budget=100).predict(requests)
    widths = [width for _, width in shapes]
    assert all(rows * width <= 100 or rows == 1 for rows, width in shapes)
    assert len(shapes) > 2
    assert widths[1:] == sorted(widths[1:])
    assert widths[0] >= 40 > min(widths)
    for a, b in zip(whole, cut, strict=True):
        assert a.choice_scores == pytest.approx(b.choice_scores, rel=1e-5)


def test_a_request_too_large_for_a_pass_is_scored_in_several_and_lets_others_go_between(base, library, monkeypatch):
    monkeypatch.setattr("loracomp.model.tokens.ROW_TOKENS", 1)
    large = scored("a" * 30, choices=[*(f"{letter * 40}" for letter in "bcdefg"), "h"])
    small = [scored(f"Is {number} even?\nAnswer:") for number in range(2)]
    predictor = Fetching(base, library.fetch, token_budget=150)
    expected = Fetching(base, library.fetch).predict([large, *small])
    shapes = forwards(base.model)
    mixes = predictor.compose([each.composition for each in [large, *small]], predictor.load([], library.fetch))
    answering = predictor.begin()
    pending = [answering.add(*each) for each in zip([large, *small], mixes, strict=True)]
    steps = []
    while answering:
        answering.step()
        steps.append([each.outcome is not None for each in pending])
    assert all(rows * width <= 150 for rows, width in shapes)
    assert [False, True, True] in steps
    for got, right in zip(pending, expected, strict=True):
        assert got.outcome.choice_scores == pytest.approx(right.choice_scores, rel=1e-4)
        assert got.outcome.choice_index == right.choice_index


@given(most=st.integers(1, 40), lengths=st.lists(st.integers(1, 40), min_size=2, max_size=6, unique=True))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_pass_computes_logits_at_more_positions_than_memory_is_given_for(base, library, most, lengths):
    """Long choices would otherwise take gigabytes: the logits of each of their tokens are as many as the vocabulary."""
    requests = [
        scored("a" * 30, choices=["bcdefgh"[number] * length for number, length in enumerate(lengths)]),
        scored(composition=library.composition(1, ON_HEAD)),
        scored("Is it so?", choices=("perhaps it is", "no")),
        written("Once upon", 3),
    ]
    expected = Fetching(base, library.fetch).predict(requests)
    vocabulary, computed = base.model.config.vocab_size, []
    hook = base.model.lm_head.register_forward_hook(lambda _m, _a, logits: computed.append(logits.shape[1]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("loracomp.model.batching.LOGITS_BYTES", 4 * vocabulary * most)
        found = Fetching(base, library.fetch).predict(requests)
    hook.remove()
    assert max(computed) <= most
    assert found[-1] == expected[-1]
    for got, right in zip(found[:-1], expected[:-1], strict=True):
        assert got.choice_scores == pytest.approx(right.choice_scores, rel=1e-4)


@pytest.mark.parametrize("others", [0, 1])
def test_a_prompt_without_tokens_is_refused_whatever_stands_beside_it(predictor, others):
    """Tokenizers that know no bytes drop characters, so that nothing is left of some prompts."""
    blank = [scored("\u00fc\u00fc"), written("\u00fc")]
    *fine, one, other = predictor.predict([*[scored("much longer than nothing")] * others, *blank])
    assert (one.code, other.code) == ("prompt_blank", "prompt_blank")
    assert all(isinstance(each, Prediction) for each in fine)


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_running_out_of_memory_halves_the_batch_and_spares_what_fits(base, predictor, device):
    requests = [scored("ab"), scored("a" * 50), scored("abc"), scored("abcd"), written("ab")]
    expected = predictor.predict(requests)
    small_machine(base.model, most_tokens=50, device=device)
    answers = predictor.predict(requests)
    assert (answers[1].code, answers[1].retry) == ("out_of_memory", True)
    for index in (0, 2, 3):
        assert answers[index].choice_scores == pytest.approx(expected[index].choice_scores, rel=1e-5)
    assert answers[4] == expected[4]


def small_machine(model, most_tokens, device):
    """Let the embedding of more tokens than that ask for a petabyte, or end as it does where a GPU has no room."""

    def allocate(_module, args, _output):
        if args[0].numel() > most_tokens and device == "gpu":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1024.00 TiB.")
        if args[0].numel() > most_tokens:
            torch.empty(2**50, dtype=torch.uint8)

    model.model.embed_tokens.register_forward_hook(allocate)


def test_memory_that_runs_out_while_a_spoilt_request_is_scored_alone_fails_that_request_alone(base, library, predictor):
    """It is scored a second time because the adapter of another request may overflow."""
    fine = scored(choices=("yes", "n"))
    expected = predictor.predict([fine])[0]

    def allocate(_module, args, _output):
        if len(args[0]) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1024.00 TiB.")

    base.model.model.embed_tokens.register_forward_hook(allocate)
    spoilt, answer = predictor.predict([scored(composition=library.composition(HUGE)), fine])
    assert (spoilt.code, spoilt.retry) == ("out_of_memory", True)
    assert answer.choice_scores == pytest.approx(expected.choice_scores, rel=1e-5)


def test_another_error_is_not_taken_for_lack_of_memory(base, predictor):
    def fail(*_):
        raise RuntimeError("device-side assert")

    base.model.model.embed_tokens.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="device-side assert"):
        predictor.predict([scored(), scored()])


def test_compositions_and_adapters_stay_between_batches(library, predictor):
    requests = [scored(composition=library.composition(1, 2)), scored(composition=library.composition(2, 3))]
    first = predictor.predict(requests)
    assert predictor.predict(requests[::-1]) == first[::-1]
    assert library.fetched == [[1, 2, 3]]


def test_what_a_strategy_keeps_holds_no_adapter_in_memory(base, library):
    adapters = ResidentAdapters(1 << 20).get(((id_, f"{id_:064x}") for id_ in (1, 2)), library.fetch)
    factors = weakref.ref(next(iter(adapters[1].stored.values())).A)
    composer = Composer(base, cache_bytes=1 << 20)
    assert isinstance(composer.compose([library.composition(1, 2, strategy="ties")], adapters)[0], Mix)
    del adapters
    assert len(composer.masks) == 2
    assert factors() is None


def test_nothing_asked_nothing_answered(predictor):
    assert predictor.predict([]) == []


def test_adapters_in_bfloat16_serve_a_float32_model(library, predictor):
    stored = library.adapters[1]
    narrow = {module: Factors(f.A.bfloat16(), f.B.bfloat16()) for module, f in stored.factors.items()}
    library.adapters[1] = replace(stored, factors=narrow)
    assert isinstance(predictor.predict([scored(composition=library.composition(1))])[0], Prediction)


@pytest.mark.model
def test_the_real_model_answers_and_adapters_change_its_answers(smollm2):
    shapes = linear_shapes(smollm2.model, "q_proj", "v_proj")
    adapters = {i: random_adapter(shapes, rank=8, seed=i, size=0.03) for i in range(4)}
    mix = Composition((0, 1, 2, 3), tuple(adapters[i].sha256 for i in range(4)), (0.4, 0.3, 0.2, 0.1), "cat")
    predictor = Fetching(smollm2, lambda ids: [adapters[id_] for id_ in ids])
    question = scored("The capital of France is", choices=("Tuesday", "Paris", "a small teapot"))
    once = written("The capital of France is", max_new_tokens=4, stop=(".", "\n"))
    plain, mixed, text = predictor.predict([question, replace(question, composition=mix), once])
    assert plain.output == "Paris"
    assert "Paris" in text.output
    assert mixed.choice_scores != pytest.approx(plain.choice_scores, rel=0.01)
    encoded = encode_choices(smollm2.tokenizer, question.prompt, question.choices, smollm2.context_length)
    factors = compose("cat", list(adapters.values()), mix.weights)
    with merged(smollm2.model, factors), torch.no_grad():
        expected = log_likelihoods(smollm2.model, [encoded])[0]
    assert (torch.tensor(mixed.choice_scores) - expected).norm() <= 1e-5 * expected.norm()


def test_submitters_take_turns_however_many_requests_of_one_came_before(base, library):
    answering = Fetching(base, library.fetch, token_budget=1).begin()  # each request gets its own pass
    many = [answering.add(scored(f"{number}", submitted_by="ann"), Mix()) for number in range(3)]
    answering.step()
    late = [answering.add(scored("late", submitted_by=name), Mix()) for name in ("bert", "carol")]
    order = []
    while answering:
        answering.step()
        order += [each for each in (*many[1:], *late) if each.outcome and each not in order]
    assert order == [*late, *many[1:]]


def test_requests_in_the_background_wait_for_the_others_and_share_no_pass_with_them(library, predictor):
    requests = [scored(f"Is {n} even?\nAnswer:") for n in range(4)]
    mixes = predictor.compose([each.composition for each in requests], predictor.load([], library.fetch))
    answering = predictor.begin()
    old = [answering.add(*each, background=True) for each in zip(requests, mixes, strict=True)]
    new = [answering.add(*each) for each in zip(requests[:2], mixes, strict=False)]
    answering.step()
    assert all(each.outcome and each.begun for each in new)
    assert not any(each.outcome or each.begun for each in old)
    while answering:
        answering.step()
    for late, early in zip(old, new, strict=False):  # a pass of another size rounds otherwise
        assert late.outcome.choice_scores == pytest.approx(early.outcome.choice_scores, rel=1e-4)


def test_a_request_in_the_background_ends_with_its_lease_although_others_keep_it_waiting(library, predictor):
    requests = [scored(f"Is {n} even?\nAnswer:") for n in range(2)]
    mixes = predictor.compose([each.composition for each in requests], predictor.load([], library.fetch))
    answering = predictor.begin()
    old = answering.add(requests[0], mixes[0], lambda: False, background=True)
    new = answering.add(requests[1], mixes[1])
    answering.step()
    assert new.outcome and isinstance(old.outcome, JobError) and old.outcome.code == "lease_lost"
