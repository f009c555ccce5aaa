"""What `loracomp model add` takes and what it refuses, before a worker meets it."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertLMHeadModel,
    BloomConfig,
    BloomForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    RobertaConfig,
    RobertaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from loracomp.errors import LoracompError, NotFoundError, RefusedError
from loracomp.registry.adapter_store import stage_adapter
from model_fixtures import letter_tokenizer, tiny_llama
from people_fixtures import value
from registry_data import write_adapter

SMALL = {"vocab_size": 80, "hidden_size": 32}
BERT = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


@pytest.fixture(autouse=True)
def in_float32(monkeypatch):
    monkeypatch.setenv("LORACOMP_DTYPE", "float32")


def saved(folder: Path, model: torch.nn.Module, **config) -> Path:
    model.save_pretrained(folder)
    letter_tokenizer().save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def test_a_model_is_added_from_anywhere_made_the_default_and_removed(run, connection, tmp_path, monkeypatch):
    first = saved(tmp_path / "first", tiny_llama())
    saved(tmp_path / "second", tiny_llama(seed=1))
    monkeypatch.chdir(tmp_path)
    run("model", "add", "first")
    (added,) = run("model", "list")
    assert (added["source"], added["is_default"]) == (str(first), True)
    run("model", "add", "second", "--unloaded")
    monkeypatch.chdir("/")
    assert [row["name"] for row in run("model", "default", "second")] == ["second", "first"]
    with pytest.raises(RefusedError, match="base model second is the default: make another one the default first"):
        run("model", "remove", "second")
    assert [row["name"] for row in run("model", "remove", "first")] == ["second"]
    assert run("model", "remove", "second") == []
    with pytest.raises(NotFoundError, match="base model first is not registered"):
        run("model", "default", "first")
    assert value(connection, "SELECT count(*) FROM loracomp.audit_event WHERE entity = 'base_model'") == 6


def test_a_model_that_jobs_or_adapters_name_is_not_removed(run, connection, tmp_path):
    folder = saved(tmp_path / "first", tiny_llama())
    run("model", "add", str(folder))
    connection.execute("INSERT INTO loracomp.job (prompt) VALUES ('a')")
    with pytest.raises(RefusedError, match="1 jobs refer to base model first"):
        run("model", "remove", "first")
    connection.execute("SELECT loracomp.erase_jobs(ARRAY(SELECT id FROM loracomp.job))")
    connection.execute("SELECT loracomp.add_task('rte')")
    connection.execute(
        "SELECT loracomp.stage_adapter('rte', 'first', 'rte', 1, 1, false, 1, '{q}', 1, 1, h, h, '{}', '{}')"
        " FROM repeat('a', 64) AS h"
    )
    with pytest.raises(RefusedError, match="base model first has 1 adapters: force"):
        run("model", "remove", "first")
    assert run("model", "remove", "first", "--force") == []


NAMELESS = r'gives no context length.*"max_position_embeddings": 2048'


def test_a_bloom_works_once_its_longest_input_is_known(run, tmp_path):
    bloom = BloomForCausalLM(BloomConfig(**SMALL, n_layer=2, n_head=4))
    with pytest.raises(RefusedError, match=NAMELESS):
        run("model", "add", str(saved(tmp_path / "bloom", bloom)))
    saved(tmp_path / "bloom", bloom, seq_length=256)
    (row,) = run("model", "add", str(tmp_path / "bloom"))
    assert (row["architecture"], row["context_length"]) == ("BloomForCausalLM", 256)


def test_a_mamba_works_once_its_longest_input_is_known(run, tmp_path):
    """Its cache is none of keys and values: for each token it reads its text again."""
    mamba = MambaForCausalLM(MambaConfig(**SMALL, num_hidden_layers=2, state_size=4))
    with pytest.raises(RefusedError, match=NAMELESS):
        run("model", "add", str(saved(tmp_path / "mamba", mamba)))
    saved(tmp_path / "mamba", mamba, max_position_embeddings=256)
    (row,) = run("model", "add", str(tmp_path / "mamba"))
    assert (row["architecture"], row["context_length"]) == ("MambaForCausalLM", 256)


def test_modules_that_adapters_cannot_change_are_not_registered_and_adapters_of_them_refused(
    run, connection, tmp_path, monkeypatch
):
    tried = "loracomp.composition.trial.try_adapters"
    said: list[str] = []
    monkeypatch.setattr("loracomp.cli.models.warn", said.append)
    without = {f"model.layers.{layer}.self_attn.v_proj" for layer in (0, 1)}
    monkeypatch.setattr(tried, lambda base: {name: of for name, of in base.modules.items() if name not in without})
    run("model", "add", str(saved(tmp_path / "tiny", tiny_llama())))
    assert (
        "loracomp cannot apply adapters to 2 modules of this model, such as model.layers.0.self_attn.v_proj" in said[0]
    )
    connection.execute("SELECT loracomp.add_task('rte')")
    for number, targets in enumerate((["q_proj"], ["q_proj", "v_proj"])):
        write_adapter(tmp_path / str(number), model=tiny_llama(), target_modules=targets)
    stage_adapter(connection, tmp_path / "0", task="rte", base_model="tiny", any_base=True)
    with pytest.raises(
        RefusedError, match=r"module model\.layers\.\d\.self_attn\.v_proj .* none that adapters can change"
    ):
        stage_adapter(connection, tmp_path / "1", task="rte", base_model="tiny", any_base=True)


def write_incomplete(folder: Path) -> None:
    file = saved(folder, tiny_llama()) / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.self_attn.v_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})


def write_without_tokenizer(folder: Path) -> None:
    for file in saved(folder, tiny_llama()).glob("*token*"):
        file.unlink()


def write_too_few_embeddings(folder: Path) -> None:
    model = tiny_llama()
    model.resize_token_embeddings(20)
    saved(folder, model)


def write_not_finite(folder: Path) -> None:
    model = tiny_llama()
    model.lm_head.weight.data[:] = torch.nan
    saved(folder, model)


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (write_incomplete, r"lack 1 weights of LlamaForCausalLM, such as model\.layers\.1\.self_attn\.v_proj\.weight"),
        (write_without_tokenizer, "tokenizer"),
        (write_too_few_embeddings, "has embeddings for 20 tokens, but its tokenizer's largest token id is"),
        (write_not_finite, "gives NaN or infinity"),
        (
            lambda folder: saved(folder, BertForMaskedLM(BertConfig(**SMALL, **BERT))),
            "BertForMaskedLM is no causal language model",
        ),
        (
            lambda folder: saved(folder, BertLMHeadModel(BertConfig(**SMALL, **BERT))),
            "is no causal language model: later tokens",
        ),
        (
            lambda folder: saved(folder, T5ForConditionalGeneration(T5Config(vocab_size=80, d_model=32, num_layers=1))),
            "T5ForConditionalGeneration is no causal language model",
        ),
        (
            lambda folder: saved(folder, RobertaForCausalLM(RobertaConfig(**SMALL, **BERT, is_decoder=True))),
            "RobertaForCausalLM.*workers would give wrong answers with this architecture",
        ),
    ],
    ids=["a weight is missing", "no tokenizer", "few embeddings", "NaN", "BERT", "BERT's other head", "T5", "RoBERTa"],
)
@pytest.mark.filterwarnings("ignore:.*is_decoder.*")
def test_what_cannot_serve_is_refused_by_name(run, connection, tmp_path, write, says):
    write(tmp_path / "model")
    with pytest.raises(LoracompError, match=says) as error:
        run("model", "add", str(tmp_path / "model"))
    assert os.fspath(tmp_path / "model") in str(error.value)
    assert value(connection, "SELECT count(*) FROM loracomp.base_model") == 0
