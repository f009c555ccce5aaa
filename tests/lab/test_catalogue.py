"""The catalogue: each entry's prompt on a made-up row, the reader, and what is refused with file, field and row."""

import gzip
import hashlib
import json
import sys
from pathlib import Path

import pytest

from loracomp.errors import NotFoundError, RefusedError, UsageError
from loracomp.registry.encoder_change import set_encoder
from loracomp_lab.catalogue import entry_names, load_entry, read_examples
from loracomp_lab.catalogue.reading import _hub_rows
from loracomp_lab.cli.tasks import warn_of_other_splits

UNSEEN = {"amazon_polarity", "mrpc", "qasc", "qqp", "scitail", "sick", "subj", "trec", "tweet_eval_sentiment"}
DATA = Path(__file__).parents[3] / "shared" / "data"
CHOICES = {"text": ["sand", "glass", "rope"], "label": ["A", "B", "C"]}
REVIEW = "\nQuestion: Is this review positive or negative?\nAnswer:"
POLARITY = ("negative", "positive")
NLI = ("True", "Neither", "False")

# task: (a row with the dataset's columns, prompt, choices, answer)
ROWS = {
    "piqa": (
        {"goal": "dry a wet shoe", "sol1": "fill it with newspaper.", "sol2": "fill it with water.", "label": 0},
        "Question: dry a wet shoe\nAnswer:",
        ("fill it with newspaper.", "fill it with water."),
        "fill it with newspaper.",
    ),
    "hellaswag": (
        {
            "activity_label": "Gardens",
            "ctx": "[header] How to plant a tree [title] Dig a hole. [step] Make it  wide.",
            "endings": ["Put it in [title] Water it.", "[step] Sing."],
            "label": "1",
        },
        "Gardens: How to plant a tree. Dig a hole. Make it wide.",
        ("Put it in. Water it.", "Sing."),
        "Sing.",
    ),
    "winogrande": (
        {"sentence": "Ann thanked Bea because _ had helped.", "option1": "Ann", "option2": "Bea", "answer": "2"},
        "Ann thanked Bea because",
        ("Ann had helped.", "Bea had helped."),
        "Bea had helped.",
    ),
    "social_i_qa": (
        {
            "context": "Lee lost the keys.",
            "question": "How does Lee feel?",
            "answerA": "glad",
            "answerB": "upset",
            "answerC": "tall",
            "label": "2",
        },
        "Q: Lee lost the keys. How does Lee feel?\nA:",
        ("glad", "upset", "tall"),
        "upset",
    ),
    "copa": (
        {
            "premise": "The plant withered. ",
            "question": "cause",
            "choice1": "Nobody watered it.",
            "choice2": "It rained.",
            "label": 0,
        },
        "The plant withered because",
        ("nobody watered it.", "it rained."),
        "nobody watered it.",
    ),
    **{
        task: (
            {"question": "What is a window made of?", "choices": CHOICES, "answerKey": "B"},
            "Question: What is a window made of?\nAnswer:",
            ("sand", "glass", "rope"),
            "glass",
        )
        for task in ("arc_easy", "arc_challenge", "commonsense_qa", "qasc")
    },
    "openbookqa": (
        {"question_stem": "A window is made of", "choices": CHOICES, "answerKey": " B"},
        "A window is made of",
        ("sand", "glass", "rope"),
        "glass",
    ),
    "boolq": (
        {"passage": "Tin melts at 232 degrees.", "question": "does tin melt", "answer": True},
        "Tin melts at 232 degrees.\nQuestion: does tin melt?\nAnswer:",
        ("no", "yes"),
        "yes",
    ),
    "multirc": (
        {"paragraph": "Ida sold her boat.", "question": "Who sold a boat?", "answer": "Ida", "label": 1},
        "Ida sold her boat.\nQuestion: Who sold a boat?\nAnswer: Ida\nIs the answer correct?",
        ("no", "yes"),
        "yes",
    ),
    "sciq": (
        {
            "support": " Roots take up water.",
            "question": "What takes up water?",
            "distractor1": "petals",
            "distractor2": "seeds",
            "distractor3": "bark",
            "correct_answer": "roots",
        },
        "Roots take up water.\nQuestion: What takes up water?\nAnswer:",
        ("petals", "seeds", "bark", "roots"),
        "roots",
    ),
    "rte": (
        {"sentence1": "Oslo lies by the sea.", "sentence2": "Oslo is on the coast.", "label": 0},
        "Oslo lies by the sea.\nQuestion: Oslo is on the coast. True or False?\nAnswer:",
        ("True", "False"),
        "True",
    ),
    "scitail": (
        {"premise": "Iron rusts.", "hypothesis": "Iron never rusts.", "label": "neutral"},
        "Iron rusts.\nQuestion: Iron never rusts. True or False?\nAnswer:",
        ("True", "False"),
        "False",
    ),
    "cb": (
        {"premise": "She thinks it is late.", "hypothesis": "it is late", "label": 2},
        "She thinks it is late.\nQuestion: it is late. True, False, or Neither?\nAnswer:",
        ("True", "False", "Neither"),
        "Neither",
    ),
    "mnli": (
        {"premise": "The shop is shut.", "hypothesis": "The shop is open ", "label": 2},
        "The shop is shut.\nQuestion: The shop is open. True, False or Neither?\nAnswer:",
        NLI,
        "False",
    ),
    "snli": (
        {"premise": "A dog runs.", "hypothesis": "A dog is outside.", "label": 1},
        "A dog runs.\nQuestion: A dog is outside. True, False or Neither?\nAnswer:",
        NLI,
        "Neither",
    ),
    "anli": (
        {"premise": "The film came out in 1990.", "hypothesis": "The film is from 1990.", "label": 0},
        "The film came out in 1990.\nQuestion: The film is from 1990. True, False, or Neither?\nAnswer:",
        NLI,
        "True",
    ),
    "qnli": (
        {"question": "Where is Oslo?", "sentence": "Oslo is in Norway.", "label": 0},
        "Where is Oslo?\nOslo is in Norway.\nQuestion: Does this response answer the question?\nAnswer:",
        ("yes", "no"),
        "yes",
    ),
    "sst2": (
        {"sentence": "a dull , slow film ", "label": 0},
        "a dull , slow film \nQuestion: Is this sentence positive or negative?\nAnswer:",
        POLARITY,
        "negative",
    ),
    **{
        task: ({"text": "I would come again.", "label": 1}, f"I would come again.{REVIEW}", POLARITY, "positive")
        for task in ("imdb", "rotten_tomatoes", "yelp_polarity")
    },
    "amazon_polarity": (
        {"title": "Broke at once", "content": "Do not buy.", "label": 0},
        f"Broke at once\nDo not buy.{REVIEW}",
        POLARITY,
        "negative",
    ),
    "mrpc": (
        {"sentence1": "Prices fell .", "sentence2": "Prices rose .", "label": 0},
        "Sentence 1: Prices fell .\nSentence 2: Prices rose .\n"
        "Question: Do both sentences mean the same thing?\nAnswer:",
        ("no", "yes"),
        "no",
    ),
    "qqp": (
        {"question1": "Is tin soft?", "question2": "How hard is tin?", "label": 1},
        "Question 1: Is tin soft?\nQuestion 2: How hard is tin?\n"
        "Question: Do both questions ask the same thing?\nAnswer:",
        ("no", "yes"),
        "yes",
    ),
    "sick": (
        {"sentence_A": "A dog runs", "sentence_B": "No dog is running", "label": 2},
        "A dog runs\nQuestion: No dog is running. True, False or Neither?\nAnswer:",
        NLI,
        "False",
    ),
    "subj": (
        {"text": "two men find a boat .", "label": 1},
        "two men find a boat .\nQuestion: Is this sentence subjective or objective?\nAnswer:",
        ("subjective", "objective"),
        "objective",
    ),
    "trec": (
        {"text": "Who built it ?", "coarse_label": 3},
        "Who built it ?\nQuestion: What does this question ask for?\nAnswer:",
        ("abbreviation", "entity", "description", "person", "location", "number"),
        "person",
    ),
    "tweet_eval_sentiment": (
        {"text": "@user see you at 5", "label": 1},
        "@user see you at 5\nQuestion: Is this tweet negative, neutral or positive?\nAnswer:",
        ("negative", "neutral", "positive"),
        "neutral",
    ),
}


