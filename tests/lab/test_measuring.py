"""A library measured: which rows, scores against a direct computation, only what is missing; and what loading keeps."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from peft import PeftModel
from psycopg.types.json import Jsonb

from loracomp.composition.strategies import LoraFactors
from loracomp.config import Settings
from loracomp.database.connections import Connection
from loracomp.engine.predictor import Predictor
from loracomp.errors import RefusedError
from loracomp.model.loading import BaseModel, describe_base_model, load_base_model
from loracomp.registry.adapter_checks import read_adapter
from loracomp.registry.examples import Example
from loracomp.registry.library import load_library
from loracomp.registry.library_files import read_examples_file
from loracomp.registry.measurement_files import (
    MeasuredExamples,
    measurements_path,
    read_measurements,
)
from loracomp_lab.library_build import build_library, train_rows
from loracomp_lab.library_writing import write_measurements
from loracomp_lab.measuring import MeasuredAdapter, Measuring, likely_tasks, measure_library, read_adapters
from loracomp_lab.training.config import TrainingConfig
from loracomp_lab.training.kept_aside import kept_aside, not_learnt
from loracomp_lab.training.rows import split_rows
from model_fixtures import direct, letter_tokenizer, tiny_llama
from registry_data import quiet_peft, write_adapter

PIQA = [{"goal": f"Wash {n} cups.", "sol1": "Use water.", "sol2": "Use sand.", "label": n % 2} for n in range(20)]
COPA = [
    {
        "premise": f"Ann fell {n} times.",
        "question": "cause",
        "choice1": "It froze.",
        "choice2": "It was dry.",
        "label": 0,
    }
    for n in range(15)
]
DATA = {"piqa": PIQA, "copa": COPA}
ASIDE = {"piqa": 4, "copa": 3}
"""A fifth."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, minilm) -> Path:
    """A library of two tasks, not measured; copa's adapter started from piqa's."""
    root = tmp_path_factory.mktemp("measuring")
    tiny_llama().save_pretrained(root / "tiny")
    letter_tokenizer().save_pretrained(root / "tiny")
    base = describe_base_model(str(root / "tiny"), cache_dir=root)
    kept: list[str] = []
    for seed, (task, rows) in enumerate(DATA.items()):
        (root / "data" / task).mkdir(parents=True)
        (root / "data" / task / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        folder = root / "library" / "adapters" / task
        write_adapter(folder, seed=seed)
        start = {"task": "piqa", "tasks_seen": ["piqa"]} if task == "copa" else None
        found = split_rows(train_rows(task, str(root / "data")), TrainingConfig(held_out=200, seed=3))[0]
        own = {each.content_hash.hex() for each in found}
        kept = not_learnt({task: own}, set(), kept, ["piqa"] if start else [])
        (folder / "training.json").write_text(json.dumps(record(task, start) | {"kept_aside": kept}))
    build_library(root / "library", list(DATA), base, minilm, data=str(root / "data"), limit=8)
    return root


def record(task: str, start: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "task": task,
        "hyper_parameters": {"held_out": 200, "seed": 3, "rank": 4},
        "data": {"dataset_path": task, "dataset_name": None, "licence": "MIT"},
        "held_out": {},
        "rows_seen": 8,
        "started_from": start,
        "tasks_seen": [*(start or {}).get("tasks_seen", []), task],
    }


def scale(folder: Path, **settings: Any) -> None:
    """Change the scaling of an adapter, and nothing in its file."""
    config = folder / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | settings))


def sha256_of(folder: Path) -> str:
    return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()


@pytest.fixture
def library(root: Path, tmp_path: Path) -> Path:
    return shutil.copytree(root / "library", tmp_path / "library")


@pytest.fixture(scope="module")
def base(root: Path) -> BaseModel:
    return load_base_model(str(root / "tiny"), cache_dir=root, dtype="float32")


def measure(root: Path, library: Path, base: BaseModel, **given: Any) -> list[str]:
    return list(measure_library(library, base, data=str(root / "data"), **given))


def found(library: Path, task: str) -> MeasuredExamples:
    measured = read_measurements(measurements_path(library, task))
    assert measured
    return measured


