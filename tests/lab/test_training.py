"""Training on a tiny model and a rule it can learn: the loss, the order, the folder, kill and resume, refusals."""

import hashlib
import json
import math
import os
import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest
import torch
import typer
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file
from typer.testing import CliRunner

from loracomp.errors import NotFoundError, RefusedError, UsageError
from loracomp.model.loading import load_base_model
from loracomp.model.scoring import log_likelihoods
from loracomp.registry.adapter_checks import read_adapter
from loracomp.registry.adapter_store import stage_adapter
from loracomp.registry.base_models import register_base_model
from loracomp.registry.example_files import read_lines
from loracomp.registry.examples import Example
from loracomp.registry.tasks import add_task, import_examples
from loracomp_lab.catalogue import Entry, Phrased, read_examples
from loracomp_lab.cli.training import train
from loracomp_lab.training.config import ENOUGH_ROWS, training_config
from loracomp_lab.training.rows import choose_rows, training_order
from loracomp_lab.training.source import catalogue_source
from loracomp_lab.training.train import _last_checkpoint, accuracies, train_adapter
from loracomp_lab.training.trainer import ProgressBar, choice_loss
from model_fixtures import letter_tokenizer, tiny_llama

VOWELS = Entry(
    task="vowels",
    family="letters",
    description="Tell vowels from consonants.",
    licence="none",
    dataset_path="nobody/vowels",
    training_split="train",
    validation_split="validation",
    doc_to_text="{{ word }} {{ letter }} is a vowel:",
    doc_to_choice=["yes", "never"],
    doc_to_target="{{ 0 if letter in 'aeiou' else 1 }}",
)
# The learning of one letter's kind takes a few dozen steps of a few milliseconds.
QUICK = {"rank": 4, "target_modules": ("q_proj", "v_proj", "down_proj"), "learning_rate": 1e-2, "held_out": 40}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Sums in one order, so that runs are equal to the bit; and a model this small gains nothing from a second."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny base model, and 260 made-up rows: every letter after words of several lengths."""
    root = tmp_path_factory.mktemp("training")
    tiny_llama().save_pretrained(root / "model")
    letter_tokenizer().save_pretrained(root / "model")
    rows = [
        {"word": "so " * length, "letter": letter} for length in range(10) for letter in "abcdefghijklmnopqrstuvwxyz"
    ]
    (root / "data").mkdir()
    (root / "data" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(root / "model"), str(root / "data")


def base_of(folders):
    return load_base_model(folders[0], dtype="float32", cache_dir=Path("unused"))


def rows_of(folders, **settings):
    config = training_config(**QUICK | settings)
    return choose_rows([lambda *_: read_examples(VOWELS, "train", folders[1])], base_of(folders), config), config


def fit(folders, output, start_from=None, **settings):
    config = training_config(**QUICK | settings)
    return learn(VOWELS, folders, config, output, start_from=start_from)


def learn(entry, folders, config, output, data=None, **options):
    source = catalogue_source(entry, data or folders[1], config)
    return train_adapter(source, base_of(folders), config, output, **options)


@pytest.fixture(scope="module")
def base(folders):
    return base_of(folders)


@pytest.fixture(scope="module")
def trained(folders, tmp_path_factory):
    output = tmp_path_factory.mktemp("trained") / "vowels"
    return fit(folders, output, epochs=15), output


@pytest.mark.parametrize(("exponent", "divisors"), [(0, (1, 1)), (0.5, (3**0.5, 6**0.5)), (1, (3, 6))])
def test_the_loss_is_the_choices_cross_entropy_plus_the_right_ones_loss_a_token(exponent, divisors, folders):
    rows, config = rows_of(folders, lm_weight=0.25, length_exponent=exponent)
    row = rows.epochs[0][0]
    assert row.question.token_counts == (3, 6)  # " yes", " never"; "es" is one token of the tests' tokenizer
    scores = torch.tensor([-5.0, -4.0])
    competing = [float(score) / divisor for score, divisor in zip(scores, divisors, strict=True)]
    cross_entropy = math.log(sum(map(math.exp, competing))) - competing[row.label]
    expected = cross_entropy - 0.25 * float(scores[row.label]) / row.question.token_counts[row.label]
    assert choice_loss([scores], [row], config) == pytest.approx(expected)
    assert choice_loss([scores, scores], [row, row], config) == pytest.approx(expected)


def test_an_epoch_takes_every_row_once_and_like_lengths_together(folders):
    rows, config = rows_of(folders, epochs=2, batch_size=10)
    order = training_order(rows.epochs, config)
    assert len(rows.epochs[0]) == 220
    assert Counter(row.digest for row in order) == {row.digest: 2 for row in rows.epochs[0]}
    batches = [[row.tokens for row in order[i : i + 10]] for i in range(0, 440, 10)]
    spread = [max(batch) - min(batch) for batch in batches]
    assert sum(spread) / len(spread) < 5  # words differ by up to 27 tokens
    assert order == training_order(rows.epochs, config)
    assert order != training_order(rows.epochs, config.model_copy(update={"seed": 1}))


def test_few_rows_are_gone_through_until_enough_are_seen(folders):
    rows, config = rows_of(folders, max_rows=20)
    seen = Counter(row.digest for row in training_order(rows.epochs, config))
    assert (len(rows.epochs), set(seen.values())) == (ENOUGH_ROWS / 20, {ENOUGH_ROWS / 20})
    assert (config.passes(ENOUGH_ROWS), config.passes(9000)) == (1, 1)
    assert training_config(epochs=2).passes(20) == 2


def test_rows_held_out_are_never_learnt(folders):
    rows, _ = rows_of(folders)
    assert len(rows.held_out[Phrased.OWN]) == 40
    assert not {row.digest for row in rows.held_out[Phrased.OWN]} & {row.digest for row in rows.epochs[0]}
    few, _ = rows_of(folders, max_rows=7)
    assert [row.digest for row in few.epochs[0]] == [row.digest for row in rows.epochs[0][:7]]
    assert few.held_out[Phrased.OWN] == rows.held_out[Phrased.OWN]
    assert few.digest() != rows.digest()
    (aside,) = rows.kept_aside
    assert (len(aside), aside & rows.drawn) == (40, frozenset())
    capped, _ = rows_of(folders, held_out=1000)
    assert len(capped.held_out[Phrased.OWN]) == 52  # a fifth
    assert rows_of(folders, seed=1)[0].digest() != rows.digest()


@given(
    data_sets=st.lists(st.text("abcdefgh", min_size=5, max_size=30), min_size=1, max_size=3),
    held_out=st.integers(1, 5),
    max_rows=st.none() | st.integers(1, 9),
    seed=st.integers(0, 99),
)
@settings(max_examples=100, deadline=None)
def test_no_row_that_occurs_several_times_is_both_kept_aside_and_learnt(base, data_sets, held_out, max_rows, seed):
    reads = [lambda *_, letters=letters: [row_of(each) for each in letters] for letters in data_sets]
    config = training_config(held_out=held_out, max_rows=max_rows, seed=seed)
    try:
        rows = choose_rows(reads, base, config)
    except UsageError:
        assume(False)
    aside = frozenset().union(*rows.kept_aside)
    assert not aside & rows.drawn
    assert not {row.digest for row in rows.held_out[Phrased.OWN]} & {row.digest for row in rows.epochs[0]}


def row_of(letter):
    """An example. Examples of the same letter are the same row."""
    return Example("train", letter, ("yes", "never"), "yes", hashlib.sha256(letter.encode()).digest(), letter)


def test_each_epoch_has_its_share_of_phrased_rows(folders):
    shares = []

    def read(phrased, _):
        shares.append(phrased)
        return read_examples(VOWELS, "train", folders[1])

    config = training_config(**QUICK | {"epochs": 3, "phrased": [0, 0.75]})
    choose_rows([read], base_of(folders), config, phrasings=True)
    assert shares == [*Phrased, 0, 0.75, 0.75]


def test_rows_over_max_tokens_are_left_out_and_counted(folders):
    rows, _ = rows_of(folders, max_tokens=30)
    questions = [row.question for row in (*rows.epochs[0], *rows.held_out[Phrased.OWN])]
    assert max(question.prompt_tokens + max(question.token_counts) - 1 for question in questions) == 30
    assert rows.too_long == 260 - len(rows.epochs[0]) - len(rows.held_out[Phrased.OWN]) > 100
    with pytest.raises(UsageError, match="max_tokens = 8"):
        rows_of(folders, max_tokens=8)


def test_a_rule_is_learnt(trained, folders):
    record, _ = trained
    assert record["held_out"]["rows"] == 40
    assert record["held_out"]["base"]["acc"] < 0.85
    assert record["held_out"]["adapter"]["acc"] >= 0.9
    assert (record["rows_seen"], record["steps"]) == (3296, 206)
    assert record["loss"] < 0.3
    assert record["data"]["rows"] == 220
    assert record["kept_aside"] == sorted(each.hex() for each in rows_of(folders, epochs=15)[0].kept_aside[0])
    assert record["data"]["digest"] == rows_of(folders, epochs=15)[0].digest()
    assert {"torch", "peft", "transformers", "loracomp"} <= record["versions"].keys()


def test_the_folder_is_a_peft_folder_of_bfloat16_factors(trained, folders):
    record, output = trained
    files = {"README.md", "adapter_config.json", "adapter_model.safetensors", "training.json"}
    assert {file.name for file in output.iterdir()} == files
    assert json.loads((output / "training.json").read_text()) == record
    config = json.loads((output / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == folders[0]  # the source as it was named
    assert config["target_modules"] == ["down_proj", "q_proj", "v_proj"]
    factors = load_file(output / "adapter_model.safetensors")
    assert {factor.dtype for factor in factors.values()} == {torch.bfloat16}
    assert len(factors) == 2 * 2 * 3  # A and B, layers, modules
    card = (output / "README.md").read_text()
    assert "# vowels (letters)" in card
    assert f"- Rows: 220, with digest {record['data']['digest']}; seen 3296 times in all" in card
    assert "licence of the data, as it is usually given (not verified): none" in card
    assert "- learning rate: 0.01\n" in card
    assert "- target modules: q_proj, v_proj, down_proj\n" in card
    assert "- seed: 0\n" in card
    assert f"| acc | {record['held_out']['base']['acc']:.1%} | {record['held_out']['adapter']['acc']:.1%} |" in card


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_peft_loads_it_with_the_scores_that_were_recorded(trained, folders):
    record, output = trained
    rows, _ = rows_of(folders)
    model = PeftModel.from_pretrained(base_of(folders).model, output).eval()
    assert accuracies(model, rows.held_out[Phrased.OWN])["acc"] == pytest.approx(
        record["held_out"]["adapter"]["acc"], abs=0.026
    )
    with torch.no_grad(), model.disable_adapter():
        base = log_likelihoods(model, [rows.held_out[Phrased.OWN][0].question])[0]
    assert torch.equal(base, log_likelihoods(tiny_llama(), [rows.held_out[Phrased.OWN][0].question])[0])


def test_a_finished_training_is_not_done_again_and_another_is_refused(trained, folders):
    record, output = trained
    before = (output / "adapter_model.safetensors").stat().st_mtime_ns
    (output / "checkpoints").mkdir()  # killed when all but this was done
    assert fit(folders, output, epochs=15) == record
    assert not (output / "checkpoints").exists()
    assert (output / "adapter_model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(UsageError, match=r"contains another training \(epochs was 15.0, is 2.0; seed was 0, is 3\)"):
        fit(folders, output, epochs=2, seed=3)


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_killed_and_started_again_it_reaches_the_same_adapter(folders, tmp_path):
    settings = {"epochs": 3, "held_out": 0}
    output = tmp_path / "killed"
    if not (training := os.fork()):
        ProgressBar.on_save = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
        try:
            fit(folders, output, **settings)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(training, 0)[1]) == -signal.SIGKILL
    assert [each.name for each in output.glob("checkpoints/checkpoint-*")] == ["checkpoint-25"]
    with pytest.raises(UsageError, match="seed was 0, is 9"):
        fit(folders, output, **settings | {"seed": 9})
    resumed = fit(folders, output, **settings)
    straight = fit(folders, tmp_path / "straight", **settings)
    assert resumed["steps"] == straight["steps"] == 48
    ours, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (output, tmp_path / "straight"))
    assert all(torch.equal(factor, theirs[name]) for name, factor in ours.items())


def test_a_checkpoint_that_was_being_written_is_passed_over(tmp_path):
    for step, state in ((25, "{}"), (50, "{}"), (100, ""), (75, '{"epoch": ')):
        folder = tmp_path / "checkpoints" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "trainer_state.json").write_text(state)
    (tmp_path / "checkpoints" / "checkpoint-125").mkdir()
    assert _last_checkpoint(tmp_path) == str(tmp_path / "checkpoints" / "checkpoint-50")


def test_it_starts_from_another_adapters_factors(trained, folders, tmp_path):
    _, source = trained
    digits = VOWELS.model_copy(update={"task": "digits"})
    config = training_config(**QUICK | {"learning_rate": 1e-12, "max_rows": 16})
    record = learn(digits, folders, config, tmp_path / "digits", start_from=source)
    weights = source / "adapter_model.safetensors"
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert record["started_from"] == {"task": "vowels", "sha256": sha256, "tasks_seen": ["vowels"]}
    assert record["tasks_seen"] == ["vowels", "digits"]
    ours, theirs = load_file(tmp_path / "digits" / "adapter_model.safetensors"), load_file(weights)
    assert all(torch.equal(factor, theirs[name]) for name, factor in ours.items())
    assert record["held_out"]["adapter"]["acc"] >= 0.9
    third = learn(VOWELS, folders, config, tmp_path / "third", start_from=tmp_path / "digits")
    assert third["tasks_seen"] == ["digits", "vowels"]
    assert third["kept_aside"] == record["kept_aside"] == trained[0]["kept_aside"], "the same rows by the same seed"
    other = config.model_copy(update={"seed": 1, "max_rows": None})
    fourth = learn(VOWELS, folders, other, tmp_path / "fourth", start_from=tmp_path / "digits")
    own = {each.hex() for each in rows_of(folders, seed=1)[0].kept_aside[0]}
    assert set(fourth["kept_aside"]) == own & set(record["kept_aside"]), "what either has drawn is learnt"
    assert 0 < len(fourth["kept_aside"]) < 40
    card = (tmp_path / "digits" / "README.md").read_text()
    assert f"- Started from the adapter of vowels, sha256 {sha256}\n- Tasks seen, in all: vowels, digits\n" in card
    with pytest.raises(UsageError, match=r"contains another training \(started_from was {.*}, is None; tasks_seen was"):
        learn(digits, folders, config, tmp_path / "digits")


def test_adapters_that_start_from_nothing_share_their_first_factors(folders, trained, tmp_path):
    fit(folders, tmp_path / "one", learning_rate=1e-12, max_rows=16)
    fit(folders, tmp_path / "two", learning_rate=1e-12, max_rows=32, length_exponent=1)
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two"))
    drawn = [name for name in one if "lora_A" in name]  # B starts as zeros
    assert all(one[name].any() and torch.equal(one[name], two[name]) for name in drawn)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"rank": 2}, "start_from .*: its rank is 4, not 2: give rank 4"),
        ({"alpha": 8}, "start_from .*: its alpha is 16, not 8: give alpha 16"),
        ({"target_modules": ("v_proj",)}, "start_from: the adapter of vowels adapts other modules .*down_proj"),
        ({"layers": (1,)}, "start_from: the adapter of vowels adapts other modules .*layers.0"),
    ],
)
def test_a_start_of_another_shape_is_refused(settings, says, trained, folders, tmp_path):
    with pytest.raises(UsageError, match=says):
        fit(folders, tmp_path / "refused", start_from=trained[1], **settings)


