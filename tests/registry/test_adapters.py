"""Adapters: what is taken, what is refused by name, versions and states, and what comes out again."""

import hashlib
import json
import os
import shutil
import subprocess
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import hypothesis
import psycopg
import pytest
import torch
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from forked import programs
from loracomp.composition.composer import ResidentAdapters
from loracomp.database import connections as db
from loracomp.errors import JobError, NotFoundError, RefusedError, UsageError
from loracomp.records import KnownBaseModel
from loracomp.registry import adapter_store
from loracomp.registry.adapter_checks import read_adapter
from loracomp.registry.adapter_files import CONFIG, TRAINING, WEIGHTS, own_scaling, parse_factors
from loracomp.registry.adapter_store import copy_weights, export_adapter, fetch_adapters, stage_adapter
from loracomp.registry.adapters import activate_adapter, find_adapter, retire_adapter
from loracomp.registry.base_models import find_base_model, register_base_model
from loracomp.registry.tasks import add_task
from registry_data import logits_with, registered, tiny_description, write_adapter

Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


TINY = KnownBaseModel("tiny", "made-up/tiny", None, "a" * 64, tiny_description().modules)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("adapters") / "adapter"
    write_adapter(path)
    return path


@pytest.fixture
def folder(written, tmp_path) -> Path:
    """A sound PEFT folder, to be spoilt."""
    return Path(shutil.copytree(written, tmp_path / "adapter"))


def change_config(folder: Path, **settings) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def change_weights(folder: Path, change) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def status_of(connection, reference: str) -> str:
    return find_adapter(connection, reference)["status"]


def test_a_staged_adapter_carries_what_its_folder_says(connection, folder):
    registered(connection, "piqa")
    (folder / TRAINING).write_text(json.dumps({"seed": 7, "base_model": {"name": "tiny", "fingerprint": "a" * 64}}))
    staged = stage_adapter(connection, folder, task="piqa")
    assert (staged.name, staged.version, staged.created) == ("piqa", 1, True)
    row = find_adapter(connection, "piqa")
    weights = (folder / WEIGHTS).read_bytes()
    assert row["sha256"] == hashlib.sha256(weights).hexdigest()
    assert (row["status"], row["rank"], row["alpha"], row["use_rslora"], row["scaling"]) == ("staged", 4, 8, False, 2)
    assert row["target_modules"] == [
        f"model.layers.{layer}.self_attn.{name}" for layer in (0, 1) for name in ("q_proj", "v_proj")
    ]
    # Two layers, of each A [4, 32] twice, B [32, 4] for q and [16, 4] for v.
    assert row["parameter_count"] == 2 * (2 * 4 * 32 + 32 * 4 + 16 * 4)
    assert row["byte_count"] == len(weights)
    assert row["training"]["seed"] == 7
    assert row["created_by"] == connection.info.user


def test_an_administrator_adds_no_weights_to_an_adapter_that_is_active(connection, database, tmp_path):
    registered(connection, "piqa")
    write_adapter(tmp_path / "piqa")
    adapter = stage_adapter(connection, tmp_path / "piqa", task="piqa").id
    activate_adapter(connection, adapter)
    name = f"administrator_{os.getpid()}"
    connection.execute(f"CREATE ROLE {name} LOGIN IN ROLE loracomp_admin".encode())
    try:
        with db.connect(psycopg.conninfo.make_conninfo(database, user=name)) as administrator:
            with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="its weights no longer change"):
                copy_weights(administrator, adapter, b"other")
            write_adapter(tmp_path / "other", seed=1)
            assert stage_adapter(administrator, tmp_path / "other", task="piqa").created
    finally:
        connection.execute(f"DROP ROLE {name}".encode())


