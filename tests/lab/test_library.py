"""Libraries: built from data without carrying its text, loaded once, completed by the data set later."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from loracomp.config import Settings
from loracomp.database.queries import QUERIES
from loracomp.errors import NotFoundError, RefusedError
from loracomp.model.loading import describe_base_model
from loracomp.records import KnownBaseModel
from loracomp.registry.adapter_checks import read_adapter
from loracomp.registry.adapter_files import WEIGHTS, parse_factors
from loracomp.registry.adapters import find_adapter, retire_adapter
from loracomp.registry.embeddings import embed_examples
from loracomp.registry.encoder_change import set_encoder
from loracomp.registry.library import LoadedTask, load_library
from loracomp.registry.library_files import packaged, read_examples_file, read_manifest
from loracomp.registry.measurement_files import measurements_path, read_measurements
from loracomp.registry.tasks import import_examples
from loracomp_lab.catalogue import entry_names, load_entry, read_examples
from loracomp_lab.library_build import PHRASED, build_library, library_card
from loracomp_lab.library_writing import write_examples_file, write_manifest
from loracomp_lab.training.card import adapter_card
from model_fixtures import letter_tokenizer, tiny_llama
from registry_data import write_adapter

PIQA = [{"goal": f"Wash {n} plates.", "sol1": "Use warm water.", "sol2": "Use sand.", "label": 0} for n in range(12)]
RTE = [{"sentence1": f"Ann has {n} hens.", "sentence2": "Ann has hens.", "label": 0} for n in range(5)]
DATA = {"piqa": PIQA, "rte": RTE}
"""Made-up rows in the data sets' columns."""


