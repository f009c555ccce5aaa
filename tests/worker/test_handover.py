"""The place where claimed jobs wait for the model."""

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from loracomp.engine.inflight import InFlight
from loracomp.records import Job
from loracomp.worker import handover as module
from loracomp.worker.handover import Handover

CLAIMED = [InFlight(Job(1, 1, "predict", "a", None, 1))]


@pytest.fixture
def handover() -> Handover:
    """A handover of a worker whose model is busy."""
    made = Handover(Event())
    made.busy()
    return made


def test_a_batch_that_is_expected_joins_before_the_next_step(
    handover: Handover, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WAITING", 1e9)
    handover.expect()
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(handover.take)
        assert handover.offer(CLAIMED, within_s=60)
        assert taken.result(60) is CLAIMED


def test_one_that_is_late_is_waited_for_once(handover: Handover) -> None:
    handover.expect()
    assert not handover.take()
    assert not handover.take()
    with ThreadPoolExecutor(1) as pool:
        offered = pool.submit(handover.offer, CLAIMED, 60)
        while not (taken := handover.take()):
            pass
        assert taken is CLAIMED
        assert offered.result(60)


def test_an_idle_model_takes_what_it_prepares_itself(handover: Handover, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAITING", 1e9)
    handover.free()
    handover.expect()
    assert not handover.take()  # at once
