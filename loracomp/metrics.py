"""Prometheus metrics of a worker process, for its /metrics endpoint and for the table worker_status.

Dashboards and alerts depend on the names and labels: docs/operations.md lists them, and a test compares the two.
"""

from collections.abc import Sequence

from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics

from loracomp.records import Failure, Job, Prediction

disable_created_metrics()  # type: ignore[no-untyped-call]  # otherwise each counter has a second series, *_created

WORKER_INFO = Gauge(
    "loracomp_worker_info",
    "Always 1; the labels say which worker it is.",
    ("worker", "base_model", "device", "version"),
)
WORKER_READY = Gauge("loracomp_worker_ready", "1 if /ready answers 200.")
CLAIMS = Counter("loracomp_claims", "Claims that returned jobs.")
JOBS_CLAIMED = Counter("loracomp_jobs_claimed", "Jobs taken.")
JOBS_RETRIED = Counter("loracomp_jobs_retried", "Jobs claimed for a second or later attempt.")
JOBS_SUCCEEDED = Counter("loracomp_jobs_succeeded", "Jobs answered and recorded.")
JOBS_FAILED = Counter(
    "loracomp_jobs_failed",
    "Failures recorded; the label retry says whether another attempt may help.",
    ("reason", "retry"),
)
JOBS_RELEASED = Counter("loracomp_jobs_released", "Jobs given back without counting the attempt.")
RESULTS_DROPPED = Counter(
    "loracomp_results_dropped",
    "Results that were not recorded, because the lease was lost, or because an earlier call whose reply was lost "
    "had recorded them.",
)
LEASES_LOST = Counter("loracomp_leases_lost", "Leases that could not be renewed.")
JOBS_IN_HAND = Gauge("loracomp_jobs_in_hand", "Jobs that are claimed and not yet recorded or given back.")
LAST_LOOK = Gauge("loracomp_last_look_timestamp_seconds", "When the claim loop last asked the database for jobs.")
DATABASE_AWAY = Counter("loracomp_database_away", "Statements repeated because the database was unreachable.")
BATCH_JOBS = Histogram("loracomp_batch_jobs", "Jobs in a batch.", buckets=[2**power for power in range(11)])
STEP_SECONDS = Histogram(
    "loracomp_step_seconds",
    "Seconds of each step. Jobs that went through the same steps together since their claim are counted once.",
    ("step",),
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100),
)
TOKENS = Counter("loracomp_tokens", "Tokens of answered jobs.", ("kind",))
CACHE_REQUESTS = Counter("loracomp_cache_requests", "Lookups in device memory: hit or miss.", ("cache", "result"))
CACHE_BYTES = Gauge("loracomp_cache_bytes", "Bytes that a cache holds in device memory.", ("cache",))
CACHE_BUDGET = Gauge("loracomp_cache_budget_bytes", "Maximum number of bytes that a cache may hold.", ("cache",))


def count_claim(jobs: Sequence[Job]) -> None:
    """Count a claim that returned jobs."""
    CLAIMS.inc()
    JOBS_CLAIMED.inc(len(jobs))
    JOBS_RETRIED.inc(sum(job.attempts > 1 for job in jobs))
    BATCH_JOBS.observe(len(jobs))


def count_recorded(results: Sequence[object]) -> None:
    """Count results that were recorded."""
    JOBS_SUCCEEDED.inc(len(results))
    predictions = [each for each in results if isinstance(each, Prediction)]
    TOKENS.labels("prompt").inc(sum(each.prompt_tokens for each in predictions))
    TOKENS.labels("output").inc(sum(each.output_tokens for each in predictions))


def count_failure(failure: Failure) -> None:
    """Count a failure that was recorded."""
    JOBS_FAILED.labels(failure.code, str(failure.retry).lower()).inc()


def totals() -> dict[str, int]:
    """The counters that a worker reports to the view worker_status."""
    return {
        "claimed": _total(JOBS_CLAIMED),
        "succeeded": _total(JOBS_SUCCEEDED),
        "failed": _total(JOBS_FAILED),
        "released": _total(JOBS_RELEASED),
        "dropped": _total(RESULTS_DROPPED),
    }


def _total(counter: Counter) -> int:
    samples = (sample for metric in counter.collect() for sample in metric.samples)
    return int(sum(sample.value for sample in samples if sample.name.endswith("_total")))