def test_gains_are_those_of_a_direct_computation_on_rows_that_training_kept_aside(
    root: Path, library: Path, base: BaseModel
) -> None:
    measure(root, library, base)
    for task in DATA:
        measured = found(library, task)
        rows = train_rows(task, str(root / "data"))
        aside, _ = split_rows(rows, TrainingConfig(held_out=200, seed=3))
        assert len(aside) == ASIDE[task]
        hashes = [each.content_hash for each in measured.examples]
        assert hashes == sorted(row.content_hash for row in aside)
        assert set(hashes) <= {bytes(each) for each in read_examples_file(library, task).content_hashes}
        gains = measured.gains()
        by_hash = {row.content_hash: row for row in rows}
        for place, content_hash in enumerate(hashes):
            example = by_hash[content_hash]
            asked = {"prompt": example.prompt, "choices": example.choices, "label": example.label}
            expected, right = direct(tiny_llama(), base.tokenizer, {**asked, "choices": list(example.choices or ())})
            assert gains.base_scores[place] == pytest.approx(expected, abs=1e-4)
            assert gains.bases_are_right[place] == right
            for column, other in enumerate(measured.adapters):
                with quiet_peft():
                    model = PeftModel.from_pretrained(tiny_llama(), library / "adapters" / other)
                score, right = direct(model, base.tokenizer, {**asked, "choices": list(example.choices or ())})
                assert gains.gains[place, column] == pytest.approx(score - expected, abs=1e-4)
                assert gains.are_right[place, column] == right
                assert abs(score - expected) > 0.001, "a difference to be seen"


def test_an_adapter_is_not_measured_on_what_it_or_its_start_has_learnt(
    root: Path, library: Path, base: BaseModel
) -> None:
    measure(root, library, base)
    kept = {
        task: set(json.loads((library / "adapters" / task / "training.json").read_text())["kept_aside"])
        for task in DATA
    }
    assert {task: len(hashes) for task, hashes in kept.items()} == {"piqa": 4, "copa": 3 + 4}
    assert kept["piqa"] < kept["copa"], (
        "copa's adapter has learnt piqa's rows, except the rows that piqa's adapter kept aside"
    )
    path = library / "adapters" / "copa" / "training.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"kept_aside": sorted(kept["copa"] - kept["piqa"])}))
    shutil.rmtree(library / "measurements")
    measure(root, library, base)
    gains = found(library, "piqa").gains().gains
    columns = list(found(library, "piqa").adapters)
    assert np.isnan(gains[:, columns.index("copa")]).all()
    assert not np.isnan(gains[:, columns.index("piqa")]).any()


def test_an_adapter_whose_record_lacks_the_rows_kept_aside_is_named(root: Path, library: Path, base: BaseModel) -> None:
    path = library / "adapters" / "copa" / "training.json"
    record = json.loads(path.read_text())
    del record["kept_aside"]
    path.write_text(json.dumps(record))
    steps = measure(root, library, base)
    assert [step.partition(":")[0] for step in steps if "train it again" in step] == ["copa"]
    columns = list(found(library, "copa").adapters)
    assert np.isnan(found(library, "copa").gains().gains[:, columns.index("copa")]).all()
    assert not np.isnan(found(library, "copa").gains().gains[:, columns.index("piqa")]).any()


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("task", ["piqa", "copa"])
def test_the_database_and_the_lab_agree_on_what_an_adapter_has_learnt(
    connection: Connection, task: str, split: str
) -> None:
    """`tasks_seen: []` means none; a record without it means the adapter's own task."""
    seen = [{}, *({"tasks_seen": tasks} for tasks in ([], ["piqa"], ["copa"], ["rte", "piqa"]))]
    example = Example(split, "Is tea hot?", ("yes", "no"), "yes", bytes(32), f"{task}/{split}#0")
    own = example.content_hash.hex()
    aside = [{}, *({"kept_aside": hashes} for hashes in ([], [own], ["11" * 32]))]
    for training in (one | other for one in seen for other in aside):
        adapter = MeasuredAdapter("piqa", "", LoraFactors(1, "", 1.0, {}), training)
        asked = [Jsonb(training), "piqa", task, split, example.content_hash]
        row = connection.execute("SELECT loracomp.has_learnt_from(%s, %s, %s, %s, %s) AS learnt", asked).fetchone()
        assert row == {"learnt": adapter.has_learnt_from(example)}, training


