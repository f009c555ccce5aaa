"""Every causal architecture of transformers, as a tiny random model: it is served as by plain passes, or refused."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from loracomp.composition.trial import try_adapters
from loracomp.errors import RefusedError
from loracomp.model.loading import CAUSAL
from loracomp.model.scoring import shares_prompts
from loracomp.model.trial import try_out
from model_fixtures import LETTERS, MERGES, as_base, letter_tokenizer

SIZES = {
    2: "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_experts_per_tok moe_k "
    "num_key_value_heads",
    4: "num_attention_heads n_head n_heads decoder_attention_heads encoder_attention_heads num_experts "
    "num_local_experts n_routed_experts moe_num_experts mamba_n_heads",
    8: "head_dim qk_nope_head_dim qk_rope_head_dim v_head_dim sliding_window mamba_d_state state_size rotary_dim "
    "hidden_size_per_layer_input",
    16: "q_lora_rank kv_lora_rank qk_head_dim mamba_d_head",
    24: "moe_intermediate_size shared_expert_intermediate_size",
    32: "hidden_size n_embd d_model embedding_size dim_model emb_dim word_embed_proj_dim",
    48: "intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim ffn_hidden_size",
    256: "max_position_embeddings n_positions seq_length max_target_positions max_seq_len",
    2 + len(LETTERS) + len(MERGES): "vocab_size vocab_size_per_layer_input",
    0.2: "initializer_range init_std",
}
SETTINGS = {name: size for size, names in SIZES.items() for name in names.split()}
SETTINGS |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "n_group": 1, "topk_group": 1, "is_decoder": True}
LATENT = """
    axk1 axk2 deepseek_v2 deepseek_v3 deepseek_v32 glm4_moe_lite glm_moe_dsa longcat_flash minicpm3 sarvam_mla youtu
"""
"""Multi-head latent attention, whose keys and values have as many heads as its queries."""
OWN = {kind: {"num_key_value_heads": 4} for kind in LATENT.split()}
LARGEST = 3_000_000
"""Parameters of a model that is small enough; the others have parts that these settings don't name."""

SCORED_WRONGLY = "camembert data2vec-text roberta xlm-roberta"
GENERATED_WRONGLY = "bart bigbird_pegasus blenderbot marian mbart pegasus plbart roformer whisper"
FIT = "biogpt deepseek_v3 phi3 xglm"
PARTLY_FIT = ("deepseek_v4", "inkling_text", "llama4_text", "phimoe")
"""Groups of inputs for one weight; an embedding that normalises what it gives; routers that give two tensors."""
OTHERS_REFUSED = """
    blenderbot-small cpmant dory mvp openai-gpt prophetnet roberta-prelayernorm rwkv trocr
    xlm xlm-roberta-xl xlnet xlstm
"""
NAMED = [*f"{SCORED_WRONGLY} {GENERATED_WRONGLY} {FIT}".split()]


def tiny(kind):
    config_class = CONFIG_MAPPING[kind]
    default = config_class()
    known = {*default.to_dict(), *getattr(default, "attribute_map", {})}
    config = config_class(**{name: value for name, value in SETTINGS.items() if name in known} | OWN.get(kind, {}))
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size} parameters")
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


def as_added(model):
    return replace(as_base(model, letter_tokenizer()), shares_prompts=shares_prompts(model))


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


def made(kind):
    """A tiny model that runs; None if these settings don't suffice for it."""
    try:
        model = tiny(kind)
        model(input_ids=torch.tensor([[2, 3, 4, 5]]), use_cache=False)
    except Exception:  # settings that don't fit each other raise anything
        return None
    return model


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted({*CAUSAL} - {*NAMED}))
def test_each_other_architecture_is_served_or_refused_as_expected(kind):
    if (model := made(kind)) is None:
        pytest.skip("no tiny model of it can be made by general settings")
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
