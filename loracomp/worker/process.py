"""A worker as a process: signals, the grace time, exit codes."""

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
from loracomp.worker.loop import Worker

_log = logging.getLogger(__name__)


def serve(worker: Worker, grace_s: float) -> int:
    """Run a worker until it is drained or told to stop, and return the process's exit code.

    SIGTERM or SIGINT: nothing more is claimed; what runs is finished, or released when `grace_s` seconds are almost
    over. A second signal releases at once. 0: drained or stopped, nothing left running. 128 + number: a second signal.
    3: the database was away, so that leases must run out by themselves. 8: the device hangs, and each thread's place is
    on standard error. Ends the process itself where a batch still runs. Raises what the worker raised.
    """
    signals: queue.SimpleQueue[int] = queue.SimpleQueue()
    errors: list[BaseException] = []
    # Not the main thread: that one must hear signals while a model computes.
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
            _log.error(logfmt("hangs", error="the model does not come back from jobs whose leases all ended"))
            faulthandler.dump_traceback()
            _leave(worker, DeviceHungError.exit_code)
        thread.join()
    if errors:
        raise errors[0]
    return 0


def leaves_after_s(grace_s: float) -> float:
    """Seconds until a stopping worker gives up what runs; a tenth of the time, at most 2 s, is left to give it back."""
    return grace_s - min(2.0, 0.1 * grace_s)


def _run_and_keep_error(worker: Worker, errors: list[BaseException]) -> None:
    try:
        worker.run()
    except BaseException as error:
        errors.append(error)


def _next_signal(
    thread: Thread, signals: "queue.SimpleQueue[int]", seconds: float, give_up: Callable[[], bool] = lambda: False
) -> int | None:
    """The next signal; None where the thread ends, the time is over or `give_up` says so before one comes."""
    deadline = monotonic() + seconds
    while thread.is_alive() and monotonic() < deadline and not give_up():
        with suppress(queue.Empty):
            return signals.get(timeout=0.1)
    return None


@contextmanager
def _handling(signals: "queue.SimpleQueue[int]") -> Iterator[None]:
    """Put SIGTERM and SIGINT into the queue until the block ends."""

    def note(number: int, _frame: FrameType | None) -> None:
        signals.put(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(worker: Worker, code: int) -> NoReturn:
    """Release what runs and end the process under the model's feet."""
    if not worker.release():
        code = DatabaseUnavailableError.exit_code
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)