def test_rows_that_were_not_learnt() -> None:
    assert not_learnt({"a": {"1", "2"}}, {"3"}, (), ()) == ["1", "2"]
    assert not_learnt({"a": {"1", "2"}}, {"3"}, ("7", "3"), ("b",)) == ["1", "2", "7"]
    assert not_learnt({"a": {"1", "2"}}, {"3"}, ("2", "3"), ("a",)) == ["2"], "the start has learnt 1"
    assert not_learnt({"a": {"1"}, "c": {"4"}}, {"3"}, ("2",), ("a",)) == ["2", "4"], "and has not met c"
    assert not_learnt({"a": {"1", "2"}}, {"2", "3"}, (), ()) == ["1"], "2 occurs twice: kept aside and drawn"
    assert kept_aside({}, []) == set()


def test_stopped_it_goes_on_and_a_new_adapter_is_scored_alone(
    root: Path, library: Path, base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, ...]] = []
    predict = Predictor.predict

    def noted(self: Predictor, requests, fetch):
        asked.extend(request.composition.adapter_sha256 for request in requests)
        return predict(self, requests, fetch)

    monkeypatch.setattr(Predictor, "predict", noted)
    steps: Iterator[str] = measure_library(library, base, data=str(root / "data"))
    assert list(islice(steps, 1)) == ["copa: 3 of 3 examples, 9 scores"]
    assert len(asked) == 9
    assert measure(root, library, base) == ["piqa: 4 of 4 examples, 12 scores"]
    assert measure(root, library, base) == []
    assert len(asked) == 21
    before = found(library, "copa")

    write_adapter(library / "adapters" / "piqa", seed=7)
    asked.clear()
    measure(root, library, base)
    assert set(asked) == {(sha256_of(library / "adapters" / "piqa"),)}
    after = found(library, "copa")
    columns = list(after.adapters)
    own, other = columns.index("copa"), columns.index("piqa")
    np.testing.assert_array_equal(after.gains().gains[:, own], before.gains().gains[:, own])
    assert (after.gains().gains[:, other] != before.gains().gains[:, other]).all()

    scale(library / "adapters" / "piqa", lora_alpha=4)
    assert measure(root, library, base) == ["copa: 3 of 3 examples, 3 scores", "piqa: 4 of 4 examples, 4 scores"]
    scaled = found(library, "copa").gains().gains
    assert (scaled[:, other] != after.gains().gains[:, other]).all(), "the same file with another scaling"


def test_only_the_nearest_tasks_adapters_may_be_measured(root: Path, library: Path, base: BaseModel) -> None:
    assert likely_tasks(library, ["copa", "piqa"], 1) == {"copa": ["copa"], "piqa": ["piqa"]}
    assert likely_tasks(library, ["copa", "piqa"], 30)["piqa"] == ["piqa", "copa"]
    measure(root, library, base, adapters=1, rows=2)
    measured = found(library, "piqa")
    assert len(measured.examples) == 2
    known = ~np.isnan(measured.gains().gains)
    assert known.sum(0).tolist() == [0, 2]
    write_adapter(library / "adapters" / "copa", seed=7)
    measure(root, library, base, adapters=1, rows=2)
    renewed = found(library, "piqa").adapters
    changed = read_adapter(library / "adapters" / "copa", base).digest
    assert renewed["copa"] == changed, "an adapter that is not measured here changed"


def test_texts_of_which_nothing_is_known_are_scored_again(root: Path, library: Path, base: BaseModel) -> None:
    path = measurements_path(library, "piqa")
    aside = json.loads((library / "adapters" / "piqa" / "training.json").read_text())["kept_aside"]
    rows = [row for row in train_rows("piqa", str(root / "data")) if row.content_hash.hex() not in aside]
    measuring = Measuring(base, read_adapters(library, base))
    assert sum(measuring.complete(path, rows[:2])) == 2 * 1, "both adapters have learnt them"
    other = [replace(rows[0], prompt="Otherwise?"), rows[1]]
    assert sum(measuring.complete(path, other)) == 1
    assert sum(measuring.complete(path, other)) == 0


# --- loaded


