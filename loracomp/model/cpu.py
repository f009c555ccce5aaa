"""What tunes a CPU: threads, memory, sizes of passes. A GPU needs none of it.

What each is worth:

wait_briefly         torch's threads spin for some hundred microseconds before they sleep. A job alone takes 85 ms; with
                     no spinning 130 ms, for every operation wakes threads. libgomp's own limit, a hundred times as
                     long, makes a pass up to 8 times as slow beside other busy programs; this one, up to twice.
ComputeThread        one thread computes for all. torch keeps helper threads for every thread that has computed; where
                     they outnumber the processors they wait for each other, and two threads that compute at the same
                     time take longer than one that does the work of both.
in_a_passing_thread  models are loaded in a thread that ends, whose helpers end with it: a job's pass takes 95 ms
                     instead of 139 ms.
keep_freed_memory    glibc keeps what one pass frees for the next: given back to the system, each 4 kB of it would cost
                     a page fault every time.
freeze_objects       the half million objects of modules and models stay out of garbage collection: a full one takes 0.3
                     s, in the middle of a batch.
PASS_TOKENS          questions are scored in one pass more where that saves so many tokens of padding: beginning and
                     ending a pass takes some 50 ms. Generation, with its many passes, does without.
ROW_TOKENS           the choices of a short prompt share rows of up to so many tokens: attention is cheap until then.
TEXTS_TOGETHER       the encoder embeds so many texts at once, sorted by length: small batches cost less than the
                     padding of large ones.
GATHERED, SUMMED     what a row pays for factors of its own, whatever its length, in tokens that its products could take
                     as well: for each of its adapters, gathered; or once, summed up from several in float32. A product
                     with a row's own factors first copies them into another layout. Measured with bfloat16 instructions
                     by `python -m benchmarks.engine --only ways`.
EAGER_TOKENS         training rows up to this length attend eagerly: twice as fast as SDPA, whose memory does not grow
                     as the square. Forward and backward of one layer in ms, eager against SDPA: 16 rows of 60 tokens
                     6.6 and 12.1; 16 of 120, 20 and 30; 8 of 240, 34 and 31; 4 of 480, 65 and 53.
"""

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
from time import perf_counter
from typing import Any, Generic, TypeVar

T = TypeVar("T")

PASS_TOKENS = 64
ROW_TOKENS = 512
TEXTS_TOGETHER = 8
GATHERED, SUMMED = 28, 80
EAGER_TOKENS = 192

PATIENCE_S = 10.0
"""How long work waits for the thread that computes; then it goes on in its own thread, at the same time."""

SPINS = "3000"
"""Rounds, of some hundred microseconds in all."""

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""Names of glibc's malloc.h."""


def wait_briefly() -> None:
    """Let torch's threads spin a little before they sleep, unless the environment says more; for before torch loads."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the process."""
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, nbytes in ((M_MMAP_THRESHOLD, 1 << 30), (M_TRIM_THRESHOLD, 1 << 30), (M_TOP_PAD, 64 << 20)):
            mallopt(parameter, nbytes)


def in_a_passing_thread(compute: Callable[[], T]) -> T:
    """What `compute` returns, by a thread that ends then."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(compute).result()


def freeze_objects() -> None:
    """Keep every object that there is now out of garbage collection."""
    gc.collect()
    gc.freeze()


class ComputeThread:
    """Lets one thread compute for all: others hand their work to it, and it does that between its own steps."""

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
