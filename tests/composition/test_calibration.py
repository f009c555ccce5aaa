"""Biases of choices: the optimum of their definition, fitted once under each composition, and added to scores."""

from dataclasses import replace

import numpy as np
import pytest

from loracomp.engine.calibration import Calibrator, fit_biases
from loracomp.engine.predictor import Predictor
from loracomp.errors import JobError
from loracomp.records import Answer, Composition, LabelledRow, Request
from model_fixtures import TINY_CONTEXT, as_base, linear_shapes, random_adapter, tiny_llama

CHOICES = ("yes", "no", "can not be told")
ROWS = tuple(LabelledRow(f"row {number} is wet", CHOICES[number % 2]) for number in range(8))


@pytest.mark.parametrize("seed", range(8))
def test_fitted_biases_are_where_the_penalised_loss_is_flat(seed: int) -> None:
    deal = np.random.default_rng(seed)
    rows, choices = int(deal.integers(1, 40)), int(deal.integers(2, 7))
    scores, answers = deal.normal([3, *[0] * (choices - 1)], 2, (rows, choices)), deal.integers(0, choices, rows)
    biases = fit_biases(scores, answers, smoothing=2, decay=0.05)
    moved = np.exp(scores + biases)
    mean = (moved / moved.sum(axis=1, keepdims=True)).mean(axis=0)
    shares = (np.bincount(answers, minlength=choices) + 2) / (rows + 2 * choices)
    np.testing.assert_allclose(mean - shares, -2 * 0.05 * biases, atol=1e-9)


class Counting(Predictor):
    """Counts the requests that it answers."""

    asked = 0

    def answer(self, requests, compositions, wanted=lambda _: True):
        self.asked += len(requests)
        return super().answer(requests, compositions, wanted)


@pytest.fixture
def predictor(tokenizer) -> Counting:
    return Counting(as_base(tiny_llama(), tokenizer))


@pytest.fixture
def request_(predictor: Counting) -> Request:
    adapter = random_adapter(linear_shapes(tiny_llama(), "q_proj"), seed=1, scaling=3.0)
    predictor.load(
        [composition := Composition((1,), (adapter.sha256,), (1.0,), "cat")], lambda _: [replace(adapter, id=1)]
    )
    return Request("is it wet", CHOICES, None, normalization="tokens", composition=composition)


def composed(predictor: Predictor, request: Request):
    (made,) = predictor.compose([request.composition], predictor.load([request.composition], lambda _: []))
    assert not isinstance(made, JobError)
    return made


def scores(predictor: Predictor, request: Request) -> np.ndarray:
    (answer,) = predictor.answer([request], [composed(predictor, request)])
    assert isinstance(answer, Answer)
    assert answer.output == CHOICES[int(np.argmax(answer.choice_scores))] or request.choices != CHOICES
    return np.array(answer.choice_scores)


def test_biases_are_those_of_the_rows_scores_under_the_same_composition(predictor: Counting, request_: Request) -> None:
    calibrated = Calibrator(predictor).with_biases(request_, ROWS, composed(predictor, request_))
    direct = np.array([scores(predictor, replace(request_, prompt=row.prompt)) for row in ROWS])
    expected = fit_biases(direct, np.array([CHOICES.index(row.answer) for row in ROWS]))
    np.testing.assert_allclose(calibrated.choice_biases, expected, atol=1e-5)
    np.testing.assert_allclose(scores(predictor, calibrated), scores(predictor, request_) + expected, atol=1e-5)
    (answer,) = predictor.answer([calibrated], [composed(predictor, request_)])
    assert isinstance(answer, Answer)
    assert answer.choice_biases == calibrated.choice_biases


def test_biases_are_fitted_once_for_each_composition_choices_and_rows(predictor: Counting, request_: Request) -> None:
    calibrator, mix = Calibrator(predictor), composed(predictor, request_)
    first = calibrator.with_biases(request_, ROWS, mix)
    assert predictor.asked == len(ROWS)
    reordered = calibrator.with_biases(replace(request_, prompt="another", choices=CHOICES[::-1], seed=7), ROWS, mix)
    assert predictor.asked == len(ROWS)
    assert reordered.choice_biases == first.choice_biases[::-1]
    for changed in (
        replace(request_, normalization="none"),
        replace(request_, composition=Composition()),
        replace(request_, choices=CHOICES[:2]),
    ):
        calibrator.with_biases(changed, ROWS, composed(predictor, changed))
    calibrator.with_biases(
        request_, (*ROWS[:-1], LabelledRow(ROWS[-1].prompt, "yes" if ROWS[-1].answer == "no" else "no")), mix
    )
    assert predictor.asked == 5 * len(ROWS), "a corrected answer is another row"


def test_a_labelled_row_that_is_asked_does_not_know_its_own_label(predictor: Counting, request_: Request) -> None:
    calibrator, mix = Calibrator(predictor), composed(predictor, request_)
    rows = [*ROWS[:5], LabelledRow(f" {ROWS[0].prompt}\n", ROWS[0].answer)]
    everything = calibrator.with_biases(request_, rows, mix)
    again = calibrator.with_biases(replace(request_, prompt=f"{ROWS[0].prompt}\n"), rows, mix)
    assert predictor.asked == len(rows), "the others are not scored again"
    assert again.choice_biases != everything.choice_biases
    without = Calibrator(predictor).with_biases(request_, ROWS[1:5], mix)
    np.testing.assert_allclose(again.choice_biases, without.choice_biases, atol=1e-5)
    (only,) = {calibrator.with_biases(replace(request_, prompt=ROWS[3].prompt), [ROWS[3]], mix).choice_biases}
    assert only == (0.0,) * len(CHOICES), "no row is left"


def test_a_row_that_can_not_be_scored_is_left_out(predictor: Counting, request_: Request) -> None:
    calibrator, mix = Calibrator(predictor), composed(predictor, request_)
    too_long = LabelledRow("wet " * TINY_CONTEXT, "yes")
    found = calibrator.with_biases(request_, (*ROWS, too_long), mix).choice_biases
    np.testing.assert_allclose(found, calibrator.with_biases(request_, ROWS, mix).choice_biases, atol=1e-9)
    assert calibrator.with_biases(request_, (too_long,), mix).choice_biases == (0.0,) * len(CHOICES)
    renamed = LabelledRow("a row that was changed meanwhile", "perhaps")
    assert calibrator.with_biases(request_, (*ROWS, renamed), mix).choice_biases == pytest.approx(found)


def test_where_memory_runs_out_the_job_fails_and_may_be_tried_again(
    predictor: Counting, request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = JobError("no memory", code="out_of_memory", retry=True)
    mix = composed(predictor, request_)
    with pytest.raises(JobError) as lost:
        Calibrator(predictor).with_biases(request_, ROWS, mix, lambda: False)
    assert lost.value.code == "lease_lost"
    monkeypatch.setattr(predictor, "answer", lambda asked, *_: [error] * len(asked))
    with pytest.raises(JobError, match="scoring the labelled rows of its task: no memory") as failed:
        Calibrator(predictor).with_biases(request_, ROWS, mix)
    assert (failed.value.code, failed.value.retry) == ("out_of_memory", True)
