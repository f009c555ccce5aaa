"""Frequencies that depend on a text's length: a row's are its own, whatever stands beside it in the batch."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM, PhimoeConfig, PhimoeForCausalLM

from loracomp.engine.predictor import Predictor
from loracomp.model.generation import ALIKE, Texts
from loracomp.model.longrope import length_limits
from loracomp.model.scoring import log_likelihoods
from loracomp.model.text import Prompt
from loracomp.model.tokens import encode_choices
from loracomp.records import Composition, Request
from model_fixtures import LETTERS, MERGES, TINY_CONTEXT, as_base

LIMIT = 80
TINY = {
    "vocab_size": 2 + len(LETTERS) + len(MERGES),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": TINY_CONTEXT,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": None,
    "pad_token_id": 1,
}
FACTORS = {"short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [1.0, 6.0, 20.0, 60.0]}
LONG = {"rope_type": "longrope", "rope_theta": 100.0, "original_max_position_embeddings": LIMIT, **FACTORS}


def made(kind, config):
    torch.manual_seed(0)
    model = kind(config).eval().requires_grad_(False)
    model.get_output_embeddings().weight[1] = 0  # the end of a text is never the most likely token
    return model


def phi3():
    return made(Phi3ForCausalLM, Phi3Config(**TINY, rope_parameters=LONG, original_max_position_embeddings=LIMIT))


def phimoe():
    scales = {"short_mscale": 1.0, "long_mscale": 1.3}
    config = PhimoeConfig(**TINY, num_local_experts=4, rope_parameters=LONG | scales)
    return made(PhimoeForCausalLM, config)


def dynamic():
    rope = {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 4.0}
    return made(LlamaForCausalLM, LlamaConfig(**TINY, rope_parameters=rope))


MODELS = {"Phi-3": phi3, "Phi-MoE": phimoe, "dynamic": dynamic}
LENGTHS = (LIMIT - 30, LIMIT - 2, LIMIT - 1, LIMIT, LIMIT + 1, LIMIT + 40, 5)


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]()


def tokens(length, first=0):
    return [2 + (first + 7 * n) % 60 for n in range(length)]


def logits_alone(model, ids):
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)


def plain_score(model, start, continuation):
    """The last token is only predicted, and so isn't read."""
    logits = logits_alone(model, start + continuation[:-1])
    return float(sum(logits[len(start) + i - 1, token] for i, token in enumerate(continuation)))


@torch.inference_mode()
def greedy_alone(model, ids, new):
    ids, start = list(ids), len(ids)
    while len(ids) < start + new:
        ids.append(int(logits_alone(model, ids)[-1].argmax()))
    return ids[start:]


def test_the_frequencies_of_these_models_change_at_one_length():
    assert [length_limits(make()) for make in MODELS.values()] == [(LIMIT,), (LIMIT,), ()]
    model = phi3()
    short, long = (logits_alone(model, tokens(LIMIT + more))[LIMIT - 1] for more in (0, 1))
    assert (short - long).abs().max() > 0.1


@pytest.mark.parametrize("shared", [True, False])
def test_choices_score_as_alone_beside_longer_and_shorter_ones(model, tokenizer, shared):
    """Some choices end before the length at which frequencies change, and others of the same prompt after it."""
    choices = ["x", "yes", "perhaps not", "zzzzz" * 8]
    prompts = [tokenizer.decode(tokens(length, length)).strip() + "." for length in LENGTHS]
    limits = length_limits(model)
    questions = [
        encode_choices(tokenizer, each, choices, TINY_CONTEXT, shared_prompt=shared, length_limits=limits)
        for each in prompts
    ]
    found = log_likelihoods(model, questions)
    for prompt, question, scores in zip(prompts, questions, found, strict=True):
        start = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        wholes = tokenizer([f"{prompt} {each}" for each in choices], add_special_tokens=False)["input_ids"]
        expected = [plain_score(model, start, whole[len(start) :]) for whole in wholes]
        assert scores.tolist() == pytest.approx(expected, abs=1e-3)
        torch.testing.assert_close(log_likelihoods(model, [question])[0], scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shares", [True, False])
def test_texts_that_grow_past_the_length_beside_others_are_those_of_plain_passes(model, tokenizer, shares):
    """The texts join at different steps, some with the same first tokens."""
    texts, asked = Texts(model, tokenizer, shares_prefixes=shares), {}
    prompts = [tokens(length, first) for first in (0, 9) for length in LENGTHS]
    assert min(LIMIT - 2, LIMIT + 1) > ALIKE
    while texts or len(asked) < len(prompts):
        for at in range(len(asked), min(len(asked) + 3, len(prompts))):
            asked[at] = texts.add(Prompt(prompts[at], 8), composition=0)
        texts.step()
    for at, text in asked.items():
        assert text.tokens == greedy_alone(model, prompts[at], 8), LENGTHS[at % len(LENGTHS)]


def test_jobs_are_answered_the_same_beside_a_long_one(tokenizer):
    base = as_base(phi3(), tokenizer)
    short, long = ("ab cd " * count for count in (8, 16))
    requests = [
        Request(f"{prompt}is:", choices, new, composition=Composition())
        for prompt in (short, long)
        for choices, new in ((("yes", "no", "y" * 40), None), (None, 40))
    ]
    alone = [Predictor(base).predict([request], lambda _: [])[0] for request in requests]
    together = Predictor(base).predict(requests, lambda _: [])
    assert [each.output for each in together] == [each.output for each in alone]
    for one, other in zip(together[::2], alone[::2], strict=True):
        assert one.choice_scores == pytest.approx(other.choice_scores, abs=1e-3)


def test_a_text_as_long_as_the_context_under_dynamic_scaling_is_that_of_a_plain_pass(tokenizer):
    """After it, the model's frequencies would change, and stay so for the following texts."""
    model = dynamic()
    texts = Texts(model, tokenizer)
    prompts = [tokens(TINY_CONTEXT - 6), tokens(20)]
    found = [texts.add(Prompt(prompts[0], 6)), texts.add(Prompt(prompts[1], 12))]
    while texts:
        texts.step()
    expected = [greedy_alone(model, prompt, new) for prompt, new in zip(prompts, (6, 12), strict=True)]
    assert [text.tokens for text in found] == expected