def test_what_a_worker_fetches_is_what_peft_saved(connection, tmp_path, monkeypatch):
    registered(connection, "piqa", "rte")
    monkeypatch.setattr(adapter_store, "PART_BYTES", 1000)  # many parts
    ids = []
    for seed, task in enumerate(["piqa", "rte"]):
        write_adapter(tmp_path / task, seed=seed, use_rslora=task == "rte")
        ids.append(stage_adapter(connection, tmp_path / task, task=task).id)
    parts = connection.execute("SELECT count(*) AS n FROM loracomp.adapter_part").fetchone()
    assert parts["n"] >= 10
    fetched = fetch_adapters(connection, ids[::-1])
    assert [adapter.id for adapter in fetched] == ids[::-1]
    assert [adapter.scaling for adapter in fetched] == [8 / 4**0.5, 8 / 4]
    for adapter, task in zip(fetched, ["rte", "piqa"], strict=True):
        saved = load_file(tmp_path / task / WEIGHTS)
        assert 2 * len(adapter.factors) == len(saved)
        for module, (A, B) in adapter.factors.items():
            assert torch.equal(A, saved[f"base_model.model.{module}.lora_A.weight"])
            assert torch.equal(B, saved[f"base_model.model.{module}.lora_B.weight"])


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True, "r": 8, "target_modules": ["q_proj", "down_proj"]}])
def test_an_exported_adapter_gives_the_same_logits_in_peft(connection, tmp_path, settings):
    registered(connection, "piqa")
    logits = write_adapter(tmp_path / "in", **settings)
    stage_adapter(connection, tmp_path / "in", task="piqa")
    export_adapter(connection, find_adapter(connection, "piqa@1"), tmp_path / "out")
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (tmp_path / "in" / WEIGHTS).read_bytes()
    assert torch.equal(logits_with(tmp_path / "out"), logits)
    with pytest.raises(UsageError, match="not empty"):
        export_adapter(connection, find_adapter(connection, "piqa"), tmp_path / "out")


@pytest.mark.parametrize(
    ("source", "revision", "named"),
    [
        ("made-up/tiny", "c0ffee", ("made-up/tiny", "c0ffee")),
        ("package:made_up/tiny.gguf", None, ("tiny", None)),
        ("/home/author/models/tiny", None, ("tiny", None)),
    ],
)
def test_an_exported_adapter_names_a_base_model_that_others_have(connection, folder, tmp_path, source, revision, named):
    register_base_model(connection, replace(tiny_description(source=source), revision=revision))
    add_task(connection, "piqa")
    change_config(folder, base_model_name_or_path="/home/author/tiny", revision="main")
    stage_adapter(connection, folder, task="piqa")
    export_adapter(connection, find_adapter(connection, "piqa"), tmp_path / "out")
    config = json.loads((tmp_path / "out" / CONFIG).read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == named
    assert not stage_adapter(connection, tmp_path / "out", task="piqa").created


@pytest.mark.model
def test_an_adapter_of_the_real_base_model_comes_back_from_the_database(connection, smollm2, tmp_path):
    register_base_model(connection, smollm2)
    add_task(connection, "piqa")
    logits = write_adapter(tmp_path / "in", model=smollm2.model, r=8)
    stage_adapter(connection, tmp_path / "in", task="piqa")  # whose config names the cache's folder
    export_adapter(connection, find_adapter(connection, "piqa"), tmp_path / "out")
    assert torch.equal(logits_with(tmp_path / "out", model=smollm2.model), logits)


def nan_in(tensors):
    tensors[f"{Q0}.lora_A.weight"][1, 2] = float("nan")


def infinity_in(tensors):
    tensors[f"{Q0}.lora_B.weight"][0, 0] = float("inf")


def too_wide(tensors):
    tensors[f"{Q0}.lora_A.weight"] = torch.zeros(4, 33)


def too_deep(tensors):
    for name in [name for name in tensors if "layers.1" in name]:
        tensors[name.replace("layers.1", "layers.2")] = tensors.pop(name)


def half(tensors):
    del tensors[f"{Q0}.lora_B.weight"]


def module_gone(tensors):
    for factor in "AB":
        del tensors[f"{Q0}.lora_{factor}.weight"]


def module_more(tensors):
    for factor, shape in (("A", (4, 32)), ("B", (32, 4))):
        tensors[f"{Q0.replace('q_proj', 'o_proj')}.lora_{factor}.weight"] = torch.zeros(shape)


def too_large(tensors):
    for name in (f"{Q0}.lora_A.weight", f"{Q0}.lora_B.weight"):
        tensors[name] = torch.full_like(tensors[name], 1e30)


def untrained(tensors):
    tensors.update({name: torch.zeros_like(each) for name, each in tensors.items() if "lora_B" in name})


def doubles(tensors):
    tensors[f"{Q0}.lora_A.weight"] = tensors[f"{Q0}.lora_A.weight"].double()


def extra(name, shape=(4,)):
    def add(tensors):
        tensors[name] = torch.zeros(shape)

    return add


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (nan_in, "layers.0.self_attn.q_proj: factor A holds NaN"),
        (infinity_in, "factor B holds NaN or infinity"),
        (untrained, "it changes nothing, because one factor of each module is all zeros: train it first"),
        (too_wide, r"A \[4, 33\] .* needs A \[4, 32\]"),
        (too_deep, "layers.2.self_attn.q_proj is not a linear layer or embedding of base model tiny"),
        (half, "lacks one of the two factors of model.layers.0.self_attn.q_proj"),
        (module_gone, "lacks factors for model.layers.0.self_attn.q_proj, which target_modules names"),
        (module_more, "factors for model.layers.0.self_attn.o_proj, which target_modules does not name"),
        (doubles, "float64; save it as float32, float16 or bfloat16"),
        (too_large, r"self_attn.q_proj: the norm of scaling \* B @ A is .*e\+62, and must be at most 1e\+06"),
        (lambda tensors: tensors.clear(), "contains no factors"),
        (extra(f"{Q0}.lora_magnitude_vector.weight"), r"DoRA \(use_dora\) cannot be composed"),
        (extra(f"{Q0}.lora_B.bias"), r"biases \(bias, lora_bias\)"),
        (extra("base_model.model.lm_head.modules_to_save.weight"), "modules_to_save cannot"),
        (extra("base_model.model.model.embed_tokens.lora_embedding_A"), "lacks one of the two factors of model.embed_"),
        (extra("model.layers.0.weight"), "not a factor of plain LoRA"),
    ],
)
def test_wrong_weights_are_refused(folder, change, says):
    change_weights(folder, change)
    with pytest.raises(RefusedError, match=says):
        read_adapter(folder, TINY)


