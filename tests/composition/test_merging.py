"""Merging factors into a model's own weights, and taking them out again."""

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from loracomp.composition.blocks import Factors
from loracomp.composition.fidelity import merged


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