def test_a_start_whose_modules_differ_in_alpha_is_refused(folders, trained, tmp_path):
    start = Path(shutil.copytree(trained[1], tmp_path / "start"))
    config = json.loads((start / "adapter_config.json").read_text())
    (start / "adapter_config.json").write_text(json.dumps(config | {"alpha_pattern": {"down_proj": 3}}))
    with pytest.raises(UsageError, match="its modules differ in rank or alpha"):
        fit(folders, tmp_path / "refused", start_from=start)


def test_a_start_that_does_not_say_what_it_has_seen_is_refused(trained, folders, tmp_path):
    start = shutil.copytree(trained[1], tmp_path / "start")
    record = json.loads((start / "training.json").read_text())
    (start / "training.json").write_text(json.dumps({**record, "tasks_seen": []}))
    with pytest.raises(UsageError, match="doesn't name the tasks that it was trained on"):
        fit(folders, tmp_path / "refused", start_from=start)
    (start / "training.json").write_text(json.dumps({**record, "base_model": {"name": "b", "fingerprint": "0" * 64}}))
    with pytest.raises(RefusedError, match="it was trained on b"):
        fit(folders, tmp_path / "refused", start_from=start)


def test_layers_can_be_named(folders, tmp_path):
    fit(folders, tmp_path / "upper", layers=(1,), max_rows=16)
    factors = load_file(tmp_path / "upper" / "adapter_model.safetensors")
    assert {name.split(".layers.")[1][0] for name in factors} == {"1"}
    assert len(factors) == 2 * 3
    base = base_of(folders)
    adapter = read_adapter(tmp_path / "upper", base)  # the registry takes it
    assert adapter.target_modules == tuple(
        sorted(
            m
            for m in base.modules
            if "layers.1" in m and "proj" in m and m.rpartition(".")[2] in QUICK["target_modules"]
        )
    )