@pytest.fixture(scope="module")
def measured(root: Path, base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = shutil.copytree(root / "library", tmp_path_factory.mktemp("measured") / "library")
    list(measure_library(library, base, data=str(root / "data")))
    return library


def rows_of(connection) -> list[dict[str, Any]]:
    rows = connection.execute(
        "SELECT t.name AS task, m.*, (SELECT array_agg(a.name ORDER BY u.place) FROM unnest(m.adapter_ids)"
        " WITH ORDINALITY AS u (id, place) JOIN loracomp.adapter AS a ON a.id = u.id) AS adapters"
        " FROM loracomp.measurement AS m JOIN loracomp.task AS t ON t.id = m.task_id ORDER BY t.name, m.example_id"
    )
    return rows.fetchall()


def test_a_library_brings_its_measurements_once(connection, database: str, measured: Path, tmp_path: Path) -> None:
    settings = Settings(database_url=database, home=tmp_path)
    report = load_library(connection, measured, settings=settings)
    assert {row.task: row.measured for row in report} == ASIDE
    rows = rows_of(connection)
    for task in DATA:
        gains = found(measured, task).gains()
        columns = list(found(measured, task).adapters)
        own = [row for row in rows if row["task"] == task]
        assert len(own) == ASIDE[task]
        assert sorted(row["base_score"] for row in own) == pytest.approx(sorted(gains.base_scores.tolist()))
        for column, name in enumerate(columns):
            stored = sorted(row["gains"][row["adapters"].index(name)] for row in own)
            assert stored == pytest.approx(sorted(gains.gains[:, column].tolist()), abs=1e-6)
    assert {row.measured for row in load_library(connection, measured, settings=settings)} == {0}
    assert rows_of(connection) == rows


@pytest.mark.parametrize(
    "scaling",
    [{"lora_alpha": 4}, {"use_rslora": True}, {"alpha_pattern": {"layers.0.self_attn.q_proj": 4}}],
    ids=lambda settings: next(iter(settings)),
)
def test_gains_are_given_to_no_adapter_of_the_same_file_with_another_scaling(
    connection, database: str, measured: Path, tmp_path: Path, scaling: dict[str, Any]
) -> None:
    settings = Settings(database_url=database, home=tmp_path)
    library = shutil.copytree(measured, tmp_path / "library")
    scale(library / "adapters" / "piqa", **scaling)
    report = load_library(connection, library, settings=settings)
    assert {row.adapter for row in report} == {"added"}
    assert {tuple(row["adapters"]) for row in rows_of(connection)} == {("copa",)}
    again = load_library(connection, measured, settings=settings)
    assert {row.task: row.adapter for row in again} == {"piqa": "added", "copa": "unchanged"}
    versions = connection.execute(
        "SELECT DISTINCT a.version FROM loracomp.measurement AS m"
        " JOIN loracomp.adapter AS a ON a.id = ANY (m.adapter_ids) WHERE a.name = 'piqa'"
    )
    assert [row["version"] for row in versions] == [2], "the one that was measured"


def test_gains_of_other_bytes_or_of_learnt_rows_are_left_out(
    connection, database: str, measured: Path, tmp_path: Path
) -> None:
    settings = Settings(database_url=database, home=tmp_path)
    library = shutil.copytree(measured, tmp_path / "library")
    write_adapter(library / "adapters" / "piqa", seed=9)
    load_library(connection, library, settings=settings)
    assert {tuple(row["adapters"]) for row in rows_of(connection)} == {("copa",)}, "piqa's gains are of other bytes"
    shutil.copytree(measured / "adapters" / "piqa", library / "adapters" / "piqa", dirs_exist_ok=True)
    again = load_library(connection, library, settings=settings)
    assert {row.task: row.measured for row in again} == ASIDE
    assert {tuple(sorted(row["adapters"])) for row in rows_of(connection)} == {("copa", "piqa")}
    connection.execute("DELETE FROM loracomp.measurement")
    connection.execute("""UPDATE loracomp.adapter SET training = '{"tasks_seen": ["copa"]}' WHERE name = 'copa'""")
    load_library(connection, library, settings=settings)
    assert {(row["task"], *sorted(row["adapters"])) for row in rows_of(connection)} == {
        ("copa", "piqa"),
        ("piqa", "copa", "piqa"),
    }


def test_broken_measurements_are_named(connection, database: str, measured: Path, tmp_path: Path) -> None:
    path = tmp_path / "piqa.safetensors"
    write_measurements(path, found(measured, "piqa"))
    assert path.read_bytes() == measurements_path(measured, "piqa").read_bytes()
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(RefusedError, match=r"piqa.safetensors is corrupt or cut off"):
        read_measurements(path)
    load_library(connection, measured, settings=Settings(database_url=database, home=tmp_path))
    with pytest.raises(psycopg.DataError, match="one for each of them and each of adapter_digests"):
        connection.execute(
            "SELECT loracomp.add_measurements('t', NULL, 'tokens', '{a}', '{0}', '{true}', '{x,y}', '{1}', '{true}')"
        )
