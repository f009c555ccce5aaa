"""Every causal architecture of transformers, as a tiny random model: it is served as by plain passes, or refused."""

from dataclasses import replace

import pytest
import torch

from loracomp.composition.trial import try_adapters
from loracomp.errors import RefusedError
from loracomp.model.forward import CACHE
from loracomp.model.loading import CAUSAL
from loracomp.model.scoring import log_likelihoods
from loracomp.model.tokens import encode_choices
from loracomp.model.trial import try_out
from model_fixtures import TINY_CONTEXT
from tiny_models import GENERATED_WRONGLY, OTHERS_REFUSED, SCORED_WRONGLY, as_added, made, tiny

FIT = "biogpt deepseek_v3 phi3 xglm"
PARTLY_FIT = ("deepseek_v4", "inkling_text", "llama4_text", "phimoe")
"""Groups of inputs for one weight; an embedding that normalises what it gives; routers that give two tensors."""
NAMED = [*f"{SCORED_WRONGLY} {GENERATED_WRONGLY} {FIT}".split()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", NAMED)
def test_an_architecture_is_served_as_by_plain_passes_or_refused(kind, dtype):
    """Positions of some begin at another number than 0, and others take them from the length of the cache."""
    base = as_added(tiny(kind).to(dtype))
    if kind in FIT.split():
        try_out(base)
        assert try_adapters(base) == base.modules
        return
    does = "scores choices" if kind in SCORED_WRONGLY.split() else "generates"
    with pytest.raises(RefusedError, match=f"{does} differently in a batch.*workers would give wrong answers"):
        try_out(base)
    assert base.model.dtype == dtype


@pytest.mark.parametrize("wrong", [float("nan"), 1.0])
def test_a_model_that_continues_tokens_of_an_earlier_pass_wrongly_is_refused(wrong):
    def spoil(_model, _args, inputs, output):
        if inputs.get(CACHE) is not None and len(inputs["input_ids"]) > 1:
            output.logits[..., 0] += 100 * wrong

    base = as_added(tiny("llama"))
    assert base.shares_prefixes
    base.model.register_forward_hook(spoil, with_kwargs=True)
    with pytest.raises(RefusedError, match="scores choices differently in a batch"):
        try_out(base)


def test_a_model_with_a_sliding_window_that_its_settings_do_not_show_is_refused():
    """Only a row that is nearly as long as rows get reaches beyond this window."""
    base = as_added(tiny("gpt_neo", window=TINY_CONTEXT - 32))
    assert not base.shares_prompts
    try_out(base)
    with pytest.raises(RefusedError, match="scores choices differently in a batch"):
        try_out(replace(base, shares_prompts=True))


def test_choices_that_together_are_longer_than_the_context_are_scored_in_several_rows():
    """BigBird has a buffer of as many columns as its context, whatever the positions."""
    base = as_added(tiny("big_bird"))
    assert base.shares_prompts
    choices = [f"the answer that has the number {number}" for number in range(12)]
    shared, alone = (
        encode_choices(base.tokenizer, "Which is it?", choices, TINY_CONTEXT, shared_prompt=shared)
        for shared in (True, False)
    )
    got, expected = (log_likelihoods(base.model, [question])[0] for question in (shared, alone))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_modules_that_adapters_cannot_change_are_found_and_the_others_left():
    """One module gets its inputs with tokens before rows. Another gets them as kv_b_proj of DeepSeek-V3 does, which
    works."""
    model = tiny("llama")
    mlp = model.model.layers[0].mlp

    def forward(x):
        gated = mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x[:, None])[:, 0]
        return mlp.down_proj(gated.transpose(0, 1)).transpose(0, 1)

    mlp.forward = forward
    base = as_added(model)
    try_out(base)
    lacking = base.modules.keys() - try_adapters(base).keys()
    assert lacking == {f"model.layers.{layer}.mlp.down_proj" for layer in (0, 1)}


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted({*CAUSAL} - {*NAMED}))
def test_each_other_architecture_is_served_or_refused_as_expected(kind):
    if (model := made(kind)) is None:
        pytest.skip("the general settings make no tiny model of this architecture")
    base = as_added(model)
    if kind in OTHERS_REFUSED.split():
        with pytest.raises(
            RefusedError, match=r"would give wrong answers|is no causal language model|cannot generate in a batch"
        ):
            try_out(base)
        return
    try_out(base)
    lacking = base.modules.keys() - try_adapters(base).keys()
    assert bool(lacking) == (kind in PARTLY_FIT)