@pytest.fixture(scope="module")
def built(tmp_path_factory, minilm):
    """A library of two tasks for a tiny base model, and the data that it was made of."""
    root = tmp_path_factory.mktemp("library")
    tiny_llama().save_pretrained(root / "tiny")
    letter_tokenizer().save_pretrained(root / "tiny")
    base = describe_base_model(str(root / "tiny"), cache_dir=root)
    for seed, (task, rows) in enumerate(DATA.items()):
        (root / "data" / task).mkdir(parents=True)
        (root / "data" / task / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        adapter = root / "built" / "adapters" / task
        write_adapter(adapter, seed=seed)
        (adapter / "training.json").write_text(json.dumps(record(task, base)))
    build_library(root / "built", list(DATA), base, minilm, data=str(root / "data"), limit=8)
    return root


def record(task, base):
    data = {"dataset_path": f"someone/{task}", "dataset_name": None, "training_split": "train", "licence": "MIT"}
    return {
        "task": task,
        "family": "made up",
        "base_model": {"name": base.name, "source": "here", "fingerprint": base.fingerprint},
        "hyper_parameters": {"rank": 4, "max_tokens": 9, "layers": None, "held_out": 0},
        "data": {**data, "rows": 50, "rows_too_long": 3, "digest": "abc"},
        "rows_seen": 100,
        "started_from": {"task": "mnli", "sha256": "def"} if task == "rte" else None,
        "tasks_seen": ["mnli", "rte"],
        "held_out": {"rows": 10, "base": {"acc": 0.5}, "adapter": {"acc": 0.75}},
        "steps": 7,
        "seconds": 1.0,
        "device": "cpu",
        "dtype": "float32",
        "versions": {"loracomp": "1"},
    }


@pytest.fixture
def library(built, tmp_path):
    """A copy of the library, to be spoilt."""
    return shutil.copytree(built / "built", tmp_path / "library")


@pytest.fixture
def settings(database, tmp_path):
    return Settings(database_url=database, home=tmp_path)


def count(connection, table: str) -> int:
    return len(connection.execute(f"SELECT 1 FROM loracomp.{table}").fetchall())


def test_a_library_carries_embeddings_and_references_and_no_text(built, minilm):
    examples = read_examples_file(built / "built", "piqa")
    assert len(examples.source_refs) == 8  # the limit
    assert all(ref.startswith("piqa/train#") for ref in examples.source_refs)
    read = read_examples(load_entry("piqa"), "train", str(built / "data" / "piqa"), phrased=PHRASED)
    rows = {e.source_ref: e for e in read}
    chosen = [rows[ref] for ref in examples.source_refs]
    assert [e.content_hash for e in chosen] == [bytes(row) for row in examples.content_hashes]
    expected = minilm.encode([(e.prompt, e.choices) for e in chosen])
    np.testing.assert_allclose(examples.embeddings, expected, atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(examples.embeddings, axis=1), 1, atol=1e-6)
    for file in (built / "built").rglob("*"):
        assert file.is_dir() or not any(word in file.read_bytes() for word in (b"plates", b"warm water", b"hens"))
    card = (built / "built" / "README.md").read_text()
    assert "| piqa | commonsense | someone/piqa | MIT | - | 100 | 4 | 50.0% | 75.0% | - | - |" in card
    assert "| rte | nli | someone/rte | MIT | mnli | 100 | 4 | 50.0% | 75.0% | - | - |" in card


def test_a_library_carries_no_example_that_leaks(built, tmp_path, minilm):
    shutil.copytree(built / "data", tmp_path / "data")
    leaks = [{**row, "goal": row["goal"].upper().replace(".", " !")} for row in PIQA[:5]]
    (tmp_path / "data/piqa/validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in leaks))
    base = describe_base_model(str(built / "tiny"), cache_dir=built)
    build_library(tmp_path / "library", ["piqa"], base, minilm, data=str(tmp_path / "data"), limit=8)
    shipped = read_examples_file(tmp_path / "library", "piqa").source_refs
    assert shipped == [f"piqa/train#{number}" for number in range(5, 12)]


def test_building_again_embeds_only_what_changed(built, library, minilm):
    base = describe_base_model(str(built / "tiny"), cache_dir=built)
    before = {task: file_of(library, task).stat().st_mtime_ns for task in DATA}
    build_library(library, list(DATA), base, minilm, data=str(built / "data"), limit=8)
    assert {task: file_of(library, task).stat().st_mtime_ns for task in DATA} == before
    build_library(library, ["piqa"], base, minilm, data=str(built / "data"), limit=8, seed=1)
    assert file_of(library, "piqa").stat().st_mtime_ns != before["piqa"]
    assert read_manifest(library) == read_manifest(built / "built")


def file_of(library, task):
    return library / "examples" / f"{task}.safetensors"


def test_loading_brings_everything_once_and_again_nothing(connection, built, settings):
    report = load_library(connection, built / "built", settings=settings)
    assert report == [LoadedTask("piqa", "added", 8, 8, 0), LoadedTask("rte", "added", 5, 5, 0)]
    models = connection.execute(QUERIES["list_base_models"]).fetchall()
    assert [(row["name"], row["is_default"], row["active_adapters"]) for row in models] == [("tiny", True, 2)]
    tasks = {row["name"]: row for row in connection.execute(QUERIES["list_tasks"]).fetchall()}
    assert (tasks["rte"]["family"], tasks["rte"]["embedded"], tasks["rte"]["without_text"]) == ("nli", 5, 5)
    assert find_adapter(connection, "piqa")["training"]["rows_seen"] == 100
    assert load_library(connection, built / "built", settings=settings) == [
        LoadedTask("piqa", "unchanged", 0, 0, 0),
        LoadedTask("rte", "unchanged", 0, 0, 0),
    ]
    assert (count(connection, "adapter"), count(connection, "example_embedding")) == (2, 13)


def test_cards_come_from_the_registry(connection, built, settings, run):
    load_library(connection, built / "built", settings=settings)
    card = run("adapter", "card", "rte")["card"]
    assert card == adapter_card(json.loads((built / "built/adapters/rte/training.json").read_text()))
    assert "- Started from the adapter of mnli, sha256 def\n- Tasks seen, in all: mnli, rte\n" in card
    assert "- someone/rte, split train; licence of the data, as it is usually given (not verified): MIT\n" in card
    assert "| acc | 50.0% | 75.0% |" in card
    connection.execute("UPDATE loracomp.adapter SET training = '{}'")
    with pytest.raises(RefusedError, match="not from `loracomp train`"):
        run("adapter", "card", "rte")


def test_shipped_cards_are_what_their_records_and_the_catalogue_say():
    for folder in (packaged() / "adapters").iterdir():
        card = adapter_card(json.loads((folder / "training.json").read_text()))
        assert (folder / "README.md").read_text() == card, f"{folder.name}: write the card again"
    assert (packaged() / "README.md").read_text() == library_card(packaged())


def test_cards_say_whose_rows_are_not_the_hubs_splits(built):
    rows = record("hellaswag", describe_base_model(str(built / "tiny"), cache_dir=built))
    rows["leaks"] = {"rows_left_out": 2, "rows_sharing_a_text": 7, "compared_with": ["rte"]}
    note = load_entry("hellaswag").data_note
    assert "The hub's validation split therefore contains rows that the library was trained on" in note
    assert "split train" in adapter_card(rows)
    assert note not in adapter_card(rows)
    rows["data"]["read_from"] = "folder"
    card = adapter_card(rows)
    assert f"- Which rows: {note}\n" in card
    assert "split train" not in card
    assert "- Kept: 7 rows that share one text (a premise, a passage, a heading) with a validation row, " in card


def test_an_administrator_who_owns_nothing_may_load_and_import(connection, database, built, settings, minilm):
    set_encoder(database, minilm)
    connection.execute("SET ROLE loracomp_admin")
    load_library(connection, built / "built", settings=settings)
    import_examples(connection, "piqa", read_examples(load_entry("piqa"), "train", str(built / "data" / "piqa")))
    assert embed_examples(connection, minilm) == 4
    assert find_adapter(connection, "piqa")["created_by"] == "loracomp_admin"


def test_loading_again_does_not_undo_what_an_administrator_decided(connection, built, settings, tmp_path):
    load_library(connection, built / "built", settings=settings)
    connection.execute("UPDATE loracomp.task SET reader_role = 'loracomp_analyst', family = 'mine'")
    retire_adapter(connection, find_adapter(connection, "piqa")["id"])
    load_library(connection, built / "built", settings=settings)
    assert find_adapter(connection, "piqa")["status"] == "retired"
    rows = connection.execute(QUERIES["list_tasks"]).fetchall()
    assert {(row["reader_role"], row["family"]) for row in rows} == {("loracomp_analyst", "mine")}


def test_importing_the_data_set_later_fills_the_text_in(connection, built, settings):
    load_library(connection, built / "built", settings=settings)
    examples = list(read_examples(load_entry("piqa"), "train", str(built / "data" / "piqa")))
    assert import_examples(connection, "piqa", examples).counts == {"filled": 8, "added": 4}
    load_library(connection, built / "built", settings=settings)
    tasks = {row["name"]: row for row in connection.execute(QUERIES["list_tasks"]).fetchall()}
    assert (tasks["piqa"]["train"], tasks["piqa"]["without_text"], tasks["piqa"]["embedded"]) == (12, 0, 8)


def test_a_library_sets_a_missing_encoder_in_the_database_of_the_connection(connection, built, settings):
    elsewhere = settings.model_copy(update={"database_url": "postgresql://localhost:1/elsewhere"})
    load_library(connection, built / "built", settings=elsewhere)
    assert count(connection, "encoder") == 1


def test_a_library_of_another_encoder_or_base_model_is_refused(connection, database, library, settings, minilm):
    manifest = read_manifest(library)
    set_encoder(database, minilm)
    same_weights = {"identity": "e" * 64}
    for changed, match in (
        (same_weights, "has other settings or another tokenizer"),
        (same_weights | {"fingerprint": "e" * 64}, "is not this database's"),
    ):
        other = manifest.encoder.model_copy(update=changed)
        write_manifest(library, manifest.model_copy(update={"encoder": other}))
        with pytest.raises(RefusedError, match=match):
            load_library(connection, library, settings=settings)
    newer = manifest.encoder.model_copy(update={"input_version": 4})
    write_manifest(library, manifest.model_copy(update={"encoder": newer}))
    with pytest.raises(RefusedError, match="has input version 4"):
        load_library(connection, library, settings=settings)
    base = manifest.base_model.model_copy(update={"fingerprint": "b" * 64})
    write_manifest(library, manifest.model_copy(update={"base_model": base}))
    with pytest.raises(RefusedError, match=r"is for base model tiny .fingerprint bbbbbbbbbbbb.*loracomp model add"):
        load_library(connection, library, settings=settings)
    assert count(connection, "task") == 0


def test_examples_of_another_encoder_than_the_librarys_are_refused(connection, library, built, settings, minilm):
    examples = list(read_examples(load_entry("rte"), "train", str(built / "data" / "rte")))
    write_examples_file(library, "rte", examples, replace(minilm, fingerprint="e" * 64))
    with pytest.raises(RefusedError, match="examples of rte were not embedded by its encoder"):
        load_library(connection, library, settings=settings)
    assert count(connection, "task") == 0


def test_broken_files_of_a_library_are_named(connection, library, settings, tmp_path):
    with pytest.raises(NotFoundError, match=r"holds no library.json"):
        load_library(connection, tmp_path, settings=settings)
    path = library / "examples" / "rte.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(RefusedError, match=r"rte.safetensors is corrupt or cut off"):
        load_library(connection, library, settings=settings)
    path.unlink()
    with pytest.raises(NotFoundError, match=r"rte.safetensors"):
        load_library(connection, library, settings=settings)
    (library / "library.json").write_text('{"tasks": {}}')
    with pytest.raises(RefusedError, match="base_model: Field required"):
        load_library(connection, library, settings=settings)


def test_a_link_must_not_lead_out_of_a_library(connection, library, settings, tmp_path):
    record = library / "adapters" / "rte" / "training.json"
    record.rename(tmp_path / "elsewhere.json")
    record.symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(RefusedError, match=r"training.json is a link that leads out of the library"):
        load_library(connection, library, settings=settings)
    assert count(connection, "task") == 0
    record.unlink()
    (tmp_path / "elsewhere.json").rename(library / "record.json")
    record.symlink_to("../../record.json")
    assert len(load_library(connection, library, settings=settings)) == 2


def test_the_shipped_library_is_whole_and_small():
    manifest = read_manifest(packaged())
    trained = {task for task in entry_names() if load_entry(task).training_split}
    assert len(trained) == 22
    assert adapters_shipped() == manifest.tasks.keys() == trained  # else run `loracomp library build` again
    for task in manifest.tasks:
        examples = read_examples_file(packaged(), task)
        assert (examples.encoder, examples.input_version) == (
            manifest.encoder.fingerprint,
            manifest.encoder.input_version,
        )
        assert 100 < len(examples.source_refs) <= 500
        assert len({bytes(row) for row in examples.content_hashes}) == len(examples.source_refs)
    assert sum(file.stat().st_size for file in packaged().rglob("*") if file.is_file()) < 40e6


def test_the_shipped_measurements_are_of_the_shipped_adapters():
    shipped = {task: digest_of(packaged() / "adapters" / task) for task in adapters_shipped()}
    for task in shipped:
        measured = read_measurements(measurements_path(packaged(), task))
        # Else run `loracomp library measure library/loracomp_library --adapters 6` again.
        assert measured.adapters == shipped
        assert measured.base_model == read_manifest(packaged()).base_model.fingerprint
        hashes = {bytes(row) for row in read_examples_file(packaged(), task).content_hashes}
        assert 40 <= len(measured.examples) <= 48
        assert {example.content_hash for example in measured.examples} <= hashes
        gains = measured.gains()
        assert np.isfinite(gains.base_scores).all()
        assert (np.isfinite(gains.gains).sum(1) >= 1).all()


def test_where_the_shipped_library_is_missing_the_error_says_how_to_install_it(connection, settings, monkeypatch):
    monkeypatch.setitem(sys.modules, "loracomp_library", None)
    with pytest.raises(NotFoundError, match="`pip install loracomp-library`"):
        load_library(connection, settings=settings)


def digest_of(folder: Path) -> str:
    """The digest of an adapter of the shipped library, whose base model needs not be loaded for it."""
    factors = parse_factors((folder / WEIGHTS).read_bytes())
    modules = {module: (len(B), A.shape[1]) for module, (A, B) in factors.items()}
    part = read_manifest(packaged()).base_model
    return read_adapter(folder, KnownBaseModel(part.name, part.source, None, part.fingerprint, modules)).digest


def adapters_shipped() -> set[str]:
    return {path.name for path in (packaged() / "adapters").iterdir()}
