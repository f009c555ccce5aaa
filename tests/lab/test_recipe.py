"""Training a library by a recipe: its order, what it refuses, going on after a kill, failures that stay alone."""

import json
import signal
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import load_file
from typer.testing import CliRunner

from loracomp.errors import LoracompError, NotFoundError, UsageError
from loracomp_lab.catalogue import entry_names, load_entry
from loracomp_lab.cli.training import train_library
from loracomp_lab.library_build import train_rows
from loracomp_lab.training.recipe import read_recipe, with_starts
from loracomp_lab.training.trainer import ProgressBar
from model_fixtures import letter_tokenizer, tiny_llama

ROWS = [
    {"sentence1": f"ann has {n} hens", "sentence2": "ann has hens" if n % 2 else "ann has none", "label": 1 - n % 2}
    for n in range(60)
]
PAIRS = [{"premise": row["sentence1"], "hypothesis": row["sentence2"], "label": row["label"]} for row in ROWS]
"""Made-up rows in the data sets' columns."""
REVIEWS = [{"text": f"film {n}", "sentence": f"film {n}", "label": n % 2} for n in range(60)]
FAMILY = ("sst2", "rotten_tomatoes", "yelp_polarity", "imdb")
RECIPE = """
defaults: {rank: 2, epochs: 1, held_out: 10, max_tokens: 200}
tasks:
  rte: {start_from: mnli, learning_rate: 1.0e-3}
  cb: {epochs: 0.5}
  mnli:
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A tiny base model, data of three tasks, and a recipe for them."""
    root = tmp_path_factory.mktemp("recipe")
    tiny_llama().save_pretrained(root / "model")
    letter_tokenizer().save_pretrained(root / "model")
    for task, rows in (("rte", ROWS), ("mnli", PAIRS), ("cb", PAIRS), *((task, REVIEWS) for task in FAMILY)):
        (root / "data" / task).mkdir(parents=True)
        (root / "data" / task / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "data" / "cb" / "validation.jsonl").write_text(json.dumps(PAIRS[7]) + "\n")
    (root / "recipe.yaml").write_text(RECIPE)
    return root


@pytest.fixture
def train(root, monkeypatch, tmp_path):
    """Run the command with a recipe on the made-up data; its rows, or its error."""
    monkeypatch.setenv("LORACOMP_HOME", str(tmp_path))
    monkeypatch.setenv("LORACOMP_DEVICE", "cpu")
    monkeypatch.setenv("LORACOMP_DTYPE", "float32")
    app = typer.Typer()
    app.command()(train_library)

    def run(output: Path, *arguments: str, recipe: str = RECIPE):
        path = tmp_path / "recipe.yaml"
        path.write_text(recipe)
        places = {"--data": root / "data", "--output": output, "--base-model": root / "model"}
        options = [str(each) for option in places.items() for each in option]
        result = CliRunner().invoke(app, [str(path), *options, *arguments, "--json"])
        if result.exception and not isinstance(result.exception, LoracompError | SystemExit):
            raise result.exception
        run.errors = result.stderr
        return {row["task"]: row for row in json.loads(result.stdout or "[]")}, result.exception

    return run


def read(tmp_path: Path, text: str):
    (tmp_path / "recipe.yaml").write_text(text)
    return read_recipe(tmp_path / "recipe.yaml")


