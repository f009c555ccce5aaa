"""Texts that join and leave a running batch: each comes out as it does alone, and what is alike is computed once."""

import random
from collections import Counter
from contextlib import nullcontext

import pytest
import torch
from peft import PeftModel

from loracomp.composition.layers import AdapterStack
from loracomp.composition.strategies import gated
from loracomp.errors import JobError
from loracomp.model import forward
from loracomp.model.generation import ALIKE, Texts
from loracomp.model.text import Generated, Prompt
from model_fixtures import letter_tokenizer, linear_shapes, peft_twin, random_adapter, tiny_llama


@pytest.fixture
def model():
    return tiny_llama()


@pytest.fixture(scope="module")
def tokenizer():
    return letter_tokenizer()


def passes(model):
    """Shapes [rows, tokens] of what goes through the model from now on."""
    shapes = []
    model.model.embed_tokens.register_forward_hook(lambda _m, args, _o: shapes.append(tuple(args[0].shape)))
    return shapes


def prompt(first, length=5, new=6, **settings):
    return Prompt([2 + (first + n) % 60 for n in range(length)], new, **settings)


def run_all(texts):
    while texts:
        texts.step()


def alone(model, tokenizer, asked, by=lambda *_: nullcontext, **about):
    texts = Texts(model, tokenizer, by)
    text = texts.add(asked, **about)
    run_all(texts)
    return text.result()


def adapters(model):
    shapes = linear_shapes(model, "q_proj", "v_proj")
    return [random_adapter(shapes, seed=seed, scaling=3.0) for seed in range(4)]


def mixed(model):
    """A run in which each text has its own mix, one of four."""
    packed = [adapter.packed() for adapter in adapters(model)]
    mixes = [gated("cat", [packed[n], packed[(n + 1) % 4]], [0.7, 0.3]) for n in range(4)]

    def under(texts, tokens):
        return AdapterStack(model, mixes).ready([mixes[text.composition] for text in texts], tokens)

    return under


def test_texts_join_and_leave_at_every_step_and_come_out_as_alone(model, tokenizer, monkeypatch):
    """Texts that each have their own mix. Some are longer than those that run, and they need more rows and columns than
    there is room for."""
    monkeypatch.setattr(forward, "ROWS", 1)
    monkeypatch.setattr(forward, "COLUMNS", 2)
    under = mixed(model)
    asked = [
        prompt(7 * n, length=3 + 5 * (n % 4), new=2 + 3 * (n % 5), temperature=0.9 * (n % 2), seed=n) for n in range(14)
    ]
    expected = [alone(model, tokenizer, each, under, composition=n % 4) for n, each in enumerate(asked)]
    texts, joined, ended = Texts(model, tokenizer, under), [], []
    while texts or len(joined) < len(asked):
        if len(joined) < len(asked):
            joined.append(texts.add(asked[len(joined)], composition=len(joined) % 4))
        ended += texts.step()
    assert [text.result() for text in joined] == expected
    assert len(ended) == len({id(text) for text in ended}) == len(asked)
    assert ended != joined  # short ones end before longer ones that came earlier


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT 0.21 reads it
def test_greedy_texts_are_those_of_transformers_on_pefts_merge(model, tokenizer):
    """One after the other by `model.generate`: the plainest way there is."""
    under = mixed(model)
    asked = [prompt(11 * n, length=4 + n, new=10) for n in range(8)]
    texts = Texts(model, tokenizer, under)
    found = [texts.add(each, composition=n % 4) for n, each in enumerate(asked)]
    run_all(texts)
    with peft_twin(model, adapters(model)) as peft_model:
        assert isinstance(peft_model, PeftModel)
        for n in range(4):
            peft_model.add_weighted_adapter([str(n), str((n + 1) % 4)], [0.7, 0.3], f"mix {n}", combination_type="cat")
        for n, (each, text) in enumerate(zip(asked, found, strict=True)):
            peft_model.set_adapter(f"mix {n % 4}")
            ids = torch.tensor([each.tokens])
            output = peft_model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=10)
            expected = output[0, len(each.tokens) :].tolist()
            assert text.tokens == expected
    assert len({tuple(text.tokens) for text in found}) > 4


