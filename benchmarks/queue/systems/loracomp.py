"""loracomp: the real worker with an engine without models, which gives made-up answers with complete traces."""

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import numpy as np
from psycopg.types.json import Jsonb

from loracomp.config import Settings
from loracomp.database import connections as db
from loracomp.database import schema
from loracomp.database.connections import Connection, know_traces
from loracomp.engine.inflight import InFlight
from loracomp.records import Composition, Job, Prediction, Routed, Trace, Versions
from loracomp.worker.worker import Worker
from made_up_engine import MadeUp
from routing_data import ADD_BASE_MODEL

from .command import PROMPT, command

BASE_MODEL = "none"
POLICY = {
    "name": "default", "router": "retrieval", "k": 20, "routing_temperature": 0.1, "routing_top_p": 0.95,
    "max_adapters": 8, "min_similarity": 0.0, "weighting": "similarity",
    "strategy": "cat", "density": 0.5, "choice_normalization": "tokens",
}  # fmt: skip
TASKS = ("piqa", "rte", "commonsense_qa", "winogrande", "hellaswag", "snli", "boolq", "sst2")
VARIANTS = 257
DIGESTS = [sha256(bytes([number % 256, number // 256])).hexdigest() for number in range(VARIANTS + 4)]


TRACES = """
SELECT t AS trace FROM jsonb_array_elements(%s) WITH ORDINALITY AS v (columns, place)
CROSS JOIN LATERAL jsonb_populate_record(NULL::loracomp.route_trace, v.columns) AS t ORDER BY v.place
"""
VERSIONS = Versions("cpu/float32", BASE_MODEL, DIGESTS[0], "all-MiniLM-L6-v2/2", "0.1.0")
TIMINGS = {"encode": 12.3, "route": 4.5, "load": 0.1, "compose": 1.2, "predict": 120.0}


class NoModel(MadeUp):
    """An engine without models. Traces have 20 examples of 8 tasks, 4 of which are composed. All traces of a batch
    differ."""

    def __init__(self) -> None:
        super().__init__()
        random = np.random.default_rng(0)
        self._similarities = (-np.sort(-random.uniform(0.3, 0.9, (VARIANTS, 20)))).tolist()
        self._probabilities = (-np.sort(-random.dirichlet(np.ones(8), VARIANTS))).tolist()
        self._scores = (-random.uniform(1, 9, (VARIANTS, 4))).tolist()
        self._examples = random.integers(1, 100_000, (VARIANTS, 20)).tolist()
        self._orders = [random.permutation(TASKS).tolist() for _ in range(VARIANTS)]
        self._traces: list[Trace] = []

    def prepare(self, connection: Connection, flights: Sequence[InFlight]) -> None:
        """Let the server make the traces in the first call."""
        if not self._traces:
            know_traces(connection)
            made = Jsonb([self.trace_columns(variant) for variant in range(VARIANTS)])
            self._traces = [row["trace"] for row in connection.execute(TRACES, [made], binary=True)]

    def end(self, flight: InFlight) -> None:
        variant = flight.job.id % VARIANTS
        composition = Composition(
            tuple(range(variant, variant + 4)), tuple(DIGESTS[variant : variant + 4]),
            tuple(self._probabilities[variant][:4]),
        )  # fmt: skip
        flight.decision = Routed(flight.job.id, composition, "none", False, (), self._traces[variant])
        flight.result = Prediction(
            output=f"Lisbon {variant}", choice_index=1 + variant % 4, choice_scores=tuple(self._scores[variant]),
            prompt_tokens=30 + variant % 8, output_tokens=4,
        )  # fmt: skip
        flight.composition_digest = composition.digest(DIGESTS[0], [(2.0, [])] * 4)
        flight.timings.update(TIMINGS)
        flight.versions = VERSIONS

    def ended(self, connection: Connection, jobs: Sequence[Job]) -> list[InFlight]:
        """Return these jobs with their results."""
        flights = [InFlight(job, batch_size=len(jobs)) for job in jobs]
        self.prepare(connection, flights)
        for flight in flights:
            self.end(flight)
        return flights

    def trace_columns(self, variant: int) -> dict[str, Any]:
        tasks, probabilities = self._orders[variant], self._probabilities[variant]
        return {
            "policy_settings": POLICY, "example_ids": self._examples[variant], "example_tasks": (tasks * 3)[:20],
            "similarities": self._similarities[variant], "tasks": tasks, "probabilities": probabilities,
            "weights": [*probabilities[:4], 0, 0, 0, 0], "composed_tasks": tasks[:4],
            "adapter_ids": list(range(variant, variant + 4)), "adapter_sha256": DIGESTS[variant : variant + 4],
            "adapter_weights": probabilities[:4],
        }  # fmt: skip


def install(url: str) -> None:
    schema.initialize(url)
    with db.connect(url) as connection:
        connection.execute(ADD_BASE_MODEL, (BASE_MODEL, True))


def insert(url: str, count: int) -> None:
    with db.connect(url, vectors=False) as connection:
        connection.execute("INSERT INTO loracomp.job (prompt) SELECT %s FROM generate_series(1, %s)", (PROMPT, count))


def work(url: str, batch: int) -> None:
    Worker(url, NoModel(), base_model=BASE_MODEL, settings=Settings(batch_size=batch, poll_s=0.01)).run()


if __name__ == "__main__":
    command(install, insert, work)