def test_rows_that_leak_are_not_learnt(folders, tmp_path):
    for task in ("vowels", "sst2"):
        (tmp_path / task).mkdir()
    shutil.copy(Path(folders[1]) / "train.jsonl", tmp_path / "vowels")
    own = [{"word": "SO, so!", "letter": "a"}, {"word": "so so so so so so so so so ", "letter": "-"}]
    (tmp_path / "vowels" / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    (tmp_path / "sst2" / "validation.jsonl").write_text(json.dumps({"sentence": "B.", "label": 1}) + "\n")
    config = training_config(**QUICK | {"max_rows": 16})
    record = learn(VOWELS, folders, config, tmp_path / "out", str(tmp_path / "vowels"))
    # "so so" + a of its own task; no word + b stands in another.
    assert record["leaks"] == {"rows_left_out": 2, "rows_sharing_a_text": 0, "compared_with": ["sst2", "vowels"]}
    leaks = "- Left out as leaks: 2 rows, because their texts are also in a validation split of sst2, vowels\n"
    assert leaks in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"target_modules": ("q_proj", "query")}, "target_modules: model has no query; it has down_proj"),
        ({"rank": 0}, "rank: "),
        ({"layers": (0, 2)}, "layers: model has no [2]; it has 0 to 1"),
        ({"learning_rate": float("nan")}, "learning_rate: "),
        ({"epochs": -1}, "epochs: "),
        ({"phrased": [0, 2]}, "phrased."),
        ({"phrased": []}, "phrased."),
        ({"learning": 1}, "learning: "),
    ],
)
def test_wrong_settings_are_named(settings, says, folders, tmp_path):
    with pytest.raises(UsageError) as caught:
        fit(folders, tmp_path / "refused", **settings)
    assert says in str(caught.value)


