"""Passes on a model of a larger one's shape: the whole command on a tiny shape, and what it says without a GPU."""

import json
from dataclasses import replace

import pytest
import torch

from benchmarks import shapes
from benchmarks.engine.workbench import Sizes, drawing, made_up_jobs, to_score

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),  # PEFT 0.21 reads it
    pytest.mark.filterwarnings("ignore:Adapter mix was active which is now deleted"),
]
SMALL = ["--shape", "tiny", "--adapters", "5", "--jobs", "3", "--turns", "1", "--new-tokens", "3"]


def test_without_a_gpu_it_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert shapes.main(["--device", "cuda"]) == 69
    assert "finds no GPU" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["adapters", "rank", "jobs", "new-tokens", "turns"])
def test_a_size_that_cannot_be_measured_is_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        shapes.main([f"--{option}=0"])
    assert f"argument --{option}: 0 is less than" in capsys.readouterr().err


@pytest.mark.model
def test_results_of_a_shape_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert shapes.main(SMALL) == 0
    tiny = json.loads(capsys.readouterr().out)
    assert tiny["base_model"].startswith("tiny (")
    assert [each["name"] for each in tiny["figures"]] == ["scoring cat", "scoring linear", "generation", "PEFT"]
    assert all(each["ratio"] > 0 for each in tiny["figures"])


@pytest.mark.model
def test_peft_scores_as_we_do_and_leaves_the_model_as_it_was() -> None:
    bench = shapes.make("tiny", "cpu", 5, 4, Sizes())
    bench = replace(bench, base=replace(bench.base, model=bench.base.model.float()))
    names = [name for name, _ in bench.base.model.named_parameters()]
    asked = to_score(made_up_jobs(3, seed=1), drawing(bench.library, strategy="linear")(3))
    with shapes.in_peft(bench) as wrapped:
        theirs = shapes.scores_of_peft(bench, wrapped, asked)
    assert [name for name, _ in bench.base.model.named_parameters()] == names
    answers = bench.predictor().predict([replace(each, normalization="none") for each in asked])
    assert [each.choice_scores for each in answers] == [pytest.approx(scores, rel=1e-4) for scores in theirs]
