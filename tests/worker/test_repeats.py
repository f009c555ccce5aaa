"""The same prompt costs one pass, also in later jobs; its answers are as if each had been scored."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from job_data import add_jobs, claim
from job_fixtures import cleared_connection, database_of_a_module  # noqa: F401
from loracomp.composition.composer import BASE_ALONE
from loracomp.database.connections import Connection
from loracomp.engine.engine import Engine
from loracomp.engine.predictor import Predictor
from loracomp.errors import JobError
from loracomp.records import Prediction, Request
from loracomp.registry.encoder_change import set_encoder
from loracomp.replay import replay
from loracomp.worker.recorder import record
from model_fixtures import as_base

CHOICES = ("yes", "no", "can not be told")


@pytest.fixture
def engine(connection: Connection, database: str, tiny_model, tokenizer, minilm) -> Engine:
    set_encoder(database, minilm)
    connection.execute("UPDATE loracomp.base_model SET fingerprint = repeat('0', 64)")
    return Engine("tiny", as_base(tiny_model, tokenizer), minilm)


@contextmanager
def counted(model: Any) -> Iterator[list[int]]:
    """The number of rows in each pass of a model in this context."""
    rows: list[int] = []

    def note(_: Any, args: Any, kwargs: Any) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        rows.append(len(ids["input_ids"] if isinstance(ids, dict) else ids))

    hook = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield rows
    finally:
        hook.remove()


def answered(connection: Connection, engine: Engine, *prompts: str, **fields: Any) -> list[Any]:
    """The traces of jobs with these prompts, which are claimed together."""
    ids = [id_ for prompt in prompts for id_ in add_jobs(connection, prompt, **({"choices": list(CHOICES)} | fields))]
    jobs = claim(connection, len(ids))
    assert len(jobs) == len(ids)
    record(connection, engine.run(connection, jobs))
    return [
        connection.execute("SELECT * FROM loracomp.job_trace WHERE job_id = %s", [job_id]).fetchone() for job_id in ids
    ]


def test_a_prompt_is_computed_once(connection: Connection, engine: Engine) -> None:
    with counted(engine.base.model) as passes, counted(engine.encoder.model) as encoded:
        (alone,) = answered(connection, engine, "Is it wet? rain")
        cost, encoder_cost = sum(passes), len(encoded)
        assert cost
        assert encoder_cost
        again = answered(connection, engine, *["Is it wet? rain"] * 5)
        assert (sum(passes), len(encoded)) == (cost, encoder_cost)
        together = answered(connection, engine, *["Is it wet? sand", "Is it wet? rain"] * 3)
        assert sum(passes) == 2 * cost
    for trace in [*again, *together[1::2]]:
        assert trace["output"] == alone["output"]
        assert trace["choice_scores"] == alone["choice_scores"]
        assert trace["prompt_tokens"] == alone["prompt_tokens"]
        assert replay(engine, connection, trace).outcome == "equal"
    assert len({tuple(trace["choice_scores"]) for trace in together[::2]}) == 1
    assert replay(engine, connection, together[0]).outcome == "equal"


@pytest.mark.parametrize(
    "changed",
    [{"submitted_by": "pg_monitor"}, {"choices": list(CHOICES[::-1])}],
    ids=lambda changed: next(iter(changed)),
)
def test_other_requests_are_computed(connection: Connection, engine: Engine, changed: dict[str, Any]) -> None:
    answered(connection, engine, "Is it wet? rain")
    with counted(engine.base.model) as passes:
        answered(connection, engine, "Is it wet? rain", **changed)
    assert passes


def asked(prompt: str = "Is it wet? rain", **fields: Any) -> Request:
    return replace(Request(prompt, CHOICES, None, submitted_by="somebody"), **fields)


@pytest.fixture
def predictor(tiny_model, tokenizer) -> Predictor:
    return Predictor(as_base(tiny_model, tokenizer))


def test_a_repeat_is_scored_if_the_first_request_is_no_longer_wanted(predictor: Predictor) -> None:
    first, repeat = predictor.answer([asked()] * 2, [BASE_ALONE] * 2, wanted=lambda number: number == 1)
    assert isinstance(first, JobError)
    assert first.code == "lease_lost"
    assert isinstance(repeat, Prediction)


def test_a_repeat_may_be_dropped_alone(predictor: Predictor) -> None:
    first, repeat = predictor.answer([asked()] * 2, [BASE_ALONE] * 2, wanted=lambda number: number == 0)
    assert isinstance(first, Prediction)
    assert repeat is not None


def test_a_request_with_a_state_is_not_served_by_one_without(predictor: Predictor, tiny_model) -> None:
    seen: list[Any] = []

    def classify(state: Any) -> tuple[float, ...]:
        seen.append(state)
        return (0.0, 0.0, 5.0)

    predictor.answer([asked()], [BASE_ALONE])
    read = asked(reads_state=True, classifier=classify)
    with counted(tiny_model) as passes:
        first, again = predictor.answer([read, read], [BASE_ALONE] * 2)
        assert sum(passes)
        passes.clear()
        (later,) = predictor.answer([read], [BASE_ALONE])
        assert not passes
    assert len(seen) == 3
    np.testing.assert_array_equal(seen[0], seen[2])
    assert isinstance(first, Prediction)
    assert first.label_scores == (0.0, 0.0, 5.0)
    assert first == again == later


def test_everyday_requests_do_not_wait_for_one_in_the_background(predictor: Predictor) -> None:
    answering = predictor.begin()
    behind = answering.add(asked(), BASE_ALONE, background=True)
    before = answering.add(asked(), BASE_ALONE)
    answering.step()
    assert before.outcome is not None
    while answering:
        answering.step()
    assert behind.outcome == before.outcome


def test_no_text_is_kept_once_all_is_answered(predictor: Predictor) -> None:
    answering = predictor.begin()
    answering.add(asked("Is it wet? rosewater"), BASE_ALONE)
    while answering:
        answering.step()
    assert "rosewater" not in repr(vars(answering))
