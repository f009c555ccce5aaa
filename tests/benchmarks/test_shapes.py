"""Passes on a model of a larger one's shape: the whole command on a tiny shape, and what it says without a GPU."""

import json
from dataclasses import replace
from pathlib import Path

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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert shapes.main(["--device", "cuda", "--out", str(tmp_path / "gpu.json")]) == 69
    assert "finds no GPU" in capsys.readouterr().err
    assert not (tmp_path / "gpu.json").exists()


@pytest.mark.parametrize("option", ["adapters", "rank", "jobs", "new-tokens", "turns"])
def test_a_size_that_cannot_be_measured_is_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        shapes.main([f"--{option}=0"])
    assert f"argument --{option}: 0 is less than" in capsys.readouterr().err


@pytest.mark.model
def test_results_of_a_shape_are_kept_beside_those_of_others(tmp_path: Path) -> None:
    out = tmp_path / "shapes.json"
    out.write_text(json.dumps({"1B": {"figures": []}}))
    assert shapes.main([*SMALL, "--out", str(out)]) == 0
    kept = json.loads(out.read_text())
    assert list(kept) == ["1B", "tiny"]
    tiny = kept["tiny"]
    assert [each["name"] for each in tiny["figures"]] == ["scoring cat", "scoring linear", "generation", "PEFT"]
    assert all(each["ratio"] > 0 for each in tiny["figures"])
    assert shapes.table(kept).count("tiny (") == 4


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
