"""Tests calibration by labelled rows: the fit is the optimum of its definition, and is made once for each
composition."""

from dataclasses import replace
from time import perf_counter
from typing import Any

import numpy as np
import pytest

from loracomp.engine.answering import Answering
from loracomp.engine.calibration import Calibrator
from loracomp.engine.engine import Engine
from loracomp.engine.evidence import log_likelihood
from loracomp.engine.fitting import BIAS_DOUBT, DOUBT, EXPECTED, SMOOTHING, Classifier, fit_classifier, fit_weights
from loracomp.engine.inflight import InFlight
from loracomp.engine.predictor import Predictor
from loracomp.errors import JobError
from loracomp.records import Composition, Failure, Job, LabelledRow, Prediction, Request, Routed, Trace
from model_fixtures import TINY_CONTEXT, as_base, linear_shapes, random_adapter, tiny_llama

CHOICES = ("yes", "no", "can not be told")
VECTORS = np.random.default_rng(0).normal(0, 0.2, (8, 30)).astype(np.float16)
ROWS = tuple(LabelledRow(f"row {place} is wet", CHOICES[place % 2], each) for place, each in enumerate(VECTORS))
VECTOR = VECTORS[3] + VECTORS[5]


@pytest.mark.parametrize("kinds", [2, 3])
@pytest.mark.parametrize("seed", range(8))
def test_weights_and_biases_are_where_the_penalised_loss_is_flat(seed: int, kinds: int) -> None:
    deal = np.random.default_rng(seed)
    rows, choices = int(deal.integers(2, 40)), int(deal.integers(2, 7))
    parts, right = deal.normal(0, 2, (rows, choices, kinds)), np.eye(choices)[deal.integers(0, choices, rows)]
    parts[:, 0, 0] += 3
    weights = fit_weights(parts, right)
    moved = np.exp(parts @ weights[:kinds] + weights[kinds:])
    surplus = moved / moved.sum(axis=1, keepdims=True) - right
    slopes = np.einsum("rc,rcw->w", surplus, parts)
    np.testing.assert_allclose(slopes, -2 * np.array(DOUBT[:kinds]) * (weights[:kinds] - EXPECTED[:kinds]), atol=1e-4)
    shares = (right.sum(axis=0) + SMOOTHING) / (rows + SMOOTHING * choices)
    np.testing.assert_allclose(
        (surplus + right).sum(axis=0) - rows * shares, -2 * BIAS_DOUBT * weights[kinds:], atol=1e-4
    )


def test_scores_that_tell_the_labels_apart_give_finite_weights() -> None:
    right = np.eye(2)[[0, 1] * 20]
    parts = np.stack([1e3 * right, right], axis=2)
    assert np.isfinite(fit_weights(parts, right)).all()


def test_a_fit_for_a_thousand_choices_takes_no_minutes() -> None:
    """The fit runs in the model's thread. With products of all pairs of choices for each row it took an hour."""
    deal, choices = np.random.default_rng(4), 1000
    right = np.eye(choices)[deal.integers(0, choices, 64)]
    began = perf_counter()
    weights = fit_weights(deal.normal(0, 2, (64, choices, 3)), right)
    assert perf_counter() - began < 60
    assert np.isfinite(weights).all()


def test_a_classifier_says_of_each_row_what_it_would_say_without_the_row() -> None:
    deal = np.random.default_rng(1)
    vectors, right = deal.normal(0, 0.2, (12, 40)), np.eye(3)[deal.integers(0, 3, 12)]
    left_out = fit_classifier(vectors, right).left_out
    for row in range(12):
        others = np.arange(12) != row
        np.testing.assert_allclose(left_out[row], fit_classifier(vectors[others], right[others])(vectors[row]))


def test_what_is_learnt_makes_answers_likelier_and_a_preferred_choice_does_not() -> None:
    deal = np.random.default_rng(2)
    right = np.eye(3)[deal.integers(0, 3, 60)]
    noise = deal.normal(0, 1, (60, 3))
    prefers_one = np.array([4.0, 0.0, 0.0])
    learnt, none, both = (
        log_likelihood(scores, right) for scores in (noise + 2 * right, noise, noise + 2 * right + prefers_one)
    )
    assert learnt - none > 15
    assert both - none > (learnt - none) / 2
    assert max(learnt, none, both) < 0


