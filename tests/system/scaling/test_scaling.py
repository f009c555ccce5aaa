"""The rules by which `make scaling` starts and stops workers are KEDA's, with what deploy/kubernetes sets.

And what its workers answer is what `worker_demand` measures.
"""

import pytest
from psycopg.types.json import Jsonb

from autoscaler import Autoscaler
from loracomp.database.connections import Connection
from loracomp.engine.inflight import InFlight
from loracomp.records import Job, Prediction
from sleeper import JOB_S, STEP_S, TEXT_STEPS, Sleeper


def follow(scaler: Autoscaler, demands: list[int]) -> list[int]:
    """The number of workers after each look."""
    current, numbers = 0, []
    for look, demand in enumerate(demands):
        current = scaler.replicas(look * scaler.poll_s, current, demand)
        numbers.append(current)
    return numbers


def test_the_first_worker_is_kedas_and_more_follow_at_once() -> None:
    assert follow(Autoscaler(), [0, 3, 3, 7, 100]) == [0, 1, 3, 7, 8]


def test_what_was_asked_for_within_two_minutes_stays() -> None:
    assert follow(Autoscaler(), [4, 4, *[1] * 9]) == [1, 4, *[4] * 7, 1, 1]
    assert follow(Autoscaler(), [4, 4, *[1, 2] * 4, 1, 1]) == [1, 4, *[4] * 7, 2, 2, 2]


def test_the_last_one_stays_for_five_minutes() -> None:
    assert follow(Autoscaler(), [1, *[0] * 20]) == [*[1] * 20, 0]


def test_an_answer_says_how_long_the_model_slept_for_it(connection: Connection) -> None:
    engine = Sleeper()
    flights = [
        InFlight(Job(number, 0, "predict", "a", choices, None)) for number, choices in enumerate([("a", "b"), None])
    ]
    engine.prepare(connection, flights)
    for flight in flights:
        engine.add(flight)
    ended = [flight for _ in range(TEXT_STEPS) for flight in engine.step()]
    both = STEP_S / 2 + JOB_S
    for flight, slept in zip(ended, (both, both + (TEXT_STEPS - 1) * (STEP_S + JOB_S)), strict=True):
        assert isinstance(flight.result, Prediction)
        query = "SELECT loracomp.compute_seconds(%s) AS seconds"
        (row,) = connection.execute(query, [Jsonb(dict(flight.timings))])
        assert row["seconds"] == pytest.approx(slept, rel=0.2)
