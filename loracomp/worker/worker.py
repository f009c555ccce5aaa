"""A worker: claims jobs, lets a model answer them, and records the answers, in several threads.

While the model answers some jobs (`loop.py`), others are claimed and prepared (`claimer.py`) and join them between two
steps of the model; jobs that have ended are recorded (`recorder.py`). Three more threads are independent of these: the
heartbeat (`heartbeat.py`), the keeper (`keeper.py`) and the thread that embeds examples (`embedder.py`). There are five
connections: one to claim, one to record, and one for each of these three. If the worker dies, its leases expire and its
jobs are queued again.
"""

import logging
from contextlib import ExitStack, suppress
from threading import Event
from time import monotonic, perf_counter

import psycopg

from loracomp import __version__, metrics
from loracomp.config import Settings
from loracomp.database.connections import Connection
from loracomp.errors import LoracompError
from loracomp.worker.claimer import Claimer
from loracomp.worker.embedder import Embedder
from loracomp.worker.endpoint import DatabaseSample
from loracomp.worker.handover import Handover
from loracomp.worker.heartbeat import Heartbeat
from loracomp.worker.keeper import Keeper
from loracomp.worker.leases import Leases, note_released, release_jobs, what_waits
from loracomp.worker.link import Link
from loracomp.worker.logfmt import logfmt
from loracomp.worker.loop import ModelLoop
from loracomp.worker.presence import Presence
from loracomp.worker.recorder import Recorder
from loracomp.worker.stages import EngineInterface
from loracomp.worker.steps import REST_AT_MOST_S

_log = logging.getLogger(__name__)

LOCKED_S = REST_AT_MOST_S + 5
"""If there has been no work for this many seconds, a worker that drains ends although jobs are still due, because
another session keeps them locked: each step of the keeper was called meanwhile."""