class Counting(Predictor):
    """Counts the requests that it answers."""

    asked = 0

    def begin(self):
        answering = super().begin()
        add = answering.add

        def count(*given, **settings):
            self.asked += 1
            return add(*given, **settings)

        answering.add = count
        return answering


def calibrated_by(calibrator: Calibrator, *given: Any, **settings: Any) -> Request:
    """The calibrated request. Raises the error that prevents it."""
    calibration = calibrator.begin(*given, **settings)
    while calibration.outcome is None:
        calibrator.step()
    if isinstance(calibration.outcome, JobError):
        raise calibration.outcome
    return calibration.outcome


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


def answered(predictor: Predictor, request: Request) -> Prediction:
    (answer,) = predictor.answer([request], [composed(predictor, request)])
    assert isinstance(answer, Prediction)
    assert answer.choice_scores is not None
    assert answer.output == CHOICES[int(np.argmax(answer.choice_scores))] or request.choices != CHOICES
    return answer


def scores(predictor: Predictor, request: Request) -> np.ndarray:
    return np.array(answered(predictor, request).choice_scores)


def state(predictor: Predictor, request: Request) -> np.ndarray:
    answering = predictor.begin()
    pending = answering.add(replace(request, reads_state=True), composed(predictor, request))
    answering.step()
    assert pending.state is not None
    return pending.state.astype(np.float64)


def classifier_of(predictor: Predictor, request: Request, right: np.ndarray) -> tuple[Classifier, np.ndarray]:
    """The classifier that is fitted on ROWS for this request, and the features of the request's prompt."""
    states = np.array([state(predictor, replace(request, prompt=row.prompt)) for row in ROWS])
    vectors = VECTORS.astype(np.float64)
    scale = np.sqrt(vectors.var(axis=0).sum() / states.var(axis=0).sum())
    features = np.concatenate([VECTOR, scale * state(predictor, request)])
    return fit_classifier(np.concatenate([vectors, scale * states], axis=1), right), features


def test_what_is_added_follows_from_the_rows_scores_under_the_same_composition(
    predictor: Counting, request_: Request
) -> None:
    calibrated = calibrated_by(Calibrator(predictor), request_, VECTOR, ROWS, composed(predictor, request_))
    direct = np.array([scores(predictor, replace(request_, prompt=row.prompt)) for row in ROWS])
    right = np.eye(len(CHOICES))[[CHOICES.index(row.label) for row in ROWS]]
    classifier, features = classifier_of(predictor, request_, right)
    weights = fit_weights(np.stack([direct, classifier.left_out], axis=2), right)
    np.testing.assert_allclose(calibrated.score_weights, [*weights[:2], 0], atol=1e-4)
    np.testing.assert_allclose(calibrated.choice_biases, weights[2:], atol=1e-4)
    answer = answered(predictor, calibrated)
    np.testing.assert_allclose(answer.label_scores, weights[1] * classifier(features), atol=1e-4)
    expected = weights[0] * scores(predictor, request_) + weights[1] * classifier(features) + weights[2:]
    np.testing.assert_allclose(answer.choice_scores, expected, atol=1e-4)
    assert (answer.choice_biases, answer.score_weights) == (calibrated.choice_biases, calibrated.score_weights)
    replayed = replace(calibrated, classifier=None, reads_state=False, label_scores=answer.label_scores)
    np.testing.assert_allclose(scores(predictor, replayed), answer.choice_scores, atol=1e-6)


def test_a_base_model_without_states_is_calibrated_by_the_rows_vectors_alone(tokenizer) -> None:
    predictor = Counting(as_base(model := tiny_llama(), tokenizer))
    model.config.num_hidden_layers = 5
    request = Request("is it wet", CHOICES, None, normalization="tokens")
    calibrated = calibrated_by(Calibrator(predictor), request, VECTOR, ROWS, composed(predictor, request))
    classifier = fit_classifier(VECTORS.astype(np.float64), np.eye(3)[[CHOICES.index(row.label) for row in ROWS]])
    of_labels = calibrated.score_weights[1]
    np.testing.assert_allclose(answered(predictor, calibrated).label_scores, of_labels * classifier(VECTOR), atol=1e-4)