def test_tied_factors_are_refused_by_the_settings_name(folder):
    change_config(folder, ensure_weight_tying=True)
    change_weights(folder, module_more)
    with pytest.raises(RefusedError, match=r"ensure_weight_tying is True: .*\.o_proj are another .* adapter convert"):
        read_adapter(folder, TINY)


def test_nothing_of_a_refused_adapter_is_stored(connection, folder):
    registered(connection, "piqa")
    change_weights(folder, nan_in)
    with pytest.raises(RefusedError, match=rf"adapter {folder}: module .* holds NaN"):
        stage_adapter(connection, folder, task="piqa")
    stored = connection.execute(
        "SELECT id FROM loracomp.adapter UNION ALL SELECT adapter_id FROM loracomp.adapter_part"
    )
    assert stored.fetchall() == []


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"use_dora": True}, "use_dora is True: not plain LoRA"),
        ({"bias": "lora_only"}, "bias is 'lora_only'"),
        ({"lora_bias": True}, "lora_bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 2}}, r"with r = 2, base model tiny needs A \[2, 32\]"),
        ({"rank_pattern": {"q_proj": 0}}, r"rank_pattern\['q_proj'\] is 0; it must be a whole number"),
        ({"rank_pattern": [2]}, r"rank_pattern is \[2\]; it must give a number for each pattern"),
        ({"alpha_pattern": {"q_proj": "2"}}, r"alpha_pattern\['q_proj'\] is '2'; it must be a number"),
        ({"alpha_pattern": {"(": 2}}, r"alpha_pattern \['\('\] cannot be read"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"something_new": {"a": 1}}, "something_new"),
        *(
            ({"init_lora_weights": start}, f"'{start}', and such a start may change the base model")
            for start in ("pissa_niter_4", "OLoRA", "corda", "loftq", "lora_ga", "zebra")
        ),
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
        ({"task_type": "SEQ_CLS"}, "task_type is 'SEQ_CLS'"),
        ({"r": 8}, r"with r = 8, base model tiny needs A \[8, 32\]"),
        ({"r": "4"}, "r is '4'"),
        ({"r": True}, "r is True"),
        ({"lora_alpha": 0}, "lora_alpha is 0"),
        ({"lora_alpha": float("nan")}, f"{CONFIG} cannot be read: unexpected character"),
        ({"target_modules": "("}, "target_modules '[(]' cannot be read"),
        ({"base_model_name_or_path": "someone/else-7b"}, "names the base model 'someone/else-7b', not tiny"),
    ],
)
def test_a_config_that_is_not_plain_lora_for_this_base_model_is_refused_by_name(folder, settings, says):
    change_config(folder, **settings)
    with pytest.raises(RefusedError, match=says):
        read_adapter(folder, TINY)


