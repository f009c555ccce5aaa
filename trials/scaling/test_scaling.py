"""The rules by which `make scaling` starts and stops workers are KEDA's, with what deploy/kubernetes sets."""

from autoscaler import Autoscaler


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
