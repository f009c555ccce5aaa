"""Tiny random models of transformers' causal architectures, whose settings have the same few names."""

from dataclasses import replace

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from loracomp.model.scoring import shares_prompts
from model_fixtures import LETTERS, MERGES, as_base, letter_tokenizer

SIZES = {
    2: "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_experts_per_tok moe_k "
    "num_key_value_heads",
    4: "num_attention_heads n_head n_heads decoder_attention_heads encoder_attention_heads num_experts "
    "num_local_experts n_routed_experts moe_num_experts mamba_n_heads",
    8: "head_dim qk_nope_head_dim qk_rope_head_dim v_head_dim mamba_d_state state_size rotary_dim "
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
OWN["gpt_neo"] = {"attention_types": [[["global", "local"], 1]]}
OWN["dory"] = {"num_hidden_layers": 4, "n_input_layers": 1, "n_output_layers": 1}
WINDOWS = ("window", "window_size", "window_len")
"""Ends of the names of a sliding window's size. It is small, because these models read few tokens."""
SCORED_WRONGLY = "camembert data2vec-text roberta xlm-roberta"
GENERATED_WRONGLY = "bart bigbird_pegasus blenderbot marian mbart pegasus plbart roformer whisper"
OTHERS_REFUSED = """
    blenderbot-small cpmant mvp openai-gpt prophetnet roberta-prelayernorm rwkv trocr
    xlm xlm-roberta-xl xlnet xlstm
"""
"""Architectures that are refused, because they would be served otherwise than by plain passes."""
LARGEST = 3_000_000
"""Parameters of a model that is small enough; the others have parts that these settings don't name."""


def tiny(kind, window=8):
    config_class = CONFIG_MAPPING[kind]
    default = config_class()
    known = {*default.to_dict(), *getattr(default, "attribute_map", {})}
    windows = {name: window for name in known if name.endswith(WINDOWS) and not name.startswith("use_")}
    sizes = {name: size for name, size in SETTINGS.items() if name in known}
    config = config_class(**sizes | windows | OWN.get(kind, {}))
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size} parameters")
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


def made(kind, window=8):
    """Make a tiny model that runs; returns None if these settings are not enough for it."""
    try:
        model = tiny(kind, window)
        model(input_ids=torch.tensor([[2, 3, 4, 5]]), use_cache=False)
    except Exception:  # settings that don't fit each other raise anything
        return None
    return model


def as_added(model, tokenizer=None):
    return replace(as_base(model, tokenizer or letter_tokenizer()), shares_prompts=shares_prompts(model))