def test_similarities_to_described_choices_are_one_more_fitted_part(predictor: Counting, request_: Request) -> None:
    deal = np.random.default_rng(3)
    of_rows = deal.uniform(-0.5, 0.5, (len(ROWS), len(CHOICES))).astype(np.float32)
    similar = (0.25, -0.125, 0.5)
    request = replace(request_, description_similarities=similar, score_weights=(1.0, 0.0, 8.0))
    calibrator, mix = Calibrator(predictor), composed(predictor, request)
    plain = calibrated_by(calibrator, request_, VECTOR, ROWS, mix)
    calibrated = calibrated_by(calibrator, request, VECTOR, ROWS, mix, row_similarities=of_rows)
    assert predictor.asked == len(ROWS), "what the mix says of the rows is the same"
    assert plain == calibrated_by(Calibrator(predictor), request_, VECTOR, ROWS, mix), "without descriptions as ever"
    direct = np.array([scores(predictor, replace(request_, prompt=row.prompt)) for row in ROWS])
    right = np.eye(len(CHOICES))[[CHOICES.index(row.label) for row in ROWS]]
    classifier, features = classifier_of(predictor, request_, right)
    weights = fit_weights(np.stack([direct, classifier.left_out, of_rows], axis=2), right)
    np.testing.assert_allclose(calibrated.score_weights, weights[:3], atol=1e-4)
    assert calibrated.description_similarities == similar
    parts = np.stack([scores(predictor, request_), classifier(features), similar])
    np.testing.assert_allclose(scores(predictor, calibrated), weights[:3] @ parts + weights[3:], atol=1e-4)
    backwards = replace(request, choices=CHOICES[::-1], description_similarities=similar[::-1])
    reordered = calibrated_by(calibrator, backwards, VECTOR, ROWS, mix, row_similarities=of_rows[:, ::-1])
    np.testing.assert_allclose(reordered.choice_biases, calibrated.choice_biases[::-1], atol=1e-5)
    others = calibrated_by(calibrator, request, VECTOR, ROWS, mix, row_similarities=-of_rows)
    assert others.score_weights != calibrated.score_weights, "other descriptions are fitted anew"


def test_without_labels_the_similarities_are_added_as_they_are_weighed(predictor: Counting, request_: Request) -> None:
    bare = scores(predictor, request_)
    described = replace(request_, description_similarities=(0.1, 0.3, -0.2), score_weights=(0.5, 0.0, 10.0))
    (answer,) = predictor.answer([described], [composed(predictor, request_)])
    assert isinstance(answer, Prediction)
    np.testing.assert_allclose(answer.choice_scores, 0.5 * bare + [1, 3, -2], atol=1e-5)
    assert (answer.description_similarities, answer.score_weights) == ((0.1, 0.3, -0.2), (0.5, 0.0, 10.0))
    (alone,) = predictor.answer([request_], [composed(predictor, request_)])
    assert isinstance(alone, Prediction)
    assert (alone.description_similarities, alone.score_weights) == (None, None)


def test_rows_are_scored_once_for_each_composition_choices_and_rows(predictor: Counting, request_: Request) -> None:
    calibrator, mix = Calibrator(predictor), composed(predictor, request_)
    first = calibrated_by(calibrator, request_, VECTOR, ROWS, mix)
    assert predictor.asked == len(ROWS)
    reordered = calibrated_by(
        calibrator,
        replace(request_, prompt="another", choices=CHOICES[::-1], seed=7, temperature=0.5),
        VECTOR,
        ROWS,
        mix,
    )
    assert predictor.asked == len(ROWS)
    assert reordered.choice_biases == first.choice_biases[::-1]
    for changed in (
        replace(request_, normalization="none"),
        replace(request_, composition=Composition()),
        replace(request_, choices=CHOICES[:2]),
    ):
        calibrated_by(calibrator, changed, VECTOR, ROWS, composed(predictor, changed))
    calibrated_by(
        calibrator,
        request_,
        VECTOR,
        (*ROWS[:-1], replace(ROWS[-1], label="yes" if ROWS[-1].label == "no" else "no")),
        mix,
    )
    assert predictor.asked == 5 * len(ROWS), "a corrected answer is another row"