def test_a_task_kept_unseen_or_without_choices_is_refused(folders, tmp_path):
    for changes, says in (
        ({"training_split": None}, "no split 'train'"),
        ({"doc_to_choice": None}, "adapters are trained on choices"),
    ):
        entry = VOWELS.model_copy(update=changes)
        with pytest.raises(UsageError, match=says):
            learn(entry, folders, training_config(), tmp_path)


def test_the_command_prints_the_record(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("LORACOMP_HOME", str(tmp_path))
    monkeypatch.setenv("LORACOMP_DEVICE", "cpu")
    entry = tmp_path / "vowels.yaml"
    entry.write_text(VOWELS.model_dump_json())
    app = typer.Typer()
    app.command()(train)
    arguments = [str(entry), "--data", folders[1], "--base-model", folders[0], "--output", str(tmp_path / "out")]
    arguments += ["--rank", "2", "--target-modules", "v_proj", "--max-rows", "32", "--epochs", "0.5"]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert (record["rows_seen"], record["hyper_parameters"]["target_modules"]) == (16, ["v_proj"])
    again = CliRunner().invoke(app, arguments)
    assert "vowels: 16 rows in 1 steps" in again.stdout
    assert "on 52 train rows kept aside, base model -> adapter: acc" in again.stdout
    refused = CliRunner().invoke(app, [*arguments, "--rank", "0"])
    assert "rank: " in str(refused.exception)


@pytest.fixture
def train_command(database, folders, tmp_path, monkeypatch):
    """`loracomp train` on the test's database, whose base model is the tiny one; returns the record, or raises."""
    monkeypatch.setenv("LORACOMP_HOME", str(tmp_path))
    monkeypatch.setenv("LORACOMP_DEVICE", "cpu")
    monkeypatch.setenv("LORACOMP_DATABASE_URL", database)
    app = typer.Typer()
    app.command()(train)
    settings = ["--rank", "2", "--target-modules", "v_proj", "--held-out", "4", "--json"]

    def command(*arguments: str):
        result = CliRunner().invoke(app, [*arguments, *settings])
        if result.exception:
            raise result.exception
        return json.loads(result.stdout)

    return command


def own_file(path, numbers=range(24)):
    rows = [f"so {'so ' * n}a letter,yes|never,{'never' if n % 2 else 'yes'},train\n" for n in numbers]
    path.write_text("".join(["prompt,choices,label,split\n", *rows, '"So, so... a letter!",yes|never,yes,test\n']))
    return path


def test_a_task_of_the_database_is_trained_on_its_examples(connection, train_command, folders, tmp_path):
    register_base_model(connection, base_of(folders))
    add_task(connection, "letters", family="signs")
    import_examples(connection, "letters", read_lines(own_file(tmp_path / "rows.csv"), "letters"))
    record = train_command("letters", "--output", str(tmp_path / "stored"))
    assert (record["task"], record["family"], record["tasks_seen"]) == ("letters", "signs", ["letters"])
    assert (record["data"]["read_from"], record["data"]["rows"], len(record["kept_aside"])) == ("database", 19, 4)
    assert record["leaks"] == {"rows_left_out": 1, "rows_sharing_a_text": 0, "compared_with": ["letters"]}
    known = connection.execute("SELECT encode(content_hash, 'hex') AS hash FROM loracomp.example").fetchall()
    assert set(record["kept_aside"]) < {row["hash"] for row in known}
    assert "letters, train examples of a database" in (tmp_path / "stored" / "README.md").read_text()
    staged = stage_adapter(connection, tmp_path / "stored", task="letters")
    assert (staged.name, staged.version) == ("letters", 1)


def test_ones_own_files_are_trained_on_as_they_are_imported(train_command, folders, tmp_path):
    own_file(tmp_path / "rows.csv")
    lines = [
        {"prompt": row.prompt, "choices": row.choices, "label": row.label, "split": row.split}
        for row in read_lines(tmp_path / "rows.csv", "letters")
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, lines[0]]))
    base = ["--base-model", folders[0]]
    records = [
        train_command("letters", "--data", str(tmp_path / f"rows.{kind}"), "--output", str(tmp_path / kind), *base)
        for kind in ("csv", "jsonl")
    ]
    assert records[0]["data"]["read_from"] == "files"
    assert records[0]["data"] == records[1]["data"], "a row that stands twice is learnt once"
    other = ["--data", str(tmp_path / "rows.csv"), "--max-words", "8"]
    with pytest.raises(UsageError, match=r"contains another training \(max_words was None, is 8\)"):
        train_command("letters", "--output", str(tmp_path / "csv"), *base, *other)