class Worker:
    """Claims jobs of one base model, answers them with an engine and records the results, until stopped or drained."""

    def __init__(
        self,
        url: str,
        engine: EngineInterface,
        *,
        base_model: str,
        settings: Settings,
        device: str = "cpu",
        drain: bool = False,
        sample: DatabaseSample | None = None,
    ) -> None:
        """With `drain`, `run` returns when no job is due and none waits for a retry. `device` is only shown in reports.

        `sample` receives the metrics of the database.
        """
        self._base_model = base_model
        self._settings = settings
        self._drain = drain
        self._listens = settings.listen and not drain
        self._began = perf_counter()
        self._idle_since = monotonic()
        self._stopping = Event()
        name, lease_s = settings.worker_name, settings.lease_s
        self._leases = Leases(lease_s)
        handover = self._handover = Handover(self._stopping)
        self._claiming, self._recording = self._link(url, "worker"), self._link(url, "recorder")
        self._claimer = Claimer(
            self._claiming,
            engine,
            self._leases,
            handover,
            base_model=base_model,
            settings=settings,
            stopping=self._stopping,
            is_drained=self._is_drained,
            stop=self.stop,
        )
        self._recorder = Recorder(self._recording, self._leases, let_go=self._go_on, stop=self.stop)
        self._loop = ModelLoop(engine, self._leases, handover, self._claimer, self._recorder)
        self._keeper = Keeper(
            self._link(url, "keeper"),
            worker=name,
            poll_s=settings.poll_s,
            lease_s=lease_s,
            changed=self._claimer.wake.set,
        )
        self._embedder = Embedder(
            self._link(url, "embedder"),
            poll_s=settings.poll_s,
            embed=engine.embed,
            busy=lambda: bool(self._leases.held),
        )
        identity = {"name": name, "base_model": base_model, "device": device}
        self._presence = Presence(identity, self._activity, lease_s, sample)
        notified = {"loracomp_job": self._claimer.wake, "loracomp_keep": self._keeper.notified}
        self._heartbeat = Heartbeat(
            self._link(url, "heartbeat", vectors=False),
            self._leases,
            self._presence,
            lease_s=lease_s,
            notified=notified if self._listens else {},
        )
        metrics.WORKER_INFO.labels(name, base_model, device, __version__).set(1)
        metrics.JOBS_IN_HAND.set_function(lambda: len(self._leases.held))

    def _link(self, url: str, of: str, *, vectors: bool = True) -> Link:
        settings = self._settings
        application_name = f"loracomp {of} {settings.worker_name}"
        return Link(url, application_name, self._stopping, settings.statement_timeout_s, vectors=vectors)

    def run(self) -> None:
        """Work until `stop` is called or, with `drain`, no job is left."""
        _log.info(logfmt("started", worker=self._settings.worker_name, base_model=self._base_model))
        with ExitStack() as stack:
            stack.callback(self._claiming.close)
            stack.callback(self._recording.close)
            stack.callback(self._claimer.release_lost)
            stack.enter_context(self._heartbeat)
            # After an error of the worker or Ctrl-C, give back the jobs still held, without counting the attempt.
            stack.callback(self.release)
            stack.enter_context(self._keeper)
            stack.enter_context(self._embedder)
            stack.enter_context(self._recorder)
            stack.callback(self.stop)
            self._loop.run()
        _log.info(logfmt("stopped", worker=self._settings.worker_name))

    def _go_on(self) -> None:
        """After jobs have been recorded, there is room for others; and a keeper that doesn't listen must be told that
        rows of declarations may have an answer."""
        self._claimer.wake.set()
        if not self._listens:
            self._keeper.notified.set()

    def _is_drained(self, connection: Connection) -> bool:
        """Whether the worker should end, because nothing is left to answer.

        Jobs and rows of declarations may stay locked by somebody for ever, so the worker waits only some time for them.
        """
        if not self._drain:
            return False
        ends_soon, others_wait = what_waits(connection, self._base_model)
        if ends_soon or not (self._keeper.is_idle and self._embedder.is_idle):
            self._idle_since = monotonic()
            return False
        return not others_wait or monotonic() - max(self._idle_since, self._leases.let_go_at) > LOCKED_S

    def stop(self) -> None:
        """Claim no more jobs, and give back jobs that the model has not started. `run` returns after recording."""
        self._stopping.set()
        self._claimer.wake.set()
        self._handover.stop()
        self._keeper.stop()
        self._embedder.stop()
        self._heartbeat.report_soon()

    def release(self) -> bool:
        """Give all held jobs back to the queue at once, without counting the attempt; later results are not recorded.

        If the worker was told to stop, it then reports that it has stopped.

        Returns False if the database can't be reached; then the leases expire by themselves.
        """
        # The others are left to rescue_jobs.
        if not (held := [job for job in self._leases.held if self._leases.still_leased(job)]):
            return True
        self._leases.mark_ending(held)
        try:
            released = self._heartbeat.run(
                lambda connection: release_jobs(connection, held), within_s=self._settings.statement_timeout_s
            )
        except (psycopg.Error, LoracompError, TimeoutError) as error:
            _log.error(logfmt("not_released", jobs=[job.id for job in held], error=error))
            return False
        note_released(released)
        if self._stopping.is_set():  # a worker that hangs was not told to stop, so that worker_status shows it as gone
            with suppress(psycopg.Error, LoracompError, TimeoutError):
                self._heartbeat.run(lambda connection: self._presence.report(connection, stopped=True), within_s=1)
        return True

    def hangs(self) -> bool:
        """Whether the device is presumed hung, because the model has ended no forward pass for ten times `hang_s`
        seconds, or for `hang_s` seconds although all leases have been lost.

        Time in which the worker waits for the database between two steps does not count, for example while a lock keeps
        jobs from being routed. Call this several times a second.
        """
        if not self._loop.is_in_a_step and (self._claiming.waits or self._recording.waits):
            self._leases.go_on()
        hang_s = self._settings.hang_s
        in_a_pass_s = self._leases.silent_s() if self._loop.is_in_a_step else 0.0
        return self._leases.stalled_s() >= hang_s or in_a_pass_s >= 10 * hang_s

    def forsake(self) -> None:
        """Leave all held jobs to rescue_jobs, because one of them may be the reason why the worker hangs."""
        self._leases.forsake(self._leases.held)

    def problems(self) -> dict[str, str]:
        """Reasons why the worker can't answer jobs, by check (database, schema, claims); empty if it is ready."""
        found = dict(self._presence.problems)
        since = perf_counter() - (self._claimer.looked_at or self._began)
        # A worker without room for more jobs does not ask for any, but its jobs time out at some time.
        longest = max((job.timeout_s for job in self._leases.held), default=0.0)
        if self._stopping.is_set():
            found["claims"] = "the worker is stopping"
        elif since > 2 * self._settings.lease_s + self._settings.poll_s + longest:
            found["claims"] = f"the worker has not asked for jobs for {since:.0f} s"
        return found

    def _activity(self) -> dict[str, object]:
        """The worker's current status for its report."""
        doing = "stopping" if self._stopping.is_set() else "busy" if self._leases.held else "idle"
        looked_s = None if self._claimer.looked_at is None else perf_counter() - self._claimer.looked_at
        return {"status": doing, "looked_s": looked_s}
