"""`loracomp adapter convert`: the nearest LoRA of what is none, and what it says is lost."""

import math

import pytest
import torch
from peft import LoHaConfig, LoraConfig, PeftModel, PromptTuningConfig, TaskType, TrainableTokensConfig, get_peft_model
from transformers import LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from loracomp.errors import RefusedError, UsageError
from loracomp.model.loading import load_base_model
from loracomp.registry.adapter_checks import read_adapter
from loracomp.registry.adapter_files import WEIGHTS
from loracomp.registry.adapters import find_adapter
from loracomp.registry.base_models import register_base_model
from loracomp.registry.tasks import add_task
from loracomp_lab.convert import EVERYTHING, convert_adapter
from model_fixtures import letter_tokenizer, tiny_llama
from registry_data import logits_of, logits_with, quiet_peft
from tiny_models import tiny

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT 0.21 reads it
Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_llama().save_pretrained(folder)
    letter_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def base(source, tmp_path):
    return load_base_model(str(source), dtype="float32", cache_dir=tmp_path)


def trained(folder, config, change=lambda model: None, model=None):
    """A PEFT folder with random numbers where a training would have left its own; the logits that it gives."""
    with quiet_peft():
        model = get_peft_model(model or tiny_llama(), config)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_magnitude" not in name:
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.1  # in place: tied ones share data
    change(model)
    with quiet_peft():
        model.save_pretrained(folder)
    return logits_of(model)


def merged(model, folder):
    """By PEFT."""
    with quiet_peft():
        return PeftModel.from_pretrained(model, folder).merge_and_unload()


def changes_of(folder):
    """The change of each module as PEFT merges it, in float64."""
    before = dict(tiny_llama().named_parameters())
    after = merged(tiny_llama(), folder).named_parameters()
    return {name: (parameter - before[name]).double() for name, parameter in after}


def test_at_full_rank_dora_is_kept_whole(base, tmp_path):
    logits = trained(tmp_path / "dora", LoraConfig(**LORA, use_dora=True))
    report = convert_adapter(tmp_path / "dora", tmp_path / "out", base, rank=32)
    assert [row.module for row in report][-1] == EVERYTHING
    assert report[-1].relative_error < 1e-5
    assert {row.rank for row in report} == {16, 32}  # of v_proj, which gives 16 numbers, no more is needed
    torch.testing.assert_close(logits_with(tmp_path / "out"), logits, rtol=1e-4, atol=1e-4)
    taken = read_adapter(tmp_path / "out", base)
    assert taken.training["converted_from"]["peft_type"] == "LORA"


def test_what_it_says_is_lost_is_what_the_nearest_of_that_rank_loses(base, tmp_path):
    trained(tmp_path / "dora", LoraConfig(**LORA, use_dora=True))
    report = convert_adapter(tmp_path / "dora", tmp_path / "out", base, rank=3)
    changed, kept = changes_of(tmp_path / "dora"), changes_of(tmp_path / "out")
    lost, whole = 0.0, 0.0
    for row in report[:-1]:
        change = changed[f"{row.module}.weight"]
        best = torch.linalg.svdvals(change)[3:].norm()
        actual = (change - kept[f"{row.module}.weight"]).norm()
        assert row.relative_error == pytest.approx(float(actual / change.norm()), rel=1e-3)
        assert float(actual) == pytest.approx(float(best), rel=1e-3)
        assert row.relative_error > 0.05
        lost, whole = math.hypot(lost, actual), math.hypot(whole, change.norm())
    assert report[-1].relative_error == pytest.approx(lost / whole, rel=1e-3)


def test_whole_modules_and_other_kinds_are_taken_too(base, tmp_path):
    saved = trained(tmp_path / "saved", LoraConfig(**LORA, modules_to_save=["lm_head"]))
    report = convert_adapter(tmp_path / "saved", tmp_path / "out", base, rank=32)
    assert "lm_head" in [row.module for row in report]
    torch.testing.assert_close(logits_with(tmp_path / "out"), saved, rtol=1e-4, atol=1e-4)


def test_other_kinds_of_adapters_are_taken_too(base, tmp_path):
    loha = LoHaConfig(r=2, alpha=4, target_modules=["q_proj"], init_weights=False, task_type=TaskType.CAUSAL_LM)
    logits = trained(tmp_path / "loha", loha)
    convert_adapter(tmp_path / "loha", tmp_path / "out", base, rank=4)  # a product of two of rank 2 has rank 4
    torch.testing.assert_close(logits_with(tmp_path / "out"), logits, rtol=1e-4, atol=1e-4)


