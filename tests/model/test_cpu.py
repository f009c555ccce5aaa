"""Threads that compute: work that waits for its turn, by whom it is done and when."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event, get_ident
from time import monotonic, sleep

import pytest

from loracomp.model import cpu
from loracomp.model.cpu import ComputeThread

PATIENCE_S = 60


@pytest.fixture
def other() -> Iterator[ThreadPoolExecutor]:
    """Another thread than the test's, which is the one that lends itself."""
    with ThreadPoolExecutor(1) as executor:
        yield executor


def asking(turns: ComputeThread, other: ThreadPoolExecutor) -> "Future[int]":
    """The thread that works for the other one, which has asked by the time this returns."""
    asked = other.submit(turns.run, get_ident)
    deadline = monotonic() + PATIENCE_S
    while not (turns._waiting or asked.done()):
        assert monotonic() < deadline
        sleep(0.001)
    return asked


def test_the_thread_that_lends_itself_works_for_others_at_the_ends_of_its_steps(other: ThreadPoolExecutor) -> None:
    turns = ComputeThread()
    turns.lend()
    first = asking(turns, other)
    assert not first.done()
    turns.give_turn()
    assert first.result(PATIENCE_S) == get_ident()
    last = asking(turns, other)
    turns.keep()
    assert last.result(PATIENCE_S) == get_ident()


def test_where_none_lends_itself_each_does_its_own_work(other: ThreadPoolExecutor) -> None:
    turns = ComputeThread()
    assert asking(turns, other).result(PATIENCE_S) == other.submit(get_ident).result() != get_ident()
    turns.lend()
    turns.keep()
    assert asking(turns, other).result(PATIENCE_S) != get_ident()


def test_after_a_while_work_goes_on_beside_a_step_that_does_not_end(
    other: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "PATIENCE_S", 0.05)
    turns = ComputeThread()
    turns.lend()
    assert asking(turns, other).result(PATIENCE_S) != get_ident()
    turns.give_turn()
    begun, going_on = Event(), Event()

    def long() -> int:
        begun.set()
        going_on.wait(PATIENCE_S)
        return get_ident()

    monkeypatch.setattr(cpu, "PATIENCE_S", 1)
    asked = other.submit(turns.run, long)
    with ThreadPoolExecutor(1) as third:
        third.submit(lambda: begun.wait(PATIENCE_S) and sleep(1.5)).add_done_callback(lambda _: going_on.set())
        while not begun.is_set():
            turns.give_turn()
        assert asked.result(PATIENCE_S) == get_ident()  # begun, it is not begun again


def test_an_error_is_raised_to_whom_it_belongs(other: ThreadPoolExecutor) -> None:
    turns = ComputeThread()
    turns.lend()
    asked = other.submit(turns.run, lambda: 1 // 0)
    while not asked.done():
        turns.give_turn()
    with pytest.raises(ZeroDivisionError):
        asked.result()


def test_objects_are_frozen_until_the_process_ends() -> None:
    """Otherwise leak checks at the end, such as those of triton's bindings, report each object."""
    program = (
        "import atexit, gc; from loracomp.model import cpu; "
        "atexit.register(lambda: print(gc.get_freeze_count())); cpu.freeze_objects(); print(gc.get_freeze_count() > 0)"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True).split() == ["True", "0"]
