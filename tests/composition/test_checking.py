"""Passes checked against merged weights: a right one passes, one with another row's gates is counted and logged."""

import logging

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from loracomp import metrics
from loracomp.composition.blocks import Factors
from loracomp.composition.checking import MergeChecker, merged
from loracomp.composition.layers import SideBySide
from loracomp.composition.strategies import STRATEGIES, gated, prepare
from loracomp.model.scoring import encode_choices, log_likelihoods
from loracomp.records import Answer, Composition, Request
from model_fixtures import Fetching, as_base, letter_tokenizer, linear_shapes, random_adapter, tiny_llama


@pytest.fixture(scope="module")
def base():
    return as_base(tiny_llama(), letter_tokenizer())


def counts():
    return tuple(int(counter._value.get()) for counter in (metrics.PASSES_CHECKED, metrics.PASSES_DIFFERENT))


def new_counts(before):
    return tuple(now - then for now, then in zip(counts(), before, strict=True))


def adapters(model):
    shapes = linear_shapes(model, "q_proj", "v_proj")
    return [random_adapter(shapes, rank=4, seed=seed, scaling=3.0) for seed in range(3)]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_pass_is_right_under_its_own_mixes_and_different_under_swapped_ones(base, strategy, caplog):
    packed = prepare(strategy, [each.packed() for each in adapters(base.model)], density=0.7, seed=1)
    one, other = gated(strategy, packed, [0.9, 0.1, 0.3]), gated(strategy, packed, [0.1, 0.8, -0.4])
    questions = [encode_choices(base.tokenizer, text, ["yes", "no", "b"], 256) for text in ("is it", "was it so")]
    mixes = [one, other]
    rows = [mix for question, mix in zip(questions, mixes, strict=True) for _ in question.rows]
    with SideBySide(base.model, rows).composed(rows), torch.no_grad():
        scores = log_likelihoods(base.model, questions)
    before = counts()
    checker = MergeChecker(base.model, 1)
    with caplog.at_level(logging.ERROR):
        checker.check(list(zip(questions, mixes, strict=True)), scores)
        assert new_counts(before) == (1, 0)
        assert not caplog.records
        checker.check(list(zip(questions, mixes[::-1], strict=True)), scores)
    assert new_counts(before) == (2, 1)
    assert "pass_differs adapters=0,1,2" in caplog.text


def test_of_a_predictors_passes_one_in_n_is_checked_and_answers_stay_as_they_are(base):
    known = dict(enumerate(adapters(base.model)))
    composition = Composition((0, 1), (known[0].sha256, known[1].sha256), (0.6, 0.4), "cat")
    request = Request("is it so", ("yes", "no"), None, composition=composition, contrast=0.5)
    parameters = dict(base.model.named_parameters())
    before = counts()
    checked, unchecked = (
        [predictor.predict([request])[0] for _ in range(5)]
        for predictor in (
            Fetching(base, lambda ids: [known[id_] for id_ in ids], check_one_in=2),
            Fetching(base, lambda ids: [known[id_] for id_ in ids]),
        )
    )
    assert all(isinstance(answer, Answer) for answer in checked)
    assert checked == unchecked
    assert new_counts(before) == (2, 0)
    assert all(parameter is parameters[name] for name, parameter in base.model.named_parameters())


def test_scores_that_are_not_finite_are_left_to_the_row_that_is_asked_again(base):
    question = encode_choices(base.tokenizer, "is it", ["yes", "no"], 256)
    before = counts()
    mix = gated("cat", [adapters(base.model)[0].packed()], [1.0])
    MergeChecker(base.model, 1).check([(question, mix)], [torch.tensor([float("nan"), 0.0])])
    assert new_counts(before) == (1, 0)


def test_merging_changes_the_named_module_alone_and_turns_weights_that_are_kept_the_other_way_round():
    config = GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=20, n_positions=16, tie_word_embeddings=True)
    model = GPT2LMHeadModel(config).eval()
    weights = {name: module.weight for name, module in model.named_modules() if hasattr(module, "weight")}
    shapes = {"transformer.h.0.attn.c_attn": (24, 8), "transformer.wte": (8, 20), "lm_head": (20, 8)}
    factors = {name: Factors(torch.randn(2, d_in), torch.randn(d_out, 2)) for name, (d_out, d_in) in shapes.items()}
    with merged(model, factors), torch.no_grad():
        for name, (A, B) in factors.items():
            module = model.get_submodule(name)
            change = module.weight - weights[name]
            torch.testing.assert_close(change if isinstance(module, nn.Linear) else change.T, B @ A)
    assert all(model.get_submodule(name).weight is weight for name, weight in weights.items())