def test_a_task_with_too_few_examples_to_train_on_says_what_to_do(connection, train_command, folders, tmp_path):
    register_base_model(connection, base_of(folders))
    output = ["--output", str(tmp_path / "out")]
    with pytest.raises(NotFoundError, match="nix is neither a catalogue entry nor a task in the database"):
        train_command("nix", *output)
    add_task(connection, "letters")
    connection.execute(
        "INSERT INTO loracomp.example (task_id, split, source_ref, content_hash)"
        " SELECT t.id, 'train', 'letters/train#' || n, sha256(int4send(n))"
        " FROM loracomp.task AS t, generate_series(1, 20) AS n"
    )
    for rows, found in ((0, "0 train examples have a text"), (15, "15 train examples have a text")):
        file = own_file(tmp_path / "rows.csv", range(5, 5 + rows))
        import_examples(connection, "letters", read_lines(file, "letters"))
        with pytest.raises(UsageError, match=rf"task letters: {found}, and training needs at least 16: .*measure"):
            train_command("letters", *output)
    free_text = tmp_path / "free.jsonl"
    free_text.write_text("".join(json.dumps({"prompt": f"a {n}", "label": "b"}) + "\n" for n in range(16)))
    with pytest.raises(UsageError, match=r"row letters/free.jsonl#\d+ has no choices: .* can't learn free text"):
        train_command("letters", "--data", str(free_text), *output, "--base-model", folders[0])