def test_a_labelled_row_that_is_asked_does_not_know_its_own_label(predictor: Counting, request_: Request) -> None:
    calibrator, mix = Calibrator(predictor), composed(predictor, request_)
    rows = [*ROWS[:5], replace(ROWS[0], prompt=f" {ROWS[0].prompt}\n")]
    everything = calibrated_by(calibrator, request_, VECTOR, rows, mix)
    again = calibrated_by(calibrator, replace(request_, prompt=f"{ROWS[0].prompt}\n"), VECTOR, rows, mix)
    assert predictor.asked == len(rows), "the others are not scored again"
    assert again.choice_biases != everything.choice_biases
    without = calibrated_by(Calibrator(predictor), request_, VECTOR, ROWS[1:5], mix)
    np.testing.assert_allclose(again.choice_biases, without.choice_biases, atol=1e-5)
    alone = replace(request_, prompt=ROWS[3].prompt)
    assert calibrated_by(calibrator, alone, VECTOR, ROWS[3:4], mix) is alone, "no row is left"


def test_a_row_that_can_not_be_scored_is_left_out(predictor: Counting, request_: Request) -> None:
    calibrator, mix = Calibrator(predictor), composed(predictor, request_)
    too_long = replace(ROWS[0], prompt="wet " * TINY_CONTEXT)
    found = calibrated_by(calibrator, request_, VECTOR, (*ROWS, too_long), mix).choice_biases
    np.testing.assert_allclose(found, calibrated_by(calibrator, request_, VECTOR, ROWS, mix).choice_biases, atol=1e-9)
    assert calibrated_by(calibrator, request_, VECTOR, (too_long,), mix) == request_
    renamed = replace(ROWS[0], label="perhaps")
    assert calibrated_by(calibrator, request_, VECTOR, (*ROWS, renamed), mix).choice_biases == pytest.approx(found)