def test_what_lora_cannot_express_counts_as_lost(base, tmp_path):
    def move_norm(model):
        model.base_model.model.model.norm.modules_to_save["default"].weight.data += 1.0

    trained(tmp_path / "norm", LoraConfig(**LORA, modules_to_save=["norm"]), move_norm)
    report = {row.module: row for row in convert_adapter(tmp_path / "norm", tmp_path / "out", base, rank=4)}
    assert (report["model.norm.weight"].rank, report["model.norm.weight"].relative_error) == (0, 1.0)
    assert report["model.layers.0.self_attn.q_proj"].relative_error < 1e-5
    lost = math.hypot(*(row.norm for row in report.values() if row.rank == 0))  # the layers' norms too
    assert report[EVERYTHING].relative_error == pytest.approx(lost / report[EVERYTHING].norm, rel=1e-3)


def tied_llama():
    """A random Llama whose output head is its embedding."""
    config = tiny_llama().config
    config.tie_word_embeddings = True
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def tiny_mixtral():
    settings = {name: getattr(tiny_llama().config, name) for name in LLAMAS.split()}
    torch.manual_seed(0)
    config = MixtralConfig(**settings, num_local_experts=4, num_experts_per_tok=2)
    return MixtralForCausalLM(config).eval().requires_grad_(False)


LLAMAS = """
vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads
max_position_embeddings initializer_range bos_token_id eos_token_id pad_token_id
"""


def loaded(model, folder):
    model.save_pretrained(folder)
    letter_tokenizer().save_pretrained(folder)
    return load_base_model(str(folder), dtype="float32", cache_dir=folder)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.parametrize("make", [tiny_llama, tied_llama])
@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(**LORA, trainable_token_indices=[3, 7, 9]),
        TrainableTokensConfig(token_indices=[3, 7, 9], task_type=TaskType.CAUSAL_LM),
    ],
    ids=["with LoRA", "alone"],
)
def test_trained_tokens_are_as_many_ranks_of_the_embedding(make, config, tmp_path):
    """The output head has as many ranks if it is tied to the embedding, because PEFT then trains a token in both."""
    base = loaded(make(), tmp_path / "base")
    logits = trained(tmp_path / "tokens", config, model=make())
    report = {row.module: row for row in convert_adapter(tmp_path / "tokens", tmp_path / "out", base, 4, any_base=True)}
    tokens = {"model.embed_tokens"} | ({"lm_head"} if make is tied_llama else set())
    assert {module for module in report if "proj" not in module} == tokens | {EVERYTHING}
    assert all(report[module].relative_error < 1e-5 for module in report)  # three tokens: rank 3
    torch.testing.assert_close(logits_with(tmp_path / "out", make()), logits, rtol=1e-4, atol=1e-4)


TIED = {"gpt2": ["wte"], "gemma": ["embed_tokens"], "opt": ["embed_tokens"], "llama": ["embed_tokens", "q_proj"]}


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
@pytest.mark.filterwarnings("ignore:You have requested `ensure_weight_tying`:UserWarning")  # PEFT doesn't know wte
@pytest.mark.parametrize("settings", [{}, {"ensure_weight_tying": True}], ids=["one", "both"])
@pytest.mark.parametrize("kind", TIED)
def test_a_change_of_tied_embeddings_is_merged_once(kind, settings, tmp_path):
    def make():
        return tied_llama() if kind == "llama" else tiny(kind)

    base = loaded(make(), tmp_path / "base")
    config = LoraConfig(r=2, lora_alpha=8, target_modules=TIED[kind], task_type="CAUSAL_LM", **settings)
    logits = trained(tmp_path / "tied", config, scale_up, make())
    report = convert_adapter(tmp_path / "tied", tmp_path / "out", base, rank=8, any_base=True)
    assert report[-1].relative_error < 1e-5
    torch.testing.assert_close(logits_with(tmp_path / "out", make()), logits, rtol=1e-3, atol=1e-3)
    assert (logits_of(make()) - logits).abs().max() > 0.1


