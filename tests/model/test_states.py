"""A prompt's state is that of a plain forward pass over the prompt alone, in whatever batch it is read."""

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

from loracomp.model.prefix import read_prefix
from loracomp.model.scoring import log_likelihoods
from loracomp.model.states import prompt_states
from loracomp.model.tokens import encode_choices
from model_fixtures import TINY_CONTEXT, tiny_llama

SMALL = {"vocab_size": 80, "num_hidden_layers": 3, "num_attention_heads": 2, "max_position_embeddings": TINY_CONTEXT}
MODELS = {
    "llama": lambda: tiny_llama(layers=3),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**SMALL, hidden_size=16)),
    "opt": lambda: OPTForCausalLM(OPTConfig(**SMALL, hidden_size=16, ffn_dim=24, word_embed_proj_dim=16)),
}
QUESTIONS = (
    ("Is the sky blue?\nAnswer:", ["yes", "no", "perhaps not"]),
    ("A", ["x", "y"]),
    ("The longest of the prompts, to have padding in the others:", ["one", "a"]),
)


def questions(tokenizer, *, shared_prompt):
    return [encode_choices(tokenizer, *each, TINY_CONTEXT, shared_prompt=shared_prompt) for each in QUESTIONS]


@torch.inference_mode()
def plain_state(model, question):
    prompt = question.rows[0].prompt
    hidden = model(torch.tensor([prompt]), output_hidden_states=True).hidden_states[2][0]  # after 2 of 3 layers
    return nn.functional.normalize((hidden[1:] if len(prompt) > 1 else hidden).mean(dim=0), dim=0)


@torch.inference_mode()
def read(model, asked, wanted):
    with prompt_states(model, asked, wanted) as states:
        scores = log_likelihoods(model, asked)
    return states, scores


@pytest.mark.parametrize("shared_prompt", [True, False])
@pytest.mark.parametrize("kind", MODELS)
def test_a_state_is_that_of_the_prompt_alone(kind, shared_prompt, tokenizer):
    torch.manual_seed(0)
    model = MODELS[kind]().eval()
    asked = questions(tokenizer, shared_prompt=shared_prompt)
    assert min(len(each.rows[0].prompt) for each in asked) == 1, "a prompt of one token has a state, too"
    states, scores = read(model, asked, [0, 1, 2])
    for number, question in enumerate(asked):
        torch.testing.assert_close(states[number], plain_state(model, question), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scores, log_likelihoods(model, asked), rtol=0, atol=0)


@pytest.mark.parametrize("kind", MODELS)
def test_a_state_after_a_prefix_is_that_of_the_whole_prompt(kind, tokenizer):
    torch.manual_seed(0)
    model = MODELS[kind]().eval()
    asked = [encode_choices(tokenizer, f"Is it {what}?\nAnswer:", ["x", "yes", "no"], TINY_CONTEXT) for what in "ab"]
    prefix = read_prefix(model, asked[0].rows[0].prompt[:6])
    with (
        torch.inference_mode(),
        prompt_states(model, [each.after(6) for each in asked], [0, 1], prefix.state) as states,
    ):
        log_likelihoods(model, [each.after(6) for each in asked], prefix)
    for number, question in enumerate(asked):
        torch.testing.assert_close(states[number], plain_state(model, question), rtol=1e-4, atol=1e-4)


def test_only_the_wanted_states_are_read_and_the_model_is_as_before(tokenizer):
    model = tiny_llama(layers=3)
    states, _ = read(model, questions(tokenizer, shared_prompt=True), [2])
    assert [*states] == [2]
    assert not any(module._forward_hooks for module in model.modules())


def test_a_model_that_does_not_show_its_layers_has_empty_states(tokenizer):
    model = tiny_llama(layers=3)
    model.config.num_hidden_layers = 5
    states, scores = read(model, questions(tokenizer, shared_prompt=True), [0, 1])
    assert [len(state) for state in states.values()] == [0, 0]
    assert all(each.isfinite().all() for each in scores)
