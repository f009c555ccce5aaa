"""How threads that compute get on with one another."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from time import perf_counter
from typing import Any, Generic, TypeVar

T = TypeVar("T")

PATIENCE_S = 10.0
"""How long work waits for its turn; then it goes on beside the step that takes so long."""

SPINS = "3000"
"""Some hundred microseconds. Without any, operations wake a helper each: a lone job takes 130 ms instead of 85.
With libgomp's own 300,000, beside other busy programs a pass takes up to eight times as long; so, up to twice."""


def wait_briefly() -> None:
    """Let them spin a little before they sleep, unless the environment says more; to be called before torch loads."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


class Turns:
    """Lets a thread that computes do others' work too, at the ends of its steps.

    Each thread that has computed has helpers of torch's. Where all of these are more than the processors, they sleep
    between operations and wait for each other within them: both threads' work takes longer than one after the other.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._lending = False
        self._waiting: deque[_Work[Any]] = deque()
        self._lent_s = 0.0

    def run(self, compute: Callable[[], T]) -> T:
        """What `compute` returns, by the thread that lends itself; by this one where none does, or not soon enough."""
        work = _Work(compute)
        with self._lock:
            if lending := self._lending:
                self._waiting.append(work)
        if not lending:
            return compute()
        try:
            return work.done.result(PATIENCE_S)
        except TimeoutError:
            return compute() if work.done.cancel() else work.done.result()

    @contextmanager
    def lend(self) -> Iterator[Callable[[], float]]:
        """Lend this thread: `give_turn` runs what waits. Gives what tells for how many seconds it worked for others."""
        self._lent_s = 0.0
        with self._lock:
            self._lending = True
        try:
            yield lambda: self._lent_s
        finally:
            with self._lock:
                self._lending = False
            self.give_turn()

    def give_turn(self) -> None:
        """Do the work that waits; to be called by the thread that lends itself."""
        started = perf_counter()
        while self._waiting:
            self._waiting.popleft().do()
        self._lent_s += perf_counter() - started


@dataclass(frozen=True, slots=True, eq=False)
class _Work(Generic[T]):
    compute: Callable[[], T]
    done: Future[T] = field(default_factory=Future)

    def do(self) -> None:
        if not self.done.set_running_or_notify_cancel():
            return
        try:
            self.done.set_result(self.compute())
        except BaseException as error:
            self.done.set_exception(error)
            if not isinstance(error, Exception):
                raise
