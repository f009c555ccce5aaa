"""Evaluation without a task's family: which adapters and examples are left, and that no score is computed twice."""

import hashlib
from pathlib import Path

import numpy as np

from benchmarks.evaluation.families import RULES, Library, Question, Scores
from loracomp.engine.predictor import Predictor
from loracomp.model.loading import load_base_model
from loracomp.registry.examples import Example
from model_fixtures import letter_tokenizer, tiny_llama

EXAMPLE = Example("validation", "is it so:", ("yes", "no"), "no", hashlib.sha256(b"row").digest(), "sst2/validation#0")


def question(family: str) -> Question:
    """The first example of sst2, without a family in the library."""
    library = Library()
    vector = library.vectors[np.flatnonzero(library.owners == library.tasks.index("sst2"))[0]].astype(np.float64)
    return Question("sst2", "sentiment", EXAMPLE, vector, library, library.without_family(family))


def test_no_task_and_no_adapter_of_the_family_is_left() -> None:
    stranger, at_home = question("sentiment"), question("nli")
    left = {stranger.library.tasks[task] for task in stranger.allowed}
    assert len(left) == 18
    assert not left & {"sst2", "imdb", "rotten_tomatoes", "yelp_polarity"}
    assert at_home.similarities.max() > 0.999
    assert stranger.similarities.max() < 0.9
    for name, rule in RULES.items():
        weights = rule(stranger)
        assert weights.keys() <= left, name
        assert name == "measured" or abs(sum(weights.values()) - (name != "base")) < 1e-9
    assert set(RULES["uniform"](stranger)) == set(RULES["default"](stranger)) > set(RULES["nearest"](stranger))
    assert next(iter(RULES["default"](at_home))) == "sst2"


def test_a_score_is_computed_once(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "model")
    letter_tokenizer().save_pretrained(tmp_path / "model")
    base = load_base_model(str(tmp_path / "model"), dtype="float32", cache_dir=tmp_path)
    scores = Scores(tmp_path / "scores.jsonl", Predictor(base), [])
    assert list(scores.complete([(EXAMPLE, {}), (EXAMPLE, {})])) == [0]
    with (tmp_path / "scores.jsonl").open("a") as file:
        file.write('["cut off", [0.1]')
    again = Scores(tmp_path / "scores.jsonl", Predictor(base), [])
    assert list(again.complete([(EXAMPLE, {})])) == []
    assert again.of(EXAMPLE, {}) == scores.of(EXAMPLE, {})
    assert len(again.of(EXAMPLE, {})) == 2