def cut_off(folder):
    weights = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(weights[:-100])


def pickled(folder):
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()


def rubbish(folder):
    (folder / WEIGHTS).write_bytes(bytes(range(256)) * 16)


def empty(folder):
    (folder / WEIGHTS).write_bytes(b"")


def record(**training):
    return lambda folder: (folder / TRAINING).write_text(json.dumps(training))


def trained_elsewhere(folder):
    (folder / TRAINING).write_text(json.dumps({"base_model": {"name": "tiny", "fingerprint": "c" * 64}}))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (cut_off, f"{WEIGHTS} is corrupt or cut off"),
        (rubbish, f"{WEIGHTS} is corrupt or cut off"),
        (empty, f"{WEIGHTS} is corrupt or cut off"),
        (pickled, "adapter_model.bin is a pickle, which can run code"),
        (lambda folder: (folder / WEIGHTS).unlink(), f"there is no {WEIGHTS}"),
        (lambda folder: (folder / CONFIG).unlink(), f"there is no {CONFIG}"),
        (lambda folder: (folder / CONFIG).write_text("{"), f"{CONFIG} cannot be read"),
        (lambda folder: (folder / CONFIG).write_text("[]"), "not a JSON object"),
        (trained_elsewhere, "trained on tiny .fingerprint cccccccccccc., not on tiny"),
        (record(tasks_seen="verse"), "tasks_seen is 'verse'; it must be a list of names of tasks"),
        (record(tasks_seen=["verse", 7]), r"tasks_seen is \['verse', 7\]; it must be a list"),
        (record(kept_aside={}), "kept_aside is {}; it must be a list of content hashes"),
    ],
)
def test_a_broken_folder_is_refused_in_a_sentence(folder, change, says):
    change(folder)
    with pytest.raises(RefusedError, match=says):
        read_adapter(folder, TINY)


def test_a_config_may_name_the_base_model_as_hub_id_folder_or_quantised_file(folder):
    base = replace(TINY, name="Tiny-1B.Q4_1", source="package:llm_tiny")
    for hint in (None, "someone/tiny-1b", "/models/Tiny-1B/", "package:llm_tiny"):
        change_config(folder, base_model_name_or_path=hint)
        read_adapter(folder, base)
    change_config(folder, base_model_name_or_path="someone/tiny-1b-chat")
    with pytest.raises(RefusedError, match="--any-base"):
        read_adapter(folder, base)
    read_adapter(folder, base, any_base=True)


def test_versions_count_up_and_the_same_file_is_not_stored_twice(connection, tmp_path):
    registered(connection, "piqa")
    for seed in (0, 1):
        write_adapter(tmp_path / str(seed), seed=seed)
    staged = [stage_adapter(connection, tmp_path / folder, task="piqa") for folder in ("0", "1", "0")]
    assert [(each.version, each.created) for each in staged] == [(1, True), (2, True), (1, False)]
    assert stage_adapter(connection, tmp_path / "0", task="piqa", name="other").version == 1
    change_config(tmp_path / "0", lora_alpha=16)  # the same file, composed twice as strong
    assert stage_adapter(connection, tmp_path / "0", task="piqa").version == 3