def test_where_memory_runs_out_the_job_fails_and_may_be_tried_again(
    predictor: Counting, request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = JobError("no memory", code="out_of_memory", retry=True)
    mix = composed(predictor, request_)
    with pytest.raises(JobError) as lost:
        calibrated_by(Calibrator(predictor), request_, VECTOR, ROWS, mix, lambda: False)
    assert lost.value.code == "lease_lost"
    monkeypatch.setattr(Answering, "_scores", lambda _, items: dict.fromkeys(items, error))
    with pytest.raises(JobError, match="scoring the labelled rows of its task: no memory") as failed:
        calibrated_by(Calibrator(predictor), request_, VECTOR, ROWS, mix)
    assert (failed.value.code, failed.value.retry) == ("out_of_memory", True)


LONG = tuple(replace(row, prompt=f"{row.prompt} {'and wet ' * 25}") for row in ROWS)


@pytest.fixture
def engine(tiny_model, tokenizer, minilm) -> Engine:
    """Each pass takes one long row."""
    return Engine("tiny", as_base(tiny_model, tokenizer), minilm, token_budget=300)


def flight(
    number: int,
    rows: tuple[LabelledRow, ...] = (),
    *,
    length: int | None = None,
    background: bool = False,
    **fields: Any,
) -> InFlight:
    """A prepared job under the base model alone."""
    choices = None if length else CHOICES
    request = Request("is it wet?", choices, length)
    return InFlight(
        Job(number, 0, "predict", request.prompt, choices, length, background=background),
        decision=Routed(number, Composition(), "none", False, (), Trace()),
        requests=(request,),
        labelled=rows,
        vector=VECTOR,
        **fields,
    )


def ended_in_order(engine: Engine, flights: list[InFlight]) -> list[int]:
    """Answer these jobs; returns their numbers in the order in which they end."""
    for each in flights:
        engine.add(each)
    order: list[int] = []
    while engine:
        order += [each.job.id for each in engine.step()]
    return order


def test_jobs_without_labelled_rows_do_not_wait_until_those_of_others_are_scored(engine: Engine) -> None:
    """A table with long texts and many corrections would otherwise hold up all jobs of a worker for minutes."""
    calibrated, text, choice = flight(1, LONG), flight(2, length=3), flight(3)
    assert ended_in_order(engine, [calibrated, text, choice])[-1] == 1
    assert isinstance(calibrated.result, Prediction)
    assert calibrated.result.label_scores is not None
    assert calibrated.worked_s > choice.worked_s


def test_the_rows_of_several_jobs_are_scored_in_turns(engine: Engine) -> None:
    assert ended_in_order(engine, [flight(1, LONG), flight(2, LONG), flight(3, LONG[:3])]) == [3, 1, 2]


def test_rows_that_only_jobs_in_the_background_need_are_scored_last(engine: Engine) -> None:
    backfill, everyday = flight(1, LONG, background=True), flight(2, LONG[:5])
    assert ended_in_order(engine, [backfill, everyday, flight(3, length=30)]) == [2, 3, 1]
    assert isinstance(backfill.result, Prediction)
    assert backfill.result.label_scores is not None


def test_who_waits_for_rows_that_a_cancelled_job_asked_for_gets_them(engine: Engine) -> None:
    still_wanted = [True]
    cancelled, other = flight(1, LONG, wanted=lambda: still_wanted[0]), flight(2, LONG)
    for each in (cancelled, other):
        engine.add(each)
    engine.step()
    still_wanted[0] = False
    while engine:
        engine.step()
    assert isinstance(cancelled.result, Failure)
    assert cancelled.result.code == "lease_lost"
    assert isinstance(other.result, Prediction)
    assert other.result.label_scores is not None


def of(submitter: str, number: int, choices: int = 3, *, described: bool = False, **fields: Any) -> InFlight:
    """A submitter's prepared job, which takes long to join if its choices are described."""
    made = flight(number, **fields)
    names = tuple(f"{submitter} {number} {choice}" for choice in range(choices))
    job = replace(made.job, submitted_by=submitter, choices=names, descriptions=names if described else None)
    request = replace(made.requests[0], choices=names, submitted_by=submitter)
    return replace(made, job=job, requests=(request,), compared=np.ones(384, np.float32))


@pytest.mark.parametrize("described", [False, True])
def test_jobs_that_take_long_to_join_do_not_hold_up_another_submitters(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, described: bool
) -> None:
    monkeypatch.setattr("loracomp.engine.engine.JOINING_S", 0)
    alices = [of("alice", number, 40, described=described) for number in range(1, 5)]
    for each in alices:
        engine.add(each)
    steps = [engine.step()]
    for each in (of("bob", 8), of("alice", 9)):
        engine.add(each)
    while engine:
        steps.append(engine.step())
    order = [each.job.id for ended in steps for each in ended]
    assert order.index(8) <= 1 < order.index(9)
    assert all(isinstance(each.result, Prediction) for each in alices)


def test_cancelled_jobs_end_before_they_are_described_and_each_step_asks(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a worker would work for minutes in vain, and would be taken for one that hangs."""
    monkeypatch.setattr("loracomp.engine.engine.JOINING_S", 0)
    still_wanted = [True]
    cancelled = [of("alice", each, 1000, described=True, wanted=lambda: still_wanted[0]) for each in range(3)]
    for each in cancelled:
        engine.add(each)
    assert engine.step() == []
    still_wanted[0] = False
    ended = [*engine.step(), *engine.step(), *engine.step()]
    assert ended == cancelled and not engine
    assert all(isinstance(each.result, Failure) and each.result.code == "lease_lost" for each in ended)


def test_jobs_are_not_lost_if_a_step_raises_while_their_rows_are_scored(engine: Engine) -> None:
    undisturbed, disturbed = flight(1, LONG), flight(2, LONG)
    ended_in_order(engine, [undisturbed])
    again = Engine("tiny", engine.base, engine.encoder, token_budget=300)
    again.add(disturbed)
    again.step()
    assert again.clear() == [disturbed]
    assert not again
    ended_in_order(again, [disturbed])
    assert isinstance(undisturbed.result, Prediction)
    assert isinstance(disturbed.result, Prediction)
    assert disturbed.result.choice_scores == pytest.approx(undisturbed.result.choice_scores)
