"""Leaks: train rows that give away a validation row, of their own task or of one from the same source."""

import json
from pathlib import Path

import pytest

from loracomp_lab.catalogue import entry_names, load_entry
from loracomp_lab.catalogue.leaks import Leaks, find_leaks

DATA = Path(__file__).parents[3] / "shared" / "data"


def write(folder: Path, task: str, split: str, *rows: dict[str, object]) -> None:
    (folder / task).mkdir(exist_ok=True)
    (folder / task / f"{split}.jsonl").write_text("".join(json.dumps({"label": 0} | row) + "\n" for row in rows))


def leaks(folder: Path, task: str) -> tuple[set[str], int, tuple[str, ...]]:
    found = find_leaks(load_entry(task), str(folder / task))
    return {ref.partition("#")[2] for ref in found.source_refs}, found.sharing, found.compared_with


def test_rows_are_compared_across_tasks_and_templates(tmp_path):
    texts = ("A dull film , alas .", "A long and happy film.", "A new one.")
    write(tmp_path, "rotten_tomatoes", "train", *({"text": text} for text in texts))
    write(tmp_path, "sst2", "validation", {"sentence": "a DULL film, alas"})
    write(tmp_path, "amazon_polarity", "validation", {"title": "A long", "content": "and happy film."})
    assert leaks(tmp_path, "rotten_tomatoes") == ({"0"}, 0, ("amazon_polarity", "sst2"))
    write(tmp_path, "rotten_tomatoes", "validation", {"text": "A new one."})
    assert leaks(tmp_path, "rotten_tomatoes") == ({"0", "2"}, 0, ("amazon_polarity", "rotten_tomatoes", "sst2"))


def test_a_premise_alone_is_shared_and_no_leak(tmp_path):
    premise = "Ann has seven brown hens and a goat."
    write(
        tmp_path,
        "rte",
        "train",
        {"sentence1": premise, "sentence2": "Ann has hens."},
        {"sentence1": premise, "sentence2": "Ann has cows."},
        {"sentence1": "Another farm.", "sentence2": "Ann has hens."},
    )
    write(tmp_path, "mnli", "validation", {"hypothesis": "Ann has hens", "premise": premise})
    # The third shares a text that is too short to say anything.
    assert leaks(tmp_path, "rte") == ({"0"}, 1, ("mnli",))


def test_the_choices_do_not_count(tmp_path):
    write(tmp_path, "piqa", "train", {"goal": "Wash a plate.", "sol1": "Use water.", "sol2": "Use sand."})
    write(tmp_path, "piqa", "validation", {"goal": "wash a plate", "sol1": "Use soap.", "sol2": "Use mud."})
    assert leaks(tmp_path, "piqa")[0] == {"0"}


def test_without_validation_splits_nothing_is_compared(tmp_path):
    write(tmp_path, "sst2", "train", {"sentence": "Fine."})
    assert find_leaks(load_entry("sst2"), str(tmp_path / "sst2")) == Leaks(frozenset(), 0, ())


@pytest.mark.data
def test_reviews_of_one_source_are_found():
    found = find_leaks(load_entry("rotten_tomatoes"), str(DATA / "rotten_tomatoes"))
    assert len(found.source_refs) > 300  # sst2's validation split is of the same reviews
    assert set(found.compared_with) == set(entry_names())