def sharing(model, tokenizer, asked, shares=True, **budget):
    """Results of prompts, each with its composition, which all come at once; and shapes of the passes."""
    under = mixed(model)
    texts, shapes = Texts(model, tokenizer, under, shares_prefixes=shares, **budget), passes(model)
    found = [texts.add(each, composition=number) for each, number in asked]
    run_all(texts)
    return [text.result() for text in found], shapes


BEGINNING = [2 + 7 * n % 60 for n in range(ALIKE + 20)]


def ending(*tokens, new=4):
    return Prompt([*BEGINNING, *tokens], new)


def test_what_prompts_begin_with_is_computed_once_under_one_mix(model, tokenizer):
    asked = [(ending(n, 5, *[9] * n), 0) for n in range(6)] + [(ending(8, 7), 1), (prompt(3), 0)]
    expected, _ = sharing(model, tokenizer, asked, shares=False)
    found, shapes = sharing(model, tokenizer, asked)
    assert found == expected
    read = [(rows, tokens) for rows, tokens in shapes if tokens > 1]
    assert sum(rows * tokens for rows, tokens in read) < 3 * len(BEGINNING) + 6 * 7 + 10


def test_equal_prompts_share_all_but_their_last_token(model, tokenizer):
    asked = [(ending(4), 2)] * 3
    found, shapes = sharing(model, tokenizer, asked)
    assert len(set(found)) == 1
    assert shapes[:2] == [(1, len(BEGINNING)), (3, 1)]


def test_what_the_budget_does_not_hold_joins_later(model, tokenizer):
    asked = [(ending(n, *range(9, 9 + 3 * n), new=4 + n), 0) for n in range(5)]
    expected, _ = sharing(model, tokenizer, asked, shares=False)
    found, _ = sharing(model, tokenizer, asked, token_budget=2 * (len(BEGINNING) + 25))
    assert found == expected


def test_what_is_not_wanted_any_more_is_gone_with_the_next_step(model, tokenizer):
    texts, lost = Texts(model, tokenizer), set()
    asked = {n: texts.add(prompt(n, new=9), wanted=lambda n=n: n not in lost) for n in range(3)}
    texts.step()
    lost.add(1)
    shapes = passes(model)
    assert texts.step() == [asked[1]]
    assert shapes == [(2, 1)]
    assert asked[1].result() is None


def test_no_more_run_than_the_budget_holds_and_who_waits_goes_in_turn(model, tokenizer):
    texts = Texts(model, tokenizer, token_budget=3 * 11)
    shapes, ended = passes(model), []
    asked = [texts.add(prompt(n, length=5, new=6 - (n == 0))) for n in range(7)]
    while texts:
        ended += texts.step()
    assert max(rows for rows, _ in shapes) == 3
    assert [asked.index(text) for text in ended[:1]] == [0]
    assert {*map(asked.index, ended[:3])} == {0, 1, 2}


def test_texts_in_the_background_join_after_the_others(model, tokenizer):
    texts = Texts(model, tokenizer, token_budget=11)
    old = [texts.add(prompt(n), background=True) for n in range(2)]
    new = [texts.add(prompt(n)) for n in range(2)]
    ended = []
    while texts:
        ended += texts.step()
    assert ended == [*new, *old]


def test_a_text_waits_for_no_more_than_a_turn_of_another_submitters_texts(model, tokenizer, monkeypatch):
    monkeypatch.setattr("loracomp.model.generation.TURN", 4)
    texts = Texts(model, tokenizer, token_budget=3 * 65)
    asked = [prompt(n, length=5, new=60 - n) for n in range(6)]
    anns = [texts.add(each, submitter="ann") for each in asked]
    texts.step()
    bobs = texts.add(prompt(7, length=5, new=9), submitter="bob")
    steps = 0
    while not bobs.tokens:
        texts.step()
        steps += 1
    assert steps <= 5
    while texts:
        ended = texts.step()
        assert not (bobs in ended and {*anns} & {*ended})
    assert [text.result() for text in anns] == [alone(model, tokenizer, each) for each in asked]
    assert bobs.result() == alone(model, tokenizer, prompt(7, length=5, new=9))


