"""A worker's HTTP endpoint: /metrics for Prometheus, and /ready for orchestrators such as Kubernetes."""

import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from socket import AF_INET, AF_INET6
from threading import Semaphore, Thread
from time import monotonic
from types import TracebackType
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import REGISTRY, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.registry import Collector

from loracomp import metrics
from loracomp.errors import UsageError
from loracomp.worker.logfmt import logfmt

_log = logging.getLogger(__name__)

Problems = Callable[[], Mapping[str, str]]
"""Returns the reasons why a worker can't answer jobs, by check; empty if the worker is ready."""


@dataclass(frozen=True, slots=True)
class _Family:
    """Type, help text and labels of a metric of the database."""

    kind: type[GaugeMetricFamily] | type[CounterMetricFamily]
    help: str
    labels: tuple[str, ...] = ()


_OF_THE_QUEUE = ("base_model", "priority", "background")
DATABASE_METRICS = {
    "loracomp_queue_jobs": _Family(GaugeMetricFamily, "Waiting jobs.", (*_OF_THE_QUEUE, "state")),
    "loracomp_queue_oldest_due_seconds": _Family(
        GaugeMetricFamily, "Seconds that the longest-waiting due job has waited.", _OF_THE_QUEUE
    ),
    "loracomp_running_jobs": _Family(GaugeMetricFamily, "Jobs that workers hold.", ("base_model",)),
    "loracomp_expired_leases": _Family(GaugeMetricFamily, "Running jobs whose lease expired.", ("base_model",)),
    "loracomp_workers": _Family(GaugeMetricFamily, "Workers, alive or gone.", ("base_model", "status")),
    "loracomp_rows_waiting": _Family(
        GaugeMetricFamily, "Estimated rows of declared tables that have no job yet.", ("base_model",)
    ),
    "loracomp_declarations_in_trouble": _Family(
        GaugeMetricFamily, "Declarations without jobs, or that break a promise."
    ),
    "loracomp_jobs_rescued": _Family(CounterMetricFamily, "Jobs queued again after their lease expired."),
    "loracomp_inserts_refused": _Family(CounterMetricFamily, "INSERT statements refused because the queue was full."),
    "loracomp_oldest_snapshot_seconds": _Family(
        GaugeMetricFamily, "Age of the oldest transaction that keeps dead tuples from being removed.", ("kind",)
    ),
    "loracomp_oldest_snapshot_transactions": _Family(
        GaugeMetricFamily, "Transactions since the oldest one that keeps dead rows from being removed.", ("kind",)
    ),
    "loracomp_table_dead_rows": _Family(GaugeMetricFamily, "Dead rows.", ("table",)),
    "loracomp_table_live_rows": _Family(GaugeMetricFamily, "Live rows, as the server estimates.", ("table",)),
    "loracomp_report_age_seconds": _Family(GaugeMetricFamily, "Seconds since the reports were refreshed."),
}
"""The metrics that the SQL function database_metrics returns; they are the same for every worker."""

MOST_CONNECTIONS = 20
SLOWEST_CLIENT_S = 10
"""After which a connection is closed if its client neither sends nor reads anything."""


class DatabaseSample(Collector):
    """Exports the database's metrics as the worker last read them; a scrape does not query the database."""

    def __init__(self) -> None:
        self._rows: list[Mapping[str, Any]] | None = None
        self._at = 0.0

    def update(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Store rows of database_metrics (metric, labels, value)."""
        self._rows, self._at = list(rows), monotonic()

    def clear(self) -> None:
        """Forget the stored metrics when the database does not answer, because old numbers would mislead."""
        self._rows = None

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """The metrics in the form that the Prometheus client needs."""
        rows = self._rows
        yield GaugeMetricFamily(
            "loracomp_database_up", "1 if the database answered the last query.", float(rows is not None)
        )
        if rows is None:
            return
        age = monotonic() - self._at
        yield GaugeMetricFamily("loracomp_database_sample_age_seconds", "Age of the database's metrics.", age)
        for name, family in DATABASE_METRICS.items():
            found = family.kind(name, family.help, labels=family.labels)
            for row in rows:
                if row["metric"] == name:
                    found.add_metric([row["labels"][label] for label in family.labels], row["value"])
            yield found


class Endpoint:
    """Serves /metrics and /ready in its own thread, within a `with` block."""

    def __init__(self, host: str, port: int) -> None:
        """Port 0 means any free port; `port` says which. Raises UsageError if the port can't be opened."""
        self.problems: Problems = lambda: {"model": "the base model and the encoder are loading"}
        self.sample = DatabaseSample()
        self._metrics: Callable[..., Iterable[bytes]] = make_wsgi_app(REGISTRY)
        try:
            self._server = make_server(host, port, self._answer, _Server, _Silent)
        except OSError as error:
            raise UsageError(f"metrics_host {host}, metrics_port {port} cannot be listened on: {error}") from None
        self.port = self._server.server_port
        self._thread = Thread(target=self._server.serve_forever, name="metrics", daemon=True)

    def __enter__(self) -> "Endpoint":
        REGISTRY.register(self.sample)
        metrics.WORKER_READY.set_function(lambda: not self.problems())
        self._thread.start()
        _log.info(logfmt("metrics_served", host=self._server.server_address[0], port=self.port))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        REGISTRY.unregister(self.sample)

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        match environ["PATH_INFO"]:
            case "/metrics":
                return self._metrics(environ, start_response)
            case "/ready":
                problems = self.problems()
                status = "503 Service Unavailable" if problems else "200 OK"
                return _json(start_response, status, {"ready": not problems, "problems": dict(problems)})
        return _json(start_response, "404 Not Found", {"error": "this server has only /metrics and /ready"})


def _json(start_response: Callable[..., Any], status: str, value: object) -> list[bytes]:
    start_response(status, [("Content-Type", "application/json"), ("Cache-Control", "no-store")])
    return [json.dumps(value, ensure_ascii=False).encode()]


class _Server(ThreadingWSGIServer):
    """Closes further connections at once while it serves MOST_CONNECTIONS, because each takes one of the files that the
    worker may open."""

    def __init__(self, address: tuple[str, int], *args: Any) -> None:
        self.address_family = AF_INET6 if ":" in address[0] else AF_INET
        super().__init__(address, *args)
        self._free = Semaphore(MOST_CONNECTIONS)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection and close it."""
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log no client that is too slow or has gone away."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Silent(WSGIRequestHandler):
    timeout = SLOWEST_CLIENT_S

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the parent's name
        """Log nothing, because scrapes come every few seconds."""
