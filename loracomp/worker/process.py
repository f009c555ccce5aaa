"""Runs a worker as a process: handles signals, the grace time and exit codes."""

import faulthandler
import logging
import os
import queue
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from time import monotonic
from types import FrameType
from typing import NoReturn

from loracomp.errors import DatabaseUnavailableError, DeviceHungError
from loracomp.worker.logfmt import logfmt
from loracomp.worker.worker import Worker

_log = logging.getLogger(__name__)


def serve(worker: Worker, grace_s: float) -> int:
    """Run a worker until it is drained or told to stop, and return the process's exit code.

    After SIGTERM or SIGINT no more jobs are claimed; running jobs are finished, or given back shortly before `grace_s`
    seconds are over. A second signal gives them back at once.

    Exit codes: 0: drained or stopped, and no job is running. 128 + signal number: a second signal. 3: the database
    could not be reached, so the leases must expire by themselves. 8: the device is presumed hung; the stack of each
    thread is printed on standard error. If a batch is still running at the end, this function ends the process itself.
    Raises what the worker raised.
    """
    signals: queue.SimpleQueue[int] = queue.SimpleQueue()
    errors: list[BaseException] = []
    # Run the worker in another thread, because the main thread must receive signals while a model computes.
    thread = Thread(target=_run_and_keep_error, args=(worker, errors), name="worker", daemon=True)
    with _handling(signals):
        thread.start()
        if (first := _next_signal(thread, signals, float("inf"), worker.hangs)) is not None:
            _log.info(logfmt("stopping", signal=signal.Signals(first).name, grace_s=grace_s))
            worker.stop()
            second = _next_signal(thread, signals, leaves_after_s(grace_s))
            if thread.is_alive():
                _leave(worker, 0 if second is None else 128 + second)
        elif thread.is_alive():
            _log.error(logfmt("hangs", error="the model does not return"))
            faulthandler.dump_traceback()
            worker.forsake()
            _leave(worker, DeviceHungError.exit_code)
        thread.join()
    if errors:
        raise errors[0]
    return 0


def leaves_after_s(grace_s: float) -> float:
    """Seconds for which a stopping worker goes on with its jobs. The last tenth of the grace time, at most 2 s, is for
    giving unfinished jobs back."""
    return grace_s - min(2.0, 0.1 * grace_s)


def _run_and_keep_error(worker: Worker, errors: list[BaseException]) -> None:
    try:
        worker.run()
    except BaseException as error:
        errors.append(error)


def _next_signal(
    thread: Thread, signals: "queue.SimpleQueue[int]", seconds: float, give_up: Callable[[], bool] = lambda: False
) -> int | None:
    """Wait for a signal and return its number, or None if the thread ends, the time is over or `give_up()` is true."""
    deadline = monotonic() + seconds
    while thread.is_alive() and monotonic() < deadline and not give_up():
        with suppress(queue.Empty):
            return signals.get(timeout=0.1)
    return None


@contextmanager
def _handling(signals: "queue.SimpleQueue[int]") -> Iterator[None]:
    """Within this context, SIGTERM and SIGINT only put their signal number into the queue."""

    def note(number: int, _frame: FrameType | None) -> None:
        signals.put(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(worker: Worker, code: int) -> NoReturn:
    """Give running jobs back and end the process at once, while the model may still be computing."""
    if not worker.release():
        code = DatabaseUnavailableError.exit_code
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)