@pytest.mark.parametrize("seed", range(8))
def test_submitters_take_turns_and_their_texts_come_out_as_alone(model, tokenizer, monkeypatch, seed):
    draw, turn = random.Random(seed), 3
    monkeypatch.setattr("loracomp.model.generation.TURN", turn)
    texts = Texts(model, tokenizer, token_budget=draw.choice((20, 50, 100)))
    asked = [prompt(n, length=draw.randint(1, 9), new=draw.choice((1, 5, 15))) for n in range(16)]
    added, waited = {}, Counter()
    while texts or asked:
        for _ in range(min(draw.choice((0, 1, 8)), len(asked))):
            each, submitter = asked.pop(), draw.choice(("ann", "ann", "ann", "bob", "carl"))
            added[texts.add(each, submitter=submitter, background=draw.random() < 0.2)] = each
        before = {text: len(text.tokens) for text in added}
        texts.step()
        for submitter in ("ann", "bob", "carl"):
            own = [text for text in added if text.submitter == submitter and not text.background and not text.ended]
            served = any(len(text.tokens) > count for text, count in before.items() if text.submitter == submitter)
            waited[submitter] = 0 if served or not own else waited[submitter] + 1
        assert max(waited.values()) <= 3 * (turn + 2), waited
    assert [text.result() for text in added] == [alone(model, tokenizer, each) for each in added.values()]


@pytest.mark.parametrize("most", [4, 1])
def test_where_memory_runs_out_fewer_run_and_all_come_out_the_same(model, tokenizer, most):
    asked = [prompt(5 * n, new=3 + n) for n in range(6)]
    expected = [alone(model, tokenizer, each) for each in asked]

    def allocate(_module, args, _output):
        if len(args[0]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1024.00 TiB.")

    model.model.embed_tokens.register_forward_hook(allocate)
    texts = Texts(model, tokenizer)
    found = [texts.add(each) for each in asked]
    run_all(texts)
    assert [text.result() for text in found] == expected


def test_as_many_run_again_after_memory_has_run_out_once(model, tokenizer):
    rows = []

    def allocate(_module, args, _output):
        rows.append(len(args[0]))
        if len(rows) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1024.00 TiB.")

    model.model.embed_tokens.register_forward_hook(allocate)
    texts = Texts(model, tokenizer, token_budget=4 * 9)
    for seed in range(80):
        texts.add(prompt(seed, length=5, new=4))
    run_all(texts)
    assert max(rows[:3]) == 4
    assert max(rows[4:12]) < 4, "fewer at first"
    assert max(rows[-20:]) == 4


def test_a_text_too_large_alone_fails_alone(model, tokenizer):
    def allocate(_module, args, _output):
        if args[0].shape[1] > 20:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1024.00 TiB.")

    model.model.embed_tokens.register_forward_hook(allocate)
    texts = Texts(model, tokenizer)
    small, large, after = (texts.add(each) for each in (prompt(1), prompt(2, length=30), prompt(3)))
    run_all(texts)
    error = large.result()
    assert isinstance(error, JobError)
    assert (error.code, error.retry) == ("out_of_memory", True)
    assert isinstance(small.result(), Generated) and isinstance(after.result(), Generated)


def test_what_a_neighbour_spoils_goes_on_alone_and_draws_the_same(model, tokenizer):
    """An adapter that overflows only at one step turns all rows of that pass into NaN."""
    asked = [prompt(9 * n, new=7, temperature=0.8, seed=n) for n in range(3)]
    expected = [alone(model, tokenizer, each) for each in asked]
    texts = Texts(model, tokenizer)
    found = [texts.add(each) for each in asked]
    texts.step()

    def spoil(_module, _args, output):
        handle.remove()
        return output * float("nan")

    handle = model.model.embed_tokens.register_forward_hook(spoil)
    run_all(texts)
    assert [text.result() for text in found] == expected


def test_a_model_that_keeps_more_than_keys_and_values_reads_everything_again(model, tokenizer, monkeypatch):
    asked = [prompt(5 * n, new=3 + n) for n in range(3)]
    expected = [alone(model, tokenizer, each) for each in asked]
    monkeypatch.setattr("loracomp.model.generation.keys_and_values_suffice", lambda _: False)
    texts, shapes = Texts(model, tokenizer, shares_prefixes=True), passes(model)
    found = [texts.add(each) for each in asked]
    run_all(texts)
    assert [text.result() for text in found] == expected
    assert shapes[-1] == (1, 5 + 4)
