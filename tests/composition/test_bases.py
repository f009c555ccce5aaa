"""Base models of many architectures, quantised ones too: what a row gets is what PEFT computes on the same model."""

import json
from collections import defaultdict
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from loracomp.composition.strategies import LoraFactors
from loracomp.engine.predictor import Predictor
from loracomp.errors import RefusedError
from loracomp.model.loading import adaptable_modules, load_base_model
from loracomp.records import Composition, Request
from loracomp.registry.adapter_checks import read_adapter
from loracomp.registry.adapter_files import CONFIG, own_scaling, parse_factors
from loracomp.registry.adapter_store import export_adapter, fetch_adapters, stage_adapter
from loracomp.registry.adapters import find_adapter
from model_fixtures import LETTERS, MERGES, as_base, compose, letter_tokenizer, tiny_llama
from registry_data import logits_with, quiet_peft, write_adapter
from registry_data import registered as in_database

DOCS = Path(__file__).parents[2] / "docs" / "bring_your_own.md"
VOCABULARY = 2 + len(LETTERS) + len(MERGES)
TOKENS = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
WIDE = {"initializer_range": 0.2}  # so that scores differ well
COMMON = TOKENS | WIDE | {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = {"intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 256}
Q_AND_V = ("q_proj", "v_proj")
FUSED = ("query_key_value",)
ARCHITECTURES = {
    "Llama": ("LlamaForCausalLM", Q_AND_V, GROUPED),
    "Qwen2": ("Qwen2ForCausalLM", Q_AND_V, GROUPED),
    "Qwen3": ("Qwen3ForCausalLM", Q_AND_V, GROUPED | {"head_dim": 8}),
    "Mistral": ("MistralForCausalLM", Q_AND_V, GROUPED | {"sliding_window": 8}),
    "Mixtral": ("MixtralForCausalLM", Q_AND_V, GROUPED | {"num_local_experts": 4}),
    "Gemma2": ("Gemma2ForCausalLM", Q_AND_V, GROUPED | {"head_dim": 8, "sliding_window": 8}),
    "Gemma3": ("Gemma3ForCausalLM", Q_AND_V, GROUPED | {"head_dim": 8, "sliding_window": 8}),
    "Phi": ("PhiForCausalLM", Q_AND_V, GROUPED),
    "Phi3": ("Phi3ForCausalLM", ("qkv_proj",), GROUPED),
    "GPT-NeoX": ("GPTNeoXForCausalLM", FUSED, GROUPED),
    "Falcon": ("FalconForCausalLM", FUSED, {}),
    "OPT": ("OPTForCausalLM", Q_AND_V, {"ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 256}),
    "GPT-2": ("GPT2LMHeadModel", ("c_attn",), {"n_positions": 256}),
    "BLOOM": ("BloomForCausalLM", FUSED, {"seq_length": 256}),
}
"""Name -> class of transformers, the modules that hold query and value, and settings of a tiny one."""
WEIGHTS = (0.6, 0.4)
PROMPT, CHOICES = "Is it so?\nAnswer:", ("yes", "no", "perhaps")

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),  # PEFT 0.21 reads it
    pytest.mark.filterwarnings(
        "ignore:The following (rank|alpha)_pattern keys:RuntimeWarning"
    ),  # of Mixtral, by PEFT itself
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning"),  # GPT-2 has modules of both kinds
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning"),
]


def tiny(architecture, seed=0):
    kind, _, settings = ARCHITECTURES[architecture]
    model_class = getattr(transformers, kind)
    torch.manual_seed(seed)
    return model_class(model_class.config_class(**COMMON | settings)).eval().requires_grad_(False)


def saved(model, folder):
    model.save_pretrained(folder)
    letter_tokenizer().save_pretrained(folder)
    return str(folder)


def staged(folder, base, number):
    """An adapter as registration takes it and a worker reads it."""
    file = read_adapter(folder, base, any_base=True)
    factors = parse_factors(file.weights)
    return LoraFactors(number, file.sha256, file.scaling, factors, own_scaling(file.config, factors))


def two_adapters(folder, base, model, **settings):
    """Written by PEFT; in the order of their numbers, with their folders."""
    folders = [folder / str(number) for number in (0, 1)]
    for number, each in enumerate(folders):
        write_adapter(each, seed=number, model=model, **settings)
    return folders, [staged(each, base, number) for number, each in enumerate(folders)]


def answers(base, adapters):
    """The requests of a batch: choices under cat and linear, a text under cat, and choices under the base model
    alone."""
    by_id = {adapter.id: adapter for adapter in adapters}
    cat, linear = (
        Composition(tuple(by_id), tuple(each.sha256 for each in adapters), WEIGHTS, strategy=strategy)
        for strategy in ("cat", "linear")
    )
    asked = partial(Request, PROMPT, CHOICES, None)
    requests = [
        asked(composition=cat),
        asked(composition=linear),
        Request("Once upon", None, 6, composition=cat),
        asked(composition=Composition()),
    ]
    return Predictor(base).predict(requests, lambda ids: [by_id[id_] for id_ in ids])


def mixed_by_peft(model, folders, strategy, **settings):
    with quiet_peft():
        peft_model = PeftModel.from_pretrained(model, folders[0], adapter_name="0")
        peft_model.load_adapter(folders[1], "1")
        peft_model.add_weighted_adapter(["0", "1"], list(WEIGHTS), "mix", combination_type=strategy, **settings)
    peft_model.set_adapter("mix")
    return peft_model.eval()


@torch.inference_mode()
def scores(model, tokenizer):
    found = []
    start = tokenizer(PROMPT)["input_ids"]
    for choice in CHOICES:
        ids = tokenizer(f"{PROMPT} {choice}")["input_ids"]
        logits = model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
        found.append(sum(float(logits[at - 1, ids[at]]) for at in range(len(start), len(ids))))
    return found


@torch.inference_mode()
def greedy(model, tokenizer, tokens=6):
    ids = tokenizer("Once upon")["input_ids"]
    start = len(ids)
    while len(ids) < start + tokens:
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            break
    return tokenizer.decode(ids[start:], skip_special_tokens=True)


def assert_equal_to_peft(base, made, folders, adapters, tolerance=1e-4):
    """`made` makes the base model again, for PEFT to change."""
    by_cat, by_linear, written, alone = answers(base, adapters)
    close = partial(pytest.approx, rel=tolerance, abs=tolerance)
    plain = scores(made(), base.tokenizer)
    assert alone.choice_scores == close(plain)
    peft_model = mixed_by_peft(made(), folders, "cat")
    assert by_cat.choice_scores == close(scores(peft_model, base.tokenizer))
    assert max(abs(a - b) for a, b in zip(by_cat.choice_scores, plain, strict=True)) > 0.1
    assert written.output == greedy(peft_model, base.tokenizer)
    assert by_linear.choice_scores == close(scores(mixed_by_peft(made(), folders, "linear"), base.tokenizer))


@pytest.mark.parametrize("targets", ["query and value", "all-linear"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_choices_and_texts_are_those_of_peft(architecture, targets, tmp_path):
    modules = targets if targets == "all-linear" else list(ARCHITECTURES[architecture][1])
    if (architecture, targets) == ("Mixtral", "all-linear"):
        modules = ["q_proj", "k_proj", "v_proj", "o_proj"]  # its experts are no linear layers
    base = load_base_model(saved(tiny(architecture), tmp_path / "base"), dtype="float32", cache_dir=tmp_path)
    conv = {"fan_in_fan_out": True} if architecture == "GPT-2" else {}
    folders, adapters = two_adapters(tmp_path, base, tiny(architecture), target_modules=modules, **conv)
    assert_equal_to_peft(base, partial(tiny, architecture), folders, adapters)


def test_experts_are_refused_by_name_for_peft_does_not_mix_them_either(tmp_path):
    """For PEFT, all linear layers of Mixtral include its experts, as parameters."""
    base = load_base_model(saved(tiny("Mixtral"), tmp_path / "base"), dtype="float32", cache_dir=tmp_path)
    folders = [tmp_path / str(number) for number in (0, 1)]
    for number, folder in enumerate(folders):
        write_adapter(folder, seed=number, model=tiny("Mixtral"), target_modules="all-linear")
    with pytest.raises(RefusedError, match=r"target_parameters is \[.*gate_up_proj.*cannot be composed"):
        read_adapter(folders[0], base, any_base=True)
    with pytest.raises(ValueError, match=r"add_weighted_adapter does not support targeting nn\.Parameter"):
        mixed_by_peft(tiny("Mixtral"), folders, "cat")


def test_the_table_of_architectures_stands_in_the_docs():
    names = defaultdict(list)
    for name, (_, modules, _) in ARCHITECTURES.items():
        names[modules].append(name)
    rows = [f"| `{'`, `'.join(modules)}` | {', '.join(of_these)} |" for modules, of_these in names.items()]
    assert "| query and value | architectures |\n|---|---|\n" + "\n".join(rows) in DOCS.read_text()


@pytest.mark.parametrize("architecture", ["Llama", "Gemma3", "GPT-2"])
@pytest.mark.parametrize("shared", [True, False])
def test_the_output_head_and_the_embedding_are_adapted_as_by_peft(architecture, shared, tmp_path, monkeypatch):
    """Gemma scales its embedding, and GPT-2's head is tied to it; PEFT saves both weights with the factors."""
    monkeypatch.setattr("loracomp.composition.layers._shared_is_cheaper", lambda *_, **__: shared)
    head, embedding = ("lm_head", "wte" if architecture == "GPT-2" else "embed_tokens")
    base = load_base_model(saved(tiny(architecture), tmp_path / "base"), dtype="float32", cache_dir=tmp_path)
    targets = [head, embedding, ARCHITECTURES[architecture][1][0]]
    conv = {"fan_in_fan_out": True} if architecture == "GPT-2" else {}
    folders, adapters = two_adapters(tmp_path, base, tiny(architecture), target_modules=targets, **conv)
    assert len({*adapters[0].factors} & {"lm_head", "model.embed_tokens", "transformer.wte"}) == 2
    assert_equal_to_peft(base, partial(tiny, architecture), folders, adapters)


def test_an_embedding_that_is_not_the_base_models_is_refused(tmp_path):
    base = load_base_model(saved(tiny("Llama"), tmp_path / "base"), dtype="float32", cache_dir=tmp_path)
    write_adapter(tmp_path / "adapter", model=tiny("Llama", seed=1), target_modules=["embed_tokens"])
    with pytest.raises(RefusedError, match=r"embed_tokens\.base_layer\.weight, which differs from base model base's"):
        read_adapter(tmp_path / "adapter", base, any_base=True)


@pytest.mark.parametrize("copied_as", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("served_as", [torch.float32, torch.bfloat16])
def test_a_copy_of_the_output_head_may_be_rounded_otherwise_than_the_base_model(tmp_path, served_as, copied_as):
    """A GGUF file's weights are kept in bfloat16, and people train on what transformers makes of it in float32."""
    base = load_base_model(saved(tiny("Llama").to(served_as), tmp_path / "base"), dtype="float32", cache_dir=tmp_path)
    write_adapter(tmp_path / "adapter", model=tiny("Llama").to(copied_as), target_modules=["lm_head"])
    assert "lm_head" in read_adapter(tmp_path / "adapter", base, any_base=True).target_modules
    change_copy(tmp_path / "adapter", lambda weight: weight * (1 + 2**-5))
    with pytest.raises(RefusedError, match="by more than rounding"):
        read_adapter(tmp_path / "adapter", base, any_base=True)


def change_copy(folder, change) -> None:
    """Change the copy of the base model's output head in an adapter's file."""
    tensors = load_file(folder / "adapter_model.safetensors")
    (name,) = [name for name in tensors if "base_layer" in name]
    save_file(tensors | {name: change(tensors[name])}, folder / "adapter_model.safetensors")


PATTERNS = {"rank_pattern": {"layers.1.self_attn.q_proj": 2, "v_proj": 6}, "alpha_pattern": {"q_proj": 3}}


@pytest.mark.parametrize("strategy", ["cat", "linear", "ties", "magnitude_prune"])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_a_rank_and_an_alpha_for_each_module_merge_as_by_peft(strategy, use_rslora, tmp_path):
    base = load_base_model(saved(tiny("Llama"), tmp_path / "base"), dtype="float32", cache_dir=tmp_path)
    folders, adapters = two_adapters(tmp_path, base, tiny("Llama"), r=6, use_rslora=use_rslora, **PATTERNS)
    assert {len(A) for A, _ in adapters[0].factors.values()} == {2, 6}
    density = {"density": 0.4} if strategy in ("ties", "magnitude_prune") else {}
    peft_model = mixed_by_peft(tiny("Llama"), folders, strategy, **density)
    rank = 12 if strategy == "cat" else 6
    scale = rank**0.5 if use_rslora else 1  # PEFT's merge counts rsLoRA's scaling twice
    for module, (A, B) in compose(strategy, adapters, WEIGHTS, **density).items():
        expected = peft_model.get_base_model().get_submodule(module).get_delta_weight("mix") / scale
        torch.testing.assert_close(B @ A, expected, rtol=1e-4, atol=1e-5)
    if not use_rslora:
        assert_equal_to_peft(base, partial(tiny, "Llama"), folders, adapters)


def test_the_first_pattern_that_matches_counts_also_out_of_the_database(connection, tmp_path):
    """JSONB forgets the order of keys."""
    model = tiny_llama()
    write_adapter(tmp_path / "in", model=model, alpha_pattern={"layers.0.self_attn.q_proj": 3, "q_proj": 5})
    in_database(connection, "piqa")
    stage_adapter(connection, tmp_path / "in", task="piqa")
    export_adapter(connection, find_adapter(connection, "piqa"), tmp_path / "out")
    assert torch.equal(logits_with(tmp_path / "out"), logits_with(tmp_path / "in"))
    (adapter,) = fetch_adapters(connection, [find_adapter(connection, "piqa")["id"]])
    q = "model.layers.{}.self_attn.q_proj".format
    assert adapter.own_scaling == {q(0): 3 / 4, q(1): 5 / 4}
    change_alpha(tmp_path / "in", 7)
    assert stage_adapter(connection, tmp_path / "in", task="piqa").version == 2


def change_alpha(folder, alpha):
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | {"alpha_pattern": {"q_proj": alpha}}))


def quantised(package, folder):
    """Loads a tiny Llama that the package has quantised."""
    pytest.importorskip(package, reason=f"{package} is not installed, which quantises base models")
    if package == "bitsandbytes":
        settings = transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    else:
        from torchao.quantization import Int8WeightOnlyConfig

        settings = transformers.TorchAoConfig(Int8WeightOnlyConfig())
    saved(wide_llama(), folder)
    load = partial(AutoModelForCausalLM.from_pretrained, folder, quantization_config=settings, dtype=torch.float32)
    return lambda: load().eval().requires_grad_(False)


def wide_llama():
    """Wide enough for blocks of 64, by which bitsandbytes quantises."""
    settings = COMMON | GROUPED | {"hidden_size": 64, "intermediate_size": 128}
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings)).eval().requires_grad_(False)


@pytest.mark.filterwarnings("default")  # these packages warn of much that is none of ours
@pytest.mark.parametrize("package", ["bitsandbytes", "torchao"])
def test_a_quantised_base_gets_what_peft_gives_it(package, tmp_path):
    made = quantised(package, tmp_path / "base")
    served = made()
    base = as_base(served, letter_tokenizer(), adaptable_modules(wide_llama()))
    kinds = {type(module).__name__ for module in served.modules()} | {type(p).__name__ for p in served.parameters()}
    assert kinds & {"Linear4bit", "Int8Tensor", "AffineQuantizedTensor", "LinearActivationQuantizedTensor"}, kinds
    folders = []
    for number in (0, 1):  # saved on the whole model: PEFT's folders don't depend on what the base is stored in
        folders.append(tmp_path / str(number))
        write_adapter(folders[-1], seed=number, model=wide_llama(), target_modules="all-linear")
    adapters = [staged(folder, base, number) for number, folder in enumerate(folders)]
    assert_equal_to_peft(base, made, folders, adapters)


@pytest.mark.filterwarnings("default")
def test_a_folder_of_quantised_weights_is_a_base_model_with_the_modules_of_the_whole_one(tmp_path):
    served = quantised("bitsandbytes", tmp_path / "whole")()
    base = load_base_model(saved(served, tmp_path / "base"), dtype="float32", cache_dir=tmp_path)
    assert "Linear4bit" in {type(module).__name__ for module in base.model.modules()}
    assert base.modules == adaptable_modules(wide_llama())
    write_adapter(tmp_path / "0", model=wide_llama(), target_modules="all-linear")
    adapter = staged(tmp_path / "0", base, 0)
    composition = Composition((0,), (adapter.sha256,), (1.0,), strategy="cat")
    requests = [Request(PROMPT, CHOICES, None, composition=each) for each in (composition, Composition())]
    mixed, alone = Predictor(base).predict(requests, lambda _: [adapter])
    assert mixed.choice_scores != alone.choice_scores