def write_rows(folder, rows, split="validation"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def read(entry, folder, rows):
    return list(read_examples(load_entry(entry), "validation", write_rows(folder, rows)))


def entry_file(folder, **changes):
    fields = {
        "task": "colours",
        "family": "other",
        "description": "Name a colour.",
        "licence": "none",
        "dataset_path": "nobody/colours",
        "training_split": "train",
        "validation_split": "validation",
        "doc_to_text": "{{ question }}",
        "doc_to_choice": ["red", "blue"],
        "doc_to_target": "label",
    } | changes
    path = folder / "colours.yaml"
    path.write_text(json.dumps({key: value for key, value in fields.items() if value is not None}))  # JSON is YAML
    return str(path)


def test_the_catalogue_is_whole():
    assert set(entry_names()) == set(ROWS)
    entries = [load_entry(name) for name in entry_names()]
    assert [entry.task for entry in entries] == entry_names()
    assert {entry.task for entry in entries if entry.training_split is None} == UNSEEN
    families = {"commonsense", "question_answering", "nli", "sentiment", "paraphrase", "style", "topic"}
    assert {entry.family for entry in entries} == families
    assert all(entry.description.endswith(".") and entry.licence for entry in entries)


@pytest.mark.parametrize("task", ROWS)
def test_a_row_becomes_the_prompt_and_its_choices(task, tmp_path):
    row, prompt, choices, answer = ROWS[task]
    (example,) = read(task, tmp_path, [row])
    assert (example.prompt, example.choices, example.label) == (prompt, choices, answer)
    assert example.choices[example.label_index] == answer
    assert (example.split, example.source_ref) == ("validation", f"{task}/validation#0")


def test_a_content_hash_is_of_the_columns_that_the_templates_read(tmp_path):
    row = {"sentence": "an été film", "label": 1}
    canonical = '{"label":1,"sentence":"an été film"}'
    examples = read("sst2", tmp_path, [row, {"idx": 7, "label": 1, "sentence": "an été film"}, row | {"label": 0}])
    assert examples[0].content_hash == hashlib.sha256(canonical.encode()).digest()
    assert examples[0].content_hash == examples[1].content_hash != examples[2].content_hash
    assert examples[0].hash_version == 1


def test_rows_without_label_or_distinct_choices_are_left_out(tmp_path):
    row = ROWS["piqa"][0]
    left_out = [row | {"label": -1}, row | {"sol1": " x ", "sol2": "x"}, row | {"sol2": " "}]
    assert [example.source_ref for example in read("piqa", tmp_path, [*left_out, row])] == ["piqa/validation#3"]


def test_a_task_of_free_text_has_no_choices(tmp_path):
    entry = load_entry(entry_file(tmp_path, doc_to_choice=None, doc_to_target="{{ colour | upper }}"))
    data = write_rows(tmp_path, [{"question": "Which?", "colour": "red"}], "train")
    (example,) = read_examples(entry, "train", data)
    assert (example.choices, example.label) == (None, "RED")


@pytest.mark.parametrize(
    ("changes", "row", "says"),
    [
        ({}, {"label": 0}, "doc_to_text: row colours/validation#0: 'question' is undefined; the row has label"),
        ({}, {"question": "?"}, "doc_to_target: row colours/validation#0: 'label' is undefined"),
        ({}, {"question": "?", "label": 2}, "gives 2, which is neither an index nor a text of its 2 choices"),
        ({}, {"question": "?", "label": -2}, "gives -2, which is neither an index"),
        ({}, {"question": "?", "label": "green"}, "gives 'green', which is neither an index nor a text"),
        ({"doc_to_choice": "{{ question }}"}, {"question": "?", "label": 0}, "doc_to_choice: row"),
        ({"doc_to_target": "{{ 1 / zero }}"}, {"question": "?", "zero": 0}, "doc_to_target: row"),
        ({"doc_to_text": "{{ question.__class__.__mro__ }}"}, {"question": "?", "label": 0}, "unsafe"),
    ],
)
def test_a_row_that_does_not_fit_names_field_and_row(changes, row, says, tmp_path):
    with pytest.raises(RefusedError, match="catalogue entry 'colours': ") as caught:
        read(entry_file(tmp_path, **changes), tmp_path, [row])
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"doc_to_text": "{{ question"}, "doc_to_text: unexpected end of template"),
        ({"doc_to_target": "{{ label }} of {{ size }}"}, "doc_to_target: must be one {{ expression }}"),
        ({"doc_to_choice": "{{ [ }}"}, "doc_to_choice: "),
        ({"family": None}, "family: Field required"),
        ({"metric": "acc"}, "metric: Extra inputs are not permitted"),
        ({"doc_to_choice": [1, 2]}, "doc_to_choice"),
    ],
)
def test_a_wrong_entry_names_file_and_field(changes, says, tmp_path):
    with pytest.raises(RefusedError, match="colours") as caught:
        load_entry(entry_file(tmp_path, **changes))
    assert says in str(caught.value)


