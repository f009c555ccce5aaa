"""The baseline without loracomp: retrieval in ChromaDB, then a PEFT merge and a pass for each job.

The baseline is as fast as we could make it: texts are embedded and looked up in batches, adapters have the model's
precision, choices share the pass over their prompt (`loracomp.model.scoring`), and a merged adapter is deleted at once.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from statistics import median
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from psycopg.types.json import Jsonb

from loracomp.composition.layers import AdapterStack
from loracomp.model.loading import load_base_model
from loracomp.model.scoring import log_likelihoods, normalize
from loracomp.model.tokens import encode_choices
from loracomp.records import Job
from loracomp.registry.library_files import adapter_folder, packaged, read_examples_file

from .composing import new_composer
from .passes import asking
from .timing import Figure, Measured, compare, milliseconds, over, per_second, take_turns, timed
from .workbench import Workbench, drawing, made_up_jobs, once_each

POLICY = "linear"
GOALS = {"linear": 1 / 40, "cat": 1 / 40, "ties": 1 / 10, "magnitude_prune": 1 / 10}


class PapersWay:
    """The baseline: a vector store, and its own base model with the library's adapters in PEFT."""

    def __init__(self, bench: Workbench, examples: Any = None) -> None:
        """`examples` is a `filled_store`, which only `answer` needs."""
        self._bench = bench
        self._examples = examples
        self._settings = bench.connection.execute("SELECT * FROM loracomp.policy WHERE name = %s", [POLICY]).fetchone()
        base = load_base_model(
            bench.base.source, dtype=bench.base.model.dtype, cache_dir=bench.settings.home / "models"
        )
        first, *rest = bench.tasks
        options: dict[str, Any] = {"autocast_adapter_dtype": False}
        self.model = PeftModel.from_pretrained(base.model, adapter_folder(packaged(), first), first, **options)
        for task in rest:
            self.model.load_adapter(adapter_folder(packaged(), task), task, **options)
        self.model.eval()
        self._base = base
        self.seconds = dict.fromkeys(("look up", "merge", "score"), 0.0)
        """Seconds spent in each step so far."""

    @torch.inference_mode()
    def answer(self, jobs: Sequence[dict[str, Any]]) -> list[int]:
        """Return the index of each job's choice, from 0."""
        with self._spent("look up"):
            vectors = self._bench.engine.encoder.encode([(job["prompt"], job["choices"]) for job in jobs])
            mixes = list(self._retrieve(vectors))
        return [self._choose(job, mix) for job, mix in zip(jobs, mixes, strict=True)]

    @contextmanager
    def _spent(self, on: str) -> Iterator[None]:
        with timed() as taken:
            yield
        self.seconds[on] += taken[0]

    def _retrieve(self, vectors: Any) -> Iterator[dict[str, float]]:
        found = self._examples.query(
            query_embeddings=list(vectors), n_results=self._settings["k"], include=["metadatas", "distances"]
        )
        for rows, distances in zip(found["metadatas"], found["distances"], strict=True):
            yield weights([row["task"] for row in rows], 1 - np.array(distances), self._settings)

    def _choose(self, job: dict[str, Any], mix: dict[str, float]) -> int:
        question = encode_choices(self._base.tokenizer, job["prompt"], job["choices"], self._base.context_length)
        with self._spent("merge"):
            self.merge(mix, POLICY)
        with self._spent("score"):
            scores = log_likelihoods(self.model, [question])[0]
        with self._spent("merge"):
            self.forget()
        return int(normalize(scores, question, self._settings["choice_normalization"]).argmax())

    def merge(self, mix: dict[str, float], strategy: str) -> None:
        """Merge the adapters of a mix with their weights, and make the merged adapter active."""
        density = None if strategy in ("linear", "cat") else 0.5
        self.model.add_weighted_adapter(
            list(mix), list(mix.values()), "mix", combination_type=strategy, density=density
        )
        self.model.set_adapter("mix")

    def forget(self) -> None:
        """Remove the merged adapter."""
        self.model.delete_adapter("mix")


def filled_store(tasks: Sequence[str]) -> Any:
    """Make a ChromaDB collection in memory with the library's examples, searched by cosine."""
    import chromadb  # noqa: PLC0415  of an extra, which no other part needs

    client = chromadb.EphemeralClient(chromadb.Settings(anonymized_telemetry=False))
    with suppress(Exception):
        client.delete_collection("examples")
    examples = client.create_collection("examples", configuration={"hnsw": {"space": "cosine", "ef_search": 100}})
    for task in tasks:
        vectors = read_examples_file(packaged(), task).embeddings
        names = [f"{task} {number}" for number in range(len(vectors))]
        examples.add(ids=names, embeddings=list(vectors), metadatas=[{"task": task}] * len(vectors))
    return examples


def weights(tasks: Sequence[str], similarities: Any, settings: dict[str, Any]) -> dict[str, float]:
    """Return task weights as in section 3 of the paper: softmax over examples, sum by task, nucleus, normalised to sum
    1."""
    shares = np.exp((similarities - similarities.max()) / settings["routing_temperature"])
    masses: dict[str, float] = {}
    for task, share in zip(tasks, shares / shares.sum(), strict=True):
        masses[task] = masses.get(task, 0.0) + float(share)
    kept: dict[str, float] = {}
    for task, mass in sorted(masses.items(), key=lambda pair: -pair[1])[: settings["max_adapters"]]:
        if sum(kept.values()) >= settings["routing_top_p"] - 1e-9:
            break
        kept[task] = mass
    return {task: mass / sum(kept.values()) for task, mass in kept.items()}