@pytest.fixture(scope="module")
def of_two_ranks(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("ranks") / "adapter"
    write_adapter(path, r=4, rank_pattern={"layers.0.self_attn.q_proj": 8})
    return path


@hypothesis.given(
    alphas=st.tuples(*[st.sampled_from([8, 8.0, 16, 32])] * 2),
    rslora=st.tuples(st.booleans(), st.booleans()),
    patterns=st.tuples(
        *[st.dictionaries(st.sampled_from(["q_proj", "layers.0.self_attn.q_proj"]), st.sampled_from([8, 16]))] * 2
    ),
)
@hypothesis.settings(max_examples=200, deadline=None)
def test_adapters_of_one_file_have_one_digest_if_each_module_has_the_same_scaling(
    of_two_ranks, alphas, rslora, patterns
):
    scalings, digests = [], []
    for alpha, use_rslora, pattern in zip(alphas, rslora, patterns, strict=True):
        change_config(of_two_ranks, lora_alpha=alpha, use_rslora=use_rslora, alpha_pattern=pattern)
        adapter = read_adapter(of_two_ranks, TINY)
        factors = parse_factors(adapter.weights)
        own = own_scaling(adapter.config, factors)
        scalings.append({module: own.get(module, adapter.scaling) for module in factors})
        digests.append(adapter.digest)
    assert (digests[0] == digests[1]) == (scalings[0] == scalings[1])


def test_of_one_file_each_scaling_is_an_adapter_of_its_own(connection, of_two_ranks):
    registered(connection, "piqa")
    change_config(of_two_ranks, lora_alpha=8, use_rslora=False, alpha_pattern={})
    assert stage_adapter(connection, of_two_ranks, task="piqa").created
    change_config(of_two_ranks, lora_alpha=4, use_rslora=True)  # 8 / 4 = 4 / sqrt(4), but not where the rank is 8
    assert stage_adapter(connection, of_two_ranks, task="piqa").created
    change_config(of_two_ranks, lora_alpha=8, use_rslora=False)
    assert not stage_adapter(connection, of_two_ranks, task="piqa").created


def test_one_adapter_of_a_task_is_active_and_the_former_one_can_come_back(connection, tmp_path):
    registered(connection, "piqa")
    ids = []
    for seed in (0, 1):
        write_adapter(tmp_path / str(seed), seed=seed)
        ids.append(stage_adapter(connection, tmp_path / str(seed), task="piqa").id)
    assert activate_adapter(connection, ids[0]) is None
    assert activate_adapter(connection, ids[1]) == ids[0]
    assert (status_of(connection, "piqa@1"), status_of(connection, "piqa@2")) == ("retired", "active")
    assert activate_adapter(connection, ids[1]) is None
    assert activate_adapter(connection, ids[0]) == ids[1]
    assert find_adapter(connection, "piqa@1")["retired_at"] is None
    retire_adapter(connection, ids[0])
    retire_adapter(connection, ids[0])
    assert status_of(connection, "piqa@1") == "retired"
    assert len(fetch_adapters(connection, ids)) == 2  # retired ones stay, for replay


def test_an_adapters_life_by_the_command_line(connection, run, folder, tmp_path):
    registered(connection, "piqa")
    (staged,) = run("adapter", "stage", str(folder), "--task", "piqa", "--name", "goals")
    assert (staged["name"], staged["version"], staged["status"]) == ("goals", 1, "staged")
    assert run("adapter", "activate", "goals@1")[0]["status"] == "active"
    assert run("model", "list")[0]["active_adapters"] == 1
    run("adapter", "export", "goals", str(tmp_path / "out"))
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()
    assert run("adapter", "retire", "goals")[0]["status"] == "retired"
    assert [(row["task"], row["status"]) for row in run("adapter", "list")] == [("piqa", "retired")]
    with pytest.raises(NotFoundError, match="no adapter goals@2"):
        run("adapter", "retire", "goals@2")


@pytest.mark.parametrize("name", ["", " ", "a@b", "@", "goals@1"])
def test_a_name_that_no_command_could_name_again_is_refused_before_storing(connection, run, folder, name):
    registered(connection, "piqa")
    with pytest.raises(
        UsageError,
        match=f'name must not be blank, .* must not contain @, and is "{name}": .* --name',
    ):
        run("adapter", "stage", str(folder), "--task", "piqa", "--name", name)
    assert run("adapter", "list") == []


def test_an_adapter_of_an_older_release_whose_name_contains_an_at_sign_can_still_be_named(connection, run, folder):
    registered(connection, "piqa")
    run("adapter", "stage", str(folder), "--task", "piqa")
    connection.execute("UPDATE loracomp.adapter SET name = 'a@b'")
    assert run("adapter", "activate", "a@b@1")[0]["status"] == "active"


def test_a_folder_that_cannot_be_written_is_a_sentence(connection, database, folder):
    registered(connection, "piqa")
    stage_adapter(connection, folder, task="piqa")
    command = [programs() / "loracomp", "adapter", "export", "piqa", str(folder / CONFIG)]
    environment = {**os.environ, "LORACOMP_DATABASE_URL": database}
    done = subprocess.run(command, env=environment, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: [Errno") and str(folder / CONFIG) in done.stderr
    assert "Traceback" not in done.stderr


def test_two_activations_at_once_leave_one_active(connection, database, tmp_path):
    registered(connection, "piqa")
    ids = []
    for seed in (0, 1):
        write_adapter(tmp_path / str(seed), seed=seed)
        ids.append(stage_adapter(connection, tmp_path / str(seed), task="piqa").id)
    with db.connect(database) as other:
        waiting = threading.Thread(target=activate_adapter, args=(other, ids[1]))
        with connection.transaction():
            activate_adapter(connection, ids[0])
            waiting.start()
            wait_until_blocked(connection, other.info.backend_pid)
        waiting.join(timeout=60)
    assert (status_of(connection, "piqa@1"), status_of(connection, "piqa@2")) == ("retired", "active")


def wait_until_blocked(connection, pid: int) -> None:
    for _ in range(1000):
        blocked = connection.execute("SELECT cardinality(pg_blocking_pids(%s)) AS n", (pid,)).fetchone()
        if blocked["n"] > 0:
            return
        time.sleep(0.01)
    raise AssertionError("the other session does not wait")


def test_one_corrupt_adapter_costs_neither_the_others_nor_the_connection(connection, tmp_path):
    registered(connection, "piqa")
    ids = []
    for seed in (1, 2):
        write_adapter(tmp_path / str(seed), seed=seed)
        ids.append(stage_adapter(connection, tmp_path / str(seed), task="piqa").id)
    connection.execute(
        "UPDATE loracomp.adapter_part SET bytes = set_byte(bytes, octet_length(bytes) - 1, 77) WHERE adapter_id = %s",
        ids[:1],
    )
    rows = connection.execute("SELECT id, sha256 FROM loracomp.adapter WHERE id = ANY(%s)", (ids,))
    used = [(row["id"], row["sha256"]) for row in rows]
    found = ResidentAdapters(1 << 20).get(used, partial(fetch_adapters, connection))
    assert [getattr(found[id_], "code", "whole") for id_ in ids] == ["adapter_hash_mismatch", "whole"]


def test_bytes_that_changed_in_the_database_are_not_loaded(connection, folder, tmp_path):
    registered(connection, "piqa")
    staged = stage_adapter(connection, folder, task="piqa")
    connection.execute("UPDATE loracomp.adapter_part SET bytes = set_byte(bytes, octet_length(bytes) - 1, 77)")
    with pytest.raises(JobError, match="piqa@1: its bytes in the database are not those") as caught:
        fetch_adapters(connection, [staged.id])
    assert (caught.value.code, caught.value.retry) == ("adapter_hash_mismatch", False)
    with pytest.raises(RefusedError, match="sha256 differs"):
        export_adapter(connection, find_adapter(connection, "piqa"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_adapter_without_its_weights_is_neither_activated_nor_loaded(connection, folder):
    registered(connection, "piqa")
    staged = stage_adapter(connection, folder, task="piqa")
    connection.execute("DELETE FROM loracomp.adapter_part")
    with pytest.raises(
        RefusedError,
        match=r"piqa@1 should have .* bytes .*, and has 0.* stage the adapter again",
    ):
        activate_adapter(connection, staged.id)
    with pytest.raises(JobError, match="sha256 differs"):
        fetch_adapters(connection, [staged.id])
    with pytest.raises(JobError, match=r"\[77\] are not in the registry") as caught:
        fetch_adapters(connection, [77])
    assert caught.value.code == "adapter_missing"


def test_what_does_not_exist_is_named(connection, folder):
    with pytest.raises(NotFoundError, match="no base model is the default: loracomp library load brings one"):
        stage_adapter(connection, folder, task="piqa")
    registered(connection)
    with pytest.raises(NotFoundError, match="task piqa does not exist"):
        stage_adapter(connection, folder, task="piqa")
    with pytest.raises(NotFoundError, match="base model tiny has no adapter piqa@3"):
        find_adapter(connection, "piqa@3")
    with pytest.raises(NotFoundError, match="base model tiny has no adapter piqa@new"):
        find_adapter(connection, "piqa@new")
    with pytest.raises(NotFoundError, match="no adapter with id 5"):
        activate_adapter(connection, 5)
    with pytest.raises(NotFoundError, match="no adapter with id 5"):
        retire_adapter(connection, 5)


def test_a_name_in_another_case_is_asked_about(connection, folder):
    registered(connection, "piqa")
    stage_adapter(connection, folder, task="piqa")
    add_task(connection, "PIQA")
    with pytest.raises(NotFoundError, match=r"task Piqa does not exist: .* ones \(did you mean PIQA or piqa\?\)$"):
        stage_adapter(connection, folder, task="Piqa")
    with pytest.raises(NotFoundError, match=r"no adapter PIQA@1: .* ones \(did you mean piqa\?\)$"):
        find_adapter(connection, "PIQA@1")
    with pytest.raises(NotFoundError, match=r"no adapter piqa@2: loracomp adapter list shows the existing ones$"):
        find_adapter(connection, "piqa@2")
    with pytest.raises(NotFoundError, match=r"base model Tiny is not .* adds one \(did you mean tiny\?\)$"):
        find_base_model(connection, "Tiny")
    jobs = {"policy => 'CAT'": "cat", "base_model => 'TINY'": "tiny", "tasks => '{piQA}'": "PIQA or piqa"}
    for given, meant in jobs.items():
        with pytest.raises(RefusedError, match=rf"\(did you mean {meant}\?\)"), db.translated_errors():
            connection.execute(f"SELECT loracomp.submit_job('a', {given})".encode())


def test_a_base_models_name_stands_for_its_weights(connection):
    first = register_base_model(connection, tiny_description())
    second = register_base_model(connection, tiny_description(name="second", fingerprint="b" * 64))
    assert find_base_model(connection).name == "tiny"  # the first is the default
    about = {"architecture": "Other", "context_length": 512, "parameter_count": 7, "has_chat_template": True}
    moved = replace(tiny_description(source="elsewhere/tiny"), revision="new", modules={"lm_head": (8, 4)}, **about)
    assert register_base_model(connection, moved) == first
    columns = "source, revision, modules, architecture, context_length, parameter_count, has_chat_template"
    row = connection.execute(f"SELECT {columns} FROM loracomp.base_model WHERE id = %s", [first]).fetchone()
    assert row == {"source": "elsewhere/tiny", "revision": "new", "modules": {"lm_head": [8, 4]}, **about}
    register_base_model(connection, tiny_description(source="elsewhere/tiny"))
    with pytest.raises(
        RefusedError,
        match=r"tiny is registered with other weights, .* under another name",
    ):
        register_base_model(connection, tiny_description(fingerprint="b" * 64))
    again = tiny_description(name="second", fingerprint="b" * 64)
    assert register_base_model(connection, again, make_default=True) == second
    assert find_base_model(connection).name == "second"
    assert find_base_model(connection, "tiny").modules["model.layers.0.mlp.down_proj"] == (32, 48)