def test_what_is_not_there_is_named_with_the_way_out(tmp_path):
    with pytest.raises(NotFoundError, match=r"'piqua'.*piqa"):
        load_entry("piqua")
    with pytest.raises(UsageError, match=r"'qasc' has no split 'train'; it has validation"):
        list(read_examples(load_entry("qasc"), "train", str(tmp_path)))
    with pytest.raises(UsageError, match="no split 'test'"):
        list(read_examples(load_entry("piqa"), "test", str(tmp_path)))
    with pytest.raises(NotFoundError, match=r"no file .*train\.jsonl"):
        list(read_examples(load_entry("piqa"), "train", str(tmp_path)))
    with pytest.raises(NotFoundError, match="no such folder"):
        list(read_examples(load_entry("piqa"), "train", "/nowhere/at/all"))
    (tmp_path / "broken.yaml").write_text("task: [")
    with pytest.raises(RefusedError, match=r"broken\.yaml: not YAML"):
        load_entry(str(tmp_path / "broken.yaml"))


@pytest.mark.parametrize("line", ["{", "[1]"])
def test_a_broken_line_is_named(line, tmp_path):
    write_rows(tmp_path, [ROWS["piqa"][0]])
    with (tmp_path / "validation.jsonl").open("a") as file:
        file.write(line)
    with pytest.raises(RefusedError, match=r"validation\.jsonl, line 2: "):
        list(read_examples(load_entry("piqa"), "validation", str(tmp_path)))


