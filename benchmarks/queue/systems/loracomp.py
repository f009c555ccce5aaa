"""Ours: the worker as it is, with a pipeline that answers nothing and writes all."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from loracomp import db, schema
from loracomp.config import Settings
from loracomp.db import Connection
from loracomp.pipeline import _route_columns
from loracomp.records import Composition, Job, Route
from loracomp.tables import DIMENSIONS
from loracomp.worker import Worker

sys.path.append(str(Path(__file__).parents[3] / "tests"))
from routing_data import ADD_BASE_MODEL

from .command import PROMPT, command

BASE_MODEL = "none"
POLICY = {
    "name": "default", "router": "retrieval", "k": 20, "temperature": 0.1, "aggregation": "softmax_sum",
    "nucleus": "tasks", "top_p": 0.95, "max_adapters": 8, "min_similarity": 0.0, "weighting": "similarity",
    "strategy": "cat", "density": 0.5, "seed": 0, "choice_normalization": "tokens", "rescale": False,
}  # fmt: skip


class NoModel:
    """The trace of a job with 20 examples of 8 tasks, 4 of them composed."""

    def __init__(self) -> None:
        random = np.random.default_rng(0)
        vector = random.normal(size=DIMENSIONS)
        self._vector = (vector / np.linalg.norm(vector)).astype(np.float32)
        self._similarities = tuple(np.sort(random.uniform(0.3, 0.9, 20))[::-1].tolist())
        self._probabilities = tuple(np.sort(random.dirichlet(np.ones(8)))[::-1].tolist())

    def prepare(self, connection: Connection, jobs: Sequence[Job]) -> Sequence[Job]:
        return jobs

    def answer(self, prepared: Sequence[Job], wanted: Callable[[Job], bool] = lambda _: True) -> list[dict[str, Any]]:
        return [self._row(job, len(prepared)) for job in prepared]

    def _row(self, job: Job, together: int) -> dict[str, Any]:
        tasks = ("piqa", "rte", "commonsense_qa", "winogrande", "hellaswag", "snli", "boolq", "sst2")
        weights = self._probabilities[:4]
        routed = Route(
            job_id=job.id, policy=POLICY, example_ids=tuple(range(job.id, job.id + 20)), example_tasks=(tasks * 3)[:20],
            similarities=self._similarities, tasks=tasks, probabilities=self._probabilities,
            weights=(*weights, 0.0, 0.0, 0.0, 0.0), composed_tasks=tasks[:4],
            composition=Composition((1, 2, 3, 4), tuple(f"{n:064x}" for n in range(4)), weights),
        )  # fmt: skip
        return {
            "job_id": job.id, "output": "Lisbon", "choice_index": 1, "choice_scores": (-1.25, -3.5, -2.75, -4.0),
            "prompt_tokens": 30, "output_tokens": 4, "norm_ratio": 1.0, "cosine": 1.0,
            **_route_columns(routed, self._vector, "0" * 64),
            "timings": {"encode": 12.3, "route": 4.5, "load": 0.1, "compose": 1.2, "predict": 120.0},
            "batch_size": together, "device": "cpu/float32", "base_model": BASE_MODEL, "base_fingerprint": "0" * 64,
            "encoder": "all-MiniLM-L6-v2/2", "code_version": "0.1.0",
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