def scale_up(model):
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data *= 3


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
@pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True`:UserWarning")
def test_an_adapter_that_merging_changes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("loracomp_lab.convert._untie", lambda base: None)  # merging then adds both changes to both
    base = loaded(tied_llama(), tmp_path / "base")
    config = LoraConfig(**LORA | {"target_modules": ["embed_tokens"]}, ensure_weight_tying=True)
    trained(tmp_path / "tied", config, scale_up, tied_llama())
    with pytest.raises(RefusedError, match=r"it gives logits that differ by \S+ from those of the adapter itself"):
        convert_adapter(tmp_path / "tied", tmp_path / "out", base, rank=8, any_base=True)
    assert not (tmp_path / "out").exists()


def test_fewer_ranks_than_trained_tokens_lose_some(tmp_path):
    base = loaded(tiny_llama(), tmp_path / "base")
    trained(tmp_path / "tokens", TrainableTokensConfig(token_indices=[3, 7, 9], task_type=TaskType.CAUSAL_LM))
    rows = convert_adapter(tmp_path / "tokens", tmp_path / "out", base, 2, any_base=True)
    assert [(row.module, row.rank) for row in rows] == [("model.embed_tokens", 2), (EVERYTHING, 2)]
    assert 0.1 < rows[0].relative_error < 1


def test_of_mixtral_attention_is_kept_and_experts_count_as_lost(tmp_path):
    base = loaded(tiny_mixtral(), tmp_path / "base")
    config = LoraConfig(**LORA, target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"])
    trained(tmp_path / "experts", config, model=tiny_mixtral())
    rows = convert_adapter(tmp_path / "experts", tmp_path / "out", base, 4, any_base=True)
    experts = [row for row in rows if "experts" in row.module]
    attention = [row for row in rows if "self_attn" in row.module]
    assert {row.module for row in experts} == {
        f"model.layers.{layer}.mlp.experts.{name}" for layer in (0, 1) for name in ("gate_up_proj", "down_proj")
    }
    assert {(row.rank, row.relative_error) for row in experts} == {(0, 1.0)}
    assert len(attention) == 4 and all(row.rank == 4 and row.relative_error < 1e-5 for row in attention)
    lost, whole = (math.hypot(*(row.norm for row in some)) for some in (experts, experts + attention))
    assert rows[-1].relative_error == pytest.approx(lost / whole, rel=1e-4)
    # What is left is the attention's own LoRA, as PEFT merges it, and can be staged.
    before, kept = (
        dict(model.named_parameters()) for model in (tiny_mixtral(), merged(tiny_mixtral(), tmp_path / "out"))
    )
    asked = dict(merged(tiny_mixtral(), tmp_path / "experts").named_parameters())
    for name, parameter in before.items():
        torch.testing.assert_close(kept[name], asked[name] if "self_attn" in name else parameter)
    assert len(read_adapter(tmp_path / "out", base, any_base=True).target_modules) == 4


def test_experts_alone_leave_nothing_to_write(tmp_path):
    base = loaded(tiny_mixtral(), tmp_path / "base")
    config = LoraConfig(**LORA | {"target_modules": []}, target_parameters=["mlp.experts.down_proj"])
    trained(tmp_path / "experts", config, model=tiny_mixtral())
    with pytest.raises(RefusedError, match="it changes no linear layer and no embedding"):
        convert_adapter(tmp_path / "experts", tmp_path / "out", base, 4, any_base=True)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_converted_is_refused(base, source, tmp_path):
    other = load_base_model(str(source), dtype="float32", cache_dir=tmp_path)
    prompt = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=2)
    trained(tmp_path / "prompt", prompt)
    with pytest.raises(RefusedError, match="cannot merge an adapter of the kind 'PROMPT_TUNING'; it merges ADALORA"):
        convert_adapter(tmp_path / "prompt", tmp_path / "out", base, rank=4)
    trained(tmp_path / "longer", LoraConfig(**LORA, layer_replication=[(0, 2), (0, 2)]))
    with pytest.raises(RefusedError, match="adds or removes layers or parameters of tiny"):
        convert_adapter(tmp_path / "longer", tmp_path / "out", other, rank=4)
    trained(tmp_path / "dora", LoraConfig(**LORA, use_dora=True))
    with pytest.raises(UsageError, match="rank is 0; it must be 1 or more"):
        convert_adapter(tmp_path / "dora", tmp_path / "out", base, rank=0)
    with pytest.raises(UsageError, match="not empty"):
        convert_adapter(tmp_path / "dora", tmp_path / "dora", base, rank=4)
    trained(tmp_path / "nan", LoraConfig(**LORA), lambda model: model.get_parameter(Q).data.fill_(torch.nan))
    with pytest.raises(RefusedError, match=r"changes model\.layers\.0\.self_attn\.q_proj by NaN or infinity"):
        convert_adapter(tmp_path / "nan", tmp_path / "out", base, rank=4)
    (tmp_path / "dora" / WEIGHTS).rename(tmp_path / "dora" / "adapter_model.bin")
    with pytest.raises(RefusedError, match=r"adapter_model\.bin is a pickle"):
        convert_adapter(tmp_path / "dora", tmp_path / "out", base, rank=4)
    assert not (tmp_path / "out").exists()


def test_by_the_command_line_and_then_staged(connection, run, base, tmp_path):
    register_base_model(connection, base)
    add_task(connection, "piqa")
    trained(tmp_path / "dora", LoraConfig(**LORA, use_dora=True))
    with pytest.raises(RefusedError, match=r"use_dora is True: .*; `loracomp adapter convert` writes the nearest"):
        run("adapter", "stage", str(tmp_path / "dora"), "--task", "piqa")
    rows = run("adapter", "convert", str(tmp_path / "dora"), str(tmp_path / "out"), "--rank", "8")
    assert (rows[0]["module"], rows[0]["rank"]) == (EVERYTHING, 8)
    assert 0 < rows[0]["relative_error"] < 1
    assert [row["norm"] for row in rows] == [float(f"{row['norm']:.4g}") for row in rows]
    run("adapter", "stage", str(tmp_path / "out"), "--task", "piqa", "--activate")
    assert find_adapter(connection, "piqa")["rank"] == 8
