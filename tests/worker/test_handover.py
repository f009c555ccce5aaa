"""The place where claimed batches wait for the model."""

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from loracomp.worker import handover as module
from loracomp.worker.handover import Handover
from loracomp.worker.stages import Batch

BATCH = Batch([], {}, {})


@pytest.fixture
def handover() -> Handover:
    """Of a worker whose model is at work."""
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
        assert handover.offer(BATCH, within_s=60)
        assert taken.result(60) is BATCH


def test_one_that_is_late_is_waited_for_once(handover: Handover) -> None:
    handover.expect()
    assert handover.take() is None
    assert handover.take() is None
    with ThreadPoolExecutor(1) as pool:
        offered = pool.submit(handover.offer, BATCH, 60)
        while (taken := handover.take()) is None:
            pass
        assert taken is BATCH
        assert offered.result(60)


def test_an_idle_model_takes_what_it_prepares_itself(handover: Handover, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAITING", 1e9)
    handover.free()
    handover.expect()
    assert handover.take() is None  # at once