@pytest.mark.parametrize("name", ["alpha", "learning_rate", "warmup", "epochs", "phrased", "lm_weight", "unlikelihood"])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_settings_of_infinity_and_nan_are_refused(name, value):
    with pytest.raises(UsageError, match=f"training settings: {name}"):
        training_config(**{name: value})


def test_more_passes_than_anybody_needs_are_refused():
    with pytest.raises(UsageError, match=r"epochs: .*1000"):
        training_config(epochs=1e9)


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_a_training_whose_factors_are_not_finite_writes_nothing_and_can_be_corrected(folders, tmp_path):
    few = {"max_rows": 16, "epochs": 2, "held_out": 0}
    with pytest.raises(RefusedError, match="the training went wrong: its factors are NaN or infinite"):
        fit(folders, tmp_path / "out", lm_weight=1e300, **few)
    assert list((tmp_path / "out").iterdir()) == []
    assert fit(folders, tmp_path / "out", **few)["steps"] == 2


def test_after_a_mistyped_module_the_corrected_command_runs(folders, tmp_path):
    few = {"max_rows": 16, "epochs": 1, "held_out": 0}
    with pytest.raises(UsageError, match="target_modules: model has no q_proj,v_proj"):
        fit(folders, tmp_path / "out", target_modules=("q_proj,v_proj",), **few)
    assert not (tmp_path / "out").exists()
    assert fit(folders, tmp_path / "out", target_modules=("q_proj", "v_proj"), **few)["steps"] == 1