def test_defaults_hold_where_a_task_says_nothing_else_and_starts_come_first(tmp_path):
    recipe = read(tmp_path, RECIPE)
    assert list(recipe) == ["mnli", "rte", "cb"]
    assert {task: (each.config.rank, each.config.epochs, each.start_from) for task, each in recipe.items()} == {
        "mnli": (2, 1, None),
        "rte": (2, 1, "mnli"),
        "cb": (2, 0.5, None),
    }
    assert list(with_starts(recipe, ["rte"])) == ["mnli", "rte"]
    assert list(with_starts(recipe, ["cb"])) == ["cb"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tasks: {rte: {rang: 3}}", "task rte: training settings: rang: Extra inputs"),
        ("tasks: {rte: {rank: x}}", "task rte: training settings: rank: Input should be a valid integer"),
        ("tasks: {rte: {start_from: mnli}, cb: }", "task rte: start_from 'mnli' is not a task of the recipe"),
        ("tasks: {rte: {start_from: cb}, cb: {start_from: rte}}", "start from one another in a circle: rte, cb"),
        ("tasks: [rte]", "tasks: Input should be a valid dictionary"),
        ("task: {rte: }", "tasks: Field required"),
        ("tasks: {", "not YAML"),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused(text, says, tmp_path):
    with pytest.raises(UsageError) as refused:
        read(tmp_path, text)
    assert says in str(refused.value)
    assert str(tmp_path / "recipe.yaml") in str(refused.value)


def test_unknown_tasks_and_files_are_named(tmp_path):
    with pytest.raises(NotFoundError, match="no catalogue entry 'nix'"):
        read(tmp_path, "tasks: {nix: }")
    with pytest.raises(NotFoundError, match=r"recipe .*none.yaml cannot be read"):
        read_recipe(tmp_path / "none.yaml")
    with pytest.raises(UsageError, match="task sst2: not in the recipe; it has mnli, rte, cb"):
        with_starts(read(tmp_path, RECIPE), ["sst2"])


def test_the_shipped_recipe_is_for_every_task_that_may_be_trained():
    recipe = read_recipe()
    assert set(recipe) == {name for name in entry_names() if load_entry(name).training_split}
    assert len({(each.config.rank, each.config.alpha, each.config.seed) for each in recipe.values()}) == 1


def test_it_trains_what_is_missing(train, tmp_path):
    rows, error = train(tmp_path / "library", "--task", "rte")
    assert error is None
    assert {task: row["outcome"] for task, row in rows.items()} == {"mnli": "trained", "rte": "trained"}
    record = json.loads((tmp_path / "library/adapters/rte/training.json").read_text())
    assert record["tasks_seen"] == ["mnli", "rte"]
    weights = tmp_path / "library/adapters/mnli/adapter_model.safetensors"
    before = weights.stat().st_mtime_ns
    rows, error = train(tmp_path / "library")
    assert {task: row["outcome"] for task, row in rows.items()} == {
        "mnli": "finished",
        "rte": "finished",
        "cb": "trained",
    }
    assert weights.stat().st_mtime_ns == before
    assert (rows["cb"]["leaks_left_out"], rows["mnli"]["leaks_left_out"]) == (1, 1)  # the same pair
    assert error is None


def test_a_failure_stays_alone_and_says_so(train, tmp_path):
    train(tmp_path / "library", "--task", "mnli")
    other = RECIPE.replace("mnli:", "mnli: {seed: 3}")
    rows, error = train(tmp_path / "library", recipe=other)
    assert {task: row["outcome"] for task, row in rows.items()} == {"mnli": "failed", "rte": "failed", "cb": "trained"}
    assert "contains another training (seed was 0, is 3)" in rows["mnli"]["error"]
    assert rows["rte"]["error"] == "the task starts from mnli, which failed"
    assert "2 of 3 tasks failed (mnli, rte)" in str(error)


def test_an_unexpected_failure_stays_alone_too(train, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("loracomp_lab.training.train.training_order", lambda *_: 1 / 0)
    rows, _ = train(tmp_path / "library", "--task", "cb")
    assert rows["cb"]["error"] == "ZeroDivisionError: division by zero"


def test_a_family_learns_all_its_data_sets_but_what_their_own_adapters_kept_aside(train, tmp_path):
    defaults = "defaults: {rank: 2, epochs: 1, held_out: 10, max_rows: 20, max_tokens: 200}\n"
    rows, error = train(tmp_path / "library", recipe=defaults + "tasks: {sst2: , sentiment: {start_from: sst2}}")
    assert (error, rows["sentiment"]["rows_seen"]) == (None, 80)
    record = json.loads((tmp_path / "library/adapters/sentiment/training.json").read_text())
    assert record["tasks_seen"] == [*FAMILY, "sentiment"]
    own = json.loads((tmp_path / "library/adapters/sst2/training.json").read_text())["kept_aside"]
    assert set(own) < set(record["kept_aside"])
    assert len(record["kept_aside"]) == 20, "three data sets have the same rows"
    assert record["held_out"]["rows"] == 10, "as many are scored as of one data set"
    _, error = train(tmp_path / "library", recipe="tasks: {reading: }")
    assert "has no folder boolq, multirc, sciq" in str(error)


def test_examples_of_a_family_all_stand_in_phrasings(root):
    own, family = (train_rows(task, str(root / "data")) for task in ("sst2", "sentiment"))
    assert [sum(row.source_ref.startswith(f"{task}/") for row in family) for task in FAMILY] == [60] * 4
    in_own_words = [[row for row in rows if "Is this sentence" in row.prompt] for rows in (own, family)]
    assert (len(in_own_words[0]) > 10, len(in_own_words[1])) == (True, 0)


def test_data_of_all_tasks_must_be_there(train, tmp_path):
    _, error = train(tmp_path / "library", recipe="tasks: {rte: , boolq: , piqa: }")
    assert "has no folder boolq, piqa" in str(error)


def test_stopped_and_started_again_it_comes_to_the_same(train, tmp_path, monkeypatch):
    longer = RECIPE.replace("epochs: 0.5", "epochs: 10")
    adapter = tmp_path / "stopped" / "adapters" / "cb"
    with monkeypatch.context() as patch:
        patch.setattr(ProgressBar, "on_save", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
        _, error = train(tmp_path / "stopped", "--task", "cb", recipe=longer)
    assert isinstance(error, SystemExit) and error.code == 128 + signal.SIGTERM
    assert train.errors.endswith("run the same command again to continue from the last checkpoint\n")
    assert [each.name for each in adapter.glob("checkpoints/checkpoint-*")] == ["checkpoint-25"]
    assert not (adapter / "training.json").exists()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for output in ("stopped", "straight"):
            rows, _ = train(tmp_path / output, "--task", "cb", recipe=longer)
            assert rows["cb"]["outcome"] == "trained"
    finally:
        torch.set_num_threads(threads)
    ours, theirs = (
        load_file(tmp_path / name / "adapters/cb/adapter_model.safetensors") for name in ("stopped", "straight")
    )
    assert all(torch.equal(factor, theirs[name]) for name, factor in ours.items())
    assert {file.name for file in adapter.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "training.json",
    }
