"""Settings that make a CPU faster: threads, memory, sizes of forward passes. A GPU needs none of them.

What each does, and what it is worth:

wait_briefly         torch's threads spin for some hundred microseconds before they sleep. One job takes 85 ms; without
                     spinning 130 ms, because each operation wakes threads. libgomp's default spins a hundred times
                     longer, which makes a pass up to 8 times slower beside other busy programs (here: up to 2 times).
ComputeThread        one thread computes for all threads. torch keeps helper threads for every thread that has computed;
                     if there are more of them than processors they wait for each other, and two threads that compute at
                     the same time take longer than one thread that does both.
in_a_passing_thread  models are loaded in a temporary thread, and its helper threads end with it: a job's pass takes
                     95 ms instead of 139 ms.
keep_freed_memory    glibc keeps the memory that one pass frees for the next pass. If it gave that back to the system,
                     each 4 kB would cost a page fault in every pass.
collection_paused    no garbage is collected while modules are imported and models are loaded: there is hardly any.
freeze_objects       the half million objects of modules and models are excluded from garbage collection: a full
                     collection takes 0.3 s, in the middle of a batch. Until the process ends: triton's types would be
                     reported as leaked.
PASS_TOKENS          fixed cost of a scoring pass (about 50 ms), given in tokens: questions are split over one more pass
                     if that saves more tokens of padding than this. Generation, with its many passes, does not use it.
ROW_TOKENS           choices of a short prompt share one row of up to this many tokens: attention is cheap up to it. It
                     holds on a GPU too, where it was not measured.
TEXTS_TOGETHER       number of texts that the encoder embeds at once, sorted by length: small batches cost less than the
                     padding of large ones.
GATHERED             fixed cost of giving a row a copy of an adapter's factors, in tokens that the same time would
                     compute. (A product with a row's own factors first copies them into another layout.) Measured with
                     bfloat16 instructions.
"""

import atexit
import ctypes
import gc
import os
import platform
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Generic, TypeVar

T = TypeVar("T")

PASS_TOKENS = 64
ROW_TOKENS = 512
TEXTS_TOGETHER = 8
GATHERED = 28

PATIENCE_S = 10.0
"""Seconds that work waits for the computing thread; after that it runs in the thread that asked for it."""

SPINS = "3000"
"""Spin rounds of a waiting thread; together they take some hundred microseconds."""

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""Parameters of mallopt, from glibc's malloc.h."""


def wait_briefly() -> None:
    """Make torch's threads spin briefly before they sleep, unless OMP_WAIT_POLICY is set. Call before torch loads."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the process instead of returning it to the system."""
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, nbytes in ((M_MMAP_THRESHOLD, 1 << 30), (M_TRIM_THRESHOLD, 1 << 30), (M_TOP_PAD, 64 << 20)):
            mallopt(parameter, nbytes)


def in_a_passing_thread(compute: Callable[[], T]) -> T:
    """Run `compute` in a new thread that ends afterwards, and return its result."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(compute).result()


@contextmanager
def collection_paused() -> Iterator[None]:
    """Within this context no garbage is collected."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def freeze_objects() -> None:
    """Exclude all objects that exist now from garbage collection, and the garbage too: 1 % of them after imports."""
    gc.freeze()
    atexit.register(gc.unfreeze)


class ComputeThread:
    """Lets one thread compute for all: other threads hand it their work, which it does between its own steps."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._lending = False
        self._waiting: deque[_Work[Any]] = deque()

    def run(self, compute: Callable[[], T]) -> T:
        """Run `compute` in the thread that has called `lend`, and return its result.

        If no thread has, or if that thread does not start within PATIENCE_S, the calling thread runs `compute`.
        """
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

    def lend(self) -> None:
        """From now on `give_turn`, in the calling thread, runs the work that other threads hand over."""
        with self._lock:
            self._lending = True

    def keep(self) -> None:
        """From now on other threads do their own work; do the work that they have already handed over."""
        with self._lock:
            self._lending = False
        self.give_turn()

    def give_turn(self) -> None:
        """Run all work that is waiting. Call it often, from the thread that has called `lend`."""
        while self._waiting:
            self._waiting.popleft().do()


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