def test_a_row_that_cannot_be_hashed_is_named(tmp_path):
    write_rows(tmp_path, [ROWS["piqa"][0], ROWS["piqa"][0] | {"goal": "half a pair \ud83d"}])
    with pytest.raises(RefusedError, match=r"row piqa/validation#1: contains half a surrogate pair"):
        list(read_examples(load_entry("piqa"), "validation", str(tmp_path)))


def test_a_packed_file_that_is_cut_off_is_named(tmp_path):
    (tmp_path / "validation.jsonl.gz").write_bytes(gzip.compress(json.dumps(ROWS["piqa"][0]).encode())[:-12])
    with pytest.raises(RefusedError, match=r"validation\.jsonl\.gz cannot be read"):
        list(read_examples(load_entry("piqa"), "validation", str(tmp_path)))


def test_the_hub_needs_the_package_datasets(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r"loracomp-lab\[data\]"):
        list(read_examples(load_entry("piqa"), "validation"))


def test_the_hub_is_read_like_a_folder(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [ROWS["rte"][0] | {"idx": number} for number in range(3)]
    write_rows(tmp_path / "mirror", rows, "validation")
    # To datasets, a folder is what a repository on the hub is.
    assert list(_hub_rows(str(tmp_path / "mirror"), None, "validation")) == rows
    with pytest.raises(NotFoundError, match="did not return split 'train'"):
        _hub_rows(str(tmp_path / "mirror"), None, "train")


def test_an_entry_is_imported_with_its_task(run, database, minilm, tmp_path):
    set_encoder(database, minilm)
    write_rows(tmp_path, [ROWS["piqa"][0] | {"goal": f"cool soup {number}"} for number in range(8)], "train")
    command = ("task", "import-catalogue", "piqa", str(tmp_path), "--split=train", "--limit=5")
    assert run(*command) == [{"task": "piqa", "added": 5, "embedded": 5}]
    assert run(*command) == [{"task": "piqa", "unchanged": 5, "embedded": 0}]
    assert [(row["name"], row["family"]) for row in run("task", "list")] == [("piqa", load_entry("piqa").family)]


def test_rows_of_the_hub_that_the_shipped_library_knows_are_warned_of(tmp_path, capsys):
    def said(*asked) -> str:
        warn_of_other_splits(*asked)
        return " ".join(capsys.readouterr().err.split())

    sciq = load_entry("sciq")
    assert said(sciq, None) == f"sciq: {sciq.data_note}"
    assert said(sciq, str(tmp_path)) == said(load_entry("piqa"), None) == ""


@pytest.mark.data
@pytest.mark.parametrize("task", ROWS)
def test_the_real_data_is_read(task):
    for split in ("validation",) if task in UNSEEN else ("train", "validation"):
        examples = list(read_examples(load_entry(task), split, str(DATA / task)))
        lines = len((DATA / task / f"{split}.jsonl").read_bytes().splitlines())
        assert 0.98 * lines <= len(examples) <= lines  # a few rows have two equal choices
        assert all(example.prompt and example.label for example in examples)
        assert len({example.content_hash for example in examples}) == len(examples)
