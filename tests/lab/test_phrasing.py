"""Phrasings of the catalogue: what a row becomes, what is drawn, and what is refused with entry and field."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest
import yaml

from loracomp.errors import NotFoundError, RefusedError
from loracomp.registry.examples import Example
from loracomp_lab.catalogue import Entry, Phrased, entry_names, load_entry, read_examples
from loracomp_lab.catalogue.phrasing import FOLDER, Phraser, Phrasings, Template, load_phrasings
from test_catalogue import ROWS

EXAMPLE = Example("train", "Own?", ("no", "yes"), "yes", b"h" * 32, "rain/train#0")
ROW = {"text": "Puddles everywhere."}
LABELS = ["dry", "wet"]
WORDED = {"ask": "Dry or wet?", "choices": {"dry": "sunny", "wet": "rainy"}}


def phraser(template: dict, wording: dict | None = None, **settings: object) -> Phraser:
    phrasings = Phrasings.model_validate(
        {"templates": [template], "wordings": [WORDED if wording is None else wording]}
    )
    given = {"columns": {"it": "{{ text }}"}, "labels": LABELS, "choices": None} | settings
    return Phraser("rain", phrasings, **given)


def phrase(each: Phraser, seed: int = 0, phrased: Phrased = Phrased.TRAINED) -> Example:
    return each.phrase(ROW, EXAMPLE, phrased, random.Random(seed))


def test_a_row_is_put_in_the_words_of_a_template_and_a_wording() -> None:
    found = phrase(phraser({"text": "{{ it }}\n{{ ask }}"}))
    assert found.prompt == "Puddles everywhere.\nDry or wet?"
    assert sorted(found.choices or ()) == ["rainy", "sunny"]
    assert found.label == "rainy"
    assert (found.content_hash, found.source_ref) == (EXAMPLE.content_hash, EXAMPLE.source_ref)


def test_choices_are_listed_in_the_order_that_is_scored() -> None:
    each = phraser({"text": "{{ it }} {{ listed }}"})
    orders = {phrase(each, seed).choices for seed in range(20)}
    assert orders == {("sunny", "rainy"), ("rainy", "sunny")}
    for seed in range(20):
        found = phrase(each, seed)
        assert found.prompt == f"Puddles everywhere. {' or '.join(found.choices or ())}"


@pytest.mark.parametrize(
    ("marks", "names"), [("A)", ("A", "B")), ("(a)", ("a", "b")), ("1.", ("1", "2")), ("A", ("A", "B"))]
)
def test_marked_options_are_answered_with_their_mark(marks: str, names: tuple[str, str]) -> None:
    each = phraser({"text": "{{ it }}\n{{ options }}", "marks": marks})
    for seed in range(10):
        found = phrase(each, seed)
        assert found.choices == names
        shown = dict(line.split(" ", 1) for line in found.prompt.split("\n")[1:])
        assert shown[marks.replace(marks.strip("().")[0], found.label)] == "rainy"


def test_a_prompt_may_be_in_lower_case() -> None:
    assert phrase(phraser({"text": "{{ it }}\n{{ ask }}", "lower": True})).prompt == "puddles everywhere.\ndry or wet?"


def test_choices_of_the_row_stay_where_the_wording_has_none() -> None:
    each = phraser({"text": "{{ it }}"}, {}, labels=None)
    assert sorted(phrase(each).choices or ()) == ["no", "yes"]
    own = phraser({"text": "{{ it }}"}, {}, labels=None, choices="{{ [text, 'Sun.'] }}")
    assert phrase(own).label == "Sun."
    assert set(phrase(own).choices or ()) == {"Puddles everywhere.", "Sun."}


def test_what_is_held_out_is_never_drawn_for_training() -> None:
    phrasings = Phrasings.model_validate(
        {
            "templates": [{"text": "seen {{ ask }}"}, {"text": "new {{ ask }}", "held_out": True}],
            "wordings": [WORDED, {"ask": "?", "choices": {"dry": "d", "wet": "w"}, "held_out": True}],
        }
    )
    each = Phraser("rain", phrasings, columns={}, labels=LABELS, choices=None)
    assert {phrase(each, seed).prompt for seed in range(40)} == {"seen Dry or wet?"}
    assert {phrase(each, seed, Phrased.HELD_OUT).prompt for seed in range(40)} == {"new ?"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": ["dry", "damp"]}, "'rain': phrasings: no wording for training has"),
        ({"columns": {"it": "{{ nothing }}"}}, "'rain': phrasings: row rain/train#0: 'nothing' is undefined"),
        ({"columns": {"it": "{% if %}"}}, "'rain': columns.it"),
        ({"choices": "{{ [ }}"}, "'rain': phrased_choices"),
    ],
)
def test_a_wrong_entry_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(RefusedError, match=message.replace("(", r"\(")):
        phrase(phraser({"text": "{{ it }}"}, **settings))


def test_unknown_names_and_fields_are_refused() -> None:
    with pytest.raises(NotFoundError, match=r"no phrasings 'weather': name one of .*sentiment"):
        load_phrasings("weather")
    with pytest.raises(ValueError, match="marks"):
        Template(text="x", marks="AB")


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.yaml")))
def test_each_file_has_eight_templates_and_holds_two_out(name: str) -> None:
    """Each set of labels has wordings to learn too, and two wordings that are held out."""
    phrasings = load_phrasings(name)
    held_out = Counter(each.held_out for each in phrasings.templates)
    assert held_out[False] >= 8
    assert held_out[True] == 2
    labels = {frozenset(each.choices) for each in phrasings.wordings if each.choices}
    for fitting in labels:
        wordings = [each for each in phrasings.wordings if frozenset(each.choices or ()) == fitting]
        assert sum(each.held_out for each in wordings) == 2
        assert sum(not each.held_out for each in wordings) >= 6
        for wording in wordings:
            assert len(set((wording.choices or {}).values())) == len(fitting)


@pytest.mark.parametrize("task", entry_names())
@pytest.mark.parametrize("kind", [Phrased.TRAINED, Phrased.HELD_OUT])
def test_every_entry_can_be_phrased_in_all_ways(task: str, kind: Phrased, tmp_path: Path) -> None:
    if load_entry(task).phrasings is None:
        pytest.skip("no phrasings")
    (tmp_path / "validation.jsonl").write_text(json.dumps(ROWS[task][0]) + "\n")
    entry, own = load_entry(task), ROWS[task]
    for seed in range(60):
        (found,) = read_examples(entry, "validation", str(tmp_path), phrased=kind, seed=seed)
        assert found.prompt
        assert found.label in (found.choices or ())
        assert len(found.choices or ()) == len(own[2])
        assert "{{" not in found.prompt


def test_a_share_of_the_rows_is_phrased_by_seed(tmp_path: Path) -> None:
    rows = [{"sentence": f"number {i}", "label": i % 2} for i in range(400)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def read(phrased: float, seed: int = 0) -> list[Example]:
        return list(read_examples(load_entry("sst2"), "train", str(tmp_path), phrased=phrased, seed=seed))

    own = read(0)
    mixed = read(0.5)
    assert 160 <= sum(a.prompt != b.prompt for a, b in zip(own, mixed, strict=True)) <= 240
    assert mixed == read(0.5)
    assert mixed != read(0.5, seed=1)
    assert [each.content_hash for each in mixed] == [each.content_hash for each in own]


def test_long_texts_lose_their_middle_but_not_their_identity(tmp_path: Path) -> None:
    text = " ".join(f"w{i}" for i in range(100))
    (tmp_path / "train.jsonl").write_text(json.dumps({"text": text, "label": 1}) + "\n")
    entry = load_entry("imdb")
    (whole,) = read_examples(entry, "train", str(tmp_path))
    (cut,) = read_examples(entry, "train", str(tmp_path), max_words=10)
    assert cut.prompt.startswith("w0 w1 w2 w3 w4 ... w95 w96 w97 w98 w99\n")
    assert cut.content_hash == whole.content_hash


def test_an_entry_of_ones_own_may_bring_its_phrasings(tmp_path: Path) -> None:
    entry = {
        "task": "rain",
        "family": "other",
        "description": "",
        "licence": "none",
        "dataset_path": str(tmp_path),
        "training_split": "train",
        "validation_split": "validation",
        "doc_to_text": "{{ text }}",
        "doc_to_choice": ["no", "yes"],
        "doc_to_target": "label",
        "phrasings": {"templates": [{"text": "{{ it }} {{ ask }}"}], "wordings": [WORDED]},
        "columns": {"it": "{{ text }}"},
        "labels": LABELS,
    }
    file = tmp_path / "rain.yaml"
    file.write_text(yaml.safe_dump(entry))
    (tmp_path / "train.jsonl").write_text(json.dumps({"text": "Drops.", "label": 1}) + "\n")
    (found,) = read_examples(load_entry(str(file)), "train", phrased=1.0)
    assert (found.prompt, found.label) == ("Drops. Dry or wet?", "rainy")
    file.write_text(yaml.safe_dump(entry | {"doc_to_choice": None, "doc_to_target": "text"}))
    with pytest.raises(RefusedError, match="phrasings need choices"):
        load_entry(str(file))
    assert Entry.model_validate({key: entry[key] for key in list(entry)[:-3]}).phrasings is None