def against_paper(bench: Workbench, turns: int) -> Measured:
    """Compare both systems from text to answer, including retrieval, on the same jobs; each turn has new jobs.

    The base model alone scores the same jobs too, as an upper bound for any system that mixes adapters.
    """
    paper = PapersWay(bench, filled_store(bench.tasks))
    batches = [made_up_jobs(bench.sizes.batch, seed=100 + turn) for turn in range(turns + 1)]
    jobs = [waiting(bench, batch, POLICY) for batch in batches]
    answers: dict[str, list[int]] = {"loracomp": [], "paper": []}

    def ours(turn: int) -> None:
        flights = bench.engine.run(bench.connection, jobs[turn])
        answers["loracomp"] += [each.result.choice_index - 1 for each in flights]

    def papers(turn: int) -> None:
        answers["paper"] += paper.answer(batches[turn])

    def base(turn: int) -> None:
        asking(bench.predictor(), batches[turn])(turn)

    seconds = take_turns({"paper": papers, "loracomp": ours, "base alone": base}, turns)
    agreed = np.mean([a == b for a, b in zip(*answers.values(), strict=True)])
    what = f"from text to answer, {bench.sizes.batch} new mixes by {POLICY}: jobs/s"
    per_job = bench.sizes.batch * (turns + 1) / 1000
    details = {
        **per_second(seconds, bench.sizes.batch),
        **{f"paper, {step}, ms a job": spent / per_job for step, spent in paper.seconds.items()},
        "base alone over paper": median(over(seconds, "paper", "base alone")),
        "same answer, share": float(agreed),
    }
    against = "ChromaDB, then a PEFT merge and a pass a job"
    return {
        "figures": [compare("paper", what, against, ">= 8", ratios=over(seconds, "paper", "loracomp"), details=details)]
    }


def waiting(bench: Workbench, batch: Sequence[dict[str, Any]], policy: str) -> list[Job]:
    """Insert jobs that no worker claims before tomorrow."""
    rows = bench.connection.execute(
        "INSERT INTO loracomp.job (prompt, choices, policy, run_at)"
        " SELECT j.prompt, j.choices, %s, now() + interval '1 day'"
        " FROM jsonb_to_recordset(%s) AS j (prompt text, choices text[]) RETURNING id, prompt, choices",
        [policy, Jsonb(batch)],
    ).fetchall()
    return [Job(row["id"], 0, "predict", row["prompt"], tuple(row["choices"]), None) for row in rows]


def merging(bench: Workbench, turns: int) -> Measured:
    """Compare the cost of a new mix of loaded adapters: preparing our pass, and merging the adapters with PEFT."""
    paper = PapersWay(bench)
    return {"figures": [_merging(bench, paper, strategy, turns) for strategy in GOALS]}


def _merging(bench: Workbench, paper: PapersWay, strategy: str, turns: int) -> Figure:
    """Each job of our batch has its own mix. The cost of a mix is the batch's time for composing and making factors,
    divided by the number of jobs."""
    ours, draw = factors_of_a_batch(bench, strategy), drawing(bench.library, strategy=strategy, seed=1)
    names = dict(zip((each.id for each in bench.library), bench.tasks, strict=True))

    def peft() -> None:
        (mix,) = draw(1)
        paper.merge({names[id_]: weight for id_, weight in zip(mix.adapter_ids, mix.weights, strict=True)}, strategy)

    seconds: dict[str, list[float]] = {"PEFT": [], "loracomp": []}
    for turn in range(turns + 1):
        for name, run, count in (("PEFT", peft, 1), ("loracomp", ours, bench.sizes.batch)):
            with timed() as taken:
                run()
            if turn:
                seconds[name].append(taken[0] / count)
        paper.forget()
    what = f"a new mix by {strategy}, in a batch of {bench.sizes.batch}: time"
    against = "PEFT's `add_weighted_adapter`"
    goal = f"<= {GOALS[strategy]:.3g}"
    found = over(seconds, "loracomp", "PEFT")
    return compare(f"merging {strategy}", what, against, goal, ratios=found, details=milliseconds(seconds))


def factors_of_a_batch(bench: Workbench, strategy: str) -> Callable[[], None]:
    """Return a run that composes a batch of new mixes, and makes all rows' factors.

    A pass makes the factors of a module when it reaches the module, so the run sends one token of each row through each
    module.
    """
    draw, composer = drawing(bench.library, strategy=strategy), new_composer(bench)
    adapters = bench.predictor().load(once_each(bench.library))
    changed = {module for each in bench.library for module in each.factors}
    model, rows = bench.base.model, bench.sizes.batch
    tokens = {
        module: torch.zeros(rows, 1, bench.base.modules[module][1], dtype=model.dtype, device=model.device)
        for module in sorted(changed)
    }

    @torch.inference_mode()
    def run() -> None:
        mixes = composer.compose(draw(rows), adapters)
        with AdapterStack(model, mixes).composed(mixes):
            for module, x in tokens.items():
                model.get_submodule(module)(x)

    return run
