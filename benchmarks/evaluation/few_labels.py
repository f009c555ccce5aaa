"""Compares what a few labelled rows are worth to the mix of adapters, to classifiers of embeddings, and to both.

    python -m benchmarks.evaluation.few_labels score ../shared/data FOLDER
    python -m benchmarks.evaluation.few_labels compare FOLDER

`score` scores rows under the base model, and under the mix that answers if a task has no adapter. It keeps scores and
embeddings, without texts, in FOLDER, and can be stopped and run again. For a task of the library, the mix is without
all adapters that were trained on a task of its family. `compare` draws labelled rows, lets each method answer test
rows, and writes docs/performance/few_labels.json, which `make figures` shows.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import typer
from sklearn.linear_model import LogisticRegression

from loracomp.composition.strategies import LoraFactors
from loracomp.config import load_settings
from loracomp.engine.fitting import fit_classifier, fit_weights, join_features, state_scale
from loracomp.engine.predictor import Predictor
from loracomp.errors import JobError
from loracomp.model.encoder import SHAPE, VIEWS, load_encoder
from loracomp.model.loading import load_base_model
from loracomp.records import Composition, Prediction, Request
from loracomp.registry.examples import Example
from loracomp.registry.library_files import packaged, read_manifest
from loracomp_lab.catalogue import load_entry, read_examples
from loracomp_lab.catalogue.leaks import find_leaks
from loracomp_lab.library_build import MEASURED_WORDS
from loracomp_lab.measuring import NORMALIZATION, MeasuredAdapter, read_adapters

from .labelled import labelled
from .plan import LIBRARY, UNFAMILIAR

TOGETHER = 16
"""Number of rows that are scored and written together."""
DRAWS = 10
"""How often labelled rows are drawn from all labelled rows."""
KEPT = Path(__file__).parents[2] / "docs" / "performance" / "few_labels.json"
app = typer.Typer()


@dataclass(frozen=True, slots=True)
class Kind:
    """Rows of some tasks, either to be labelled or to be answered."""

    name: str
    tasks: tuple[str, ...]
    rows: int
    """Number of rows of each task: the first ones by content hash."""

    def examples(self, task: str, data: Path) -> list[Example]:
        """The rows in the order of their content hashes, which is as good as a random order."""
        found = self._read(task, data)
        return sorted(found, key=lambda row: row.content_hash)[: self.rows]

    def _read(self, task: str, data: Path) -> Iterator[Example]:
        entry, folder = load_entry(task), str(data / task)
        if self.name == "labelled" and task in UNFAMILIAR:
            yield from labelled(task, data)
        elif self.name == "validation":
            yield from read_examples(entry, "validation", folder, max_words=MEASURED_WORDS)
        else:
            leaks = find_leaks(entry, folder).source_refs
            rows = read_examples(entry, "train", folder, max_words=MEASURED_WORDS)
            yield from (row for row in rows if row.source_ref not in leaks)


FIXED = tuple(task for task in LIBRARY if isinstance(load_entry(task).doc_to_choice, list))
"""Tasks of the library whose rows all have the same choices."""


Scores = npt.NDArray[np.floating]


class Scorer:
    """Scores rows and stores the scores in files."""

    def __init__(self, folder: Path, data: Path) -> None:
        manifest = read_manifest(packaged())
        base = load_base_model(manifest.base_model.source, cache_dir=load_settings().home / "models")
        self._folder, self._data = folder, data
        self._adapters = read_adapters(packaged(), base)
        self._predictor = Predictor(base)
        self._encoder = load_encoder(manifest.encoder.source)

    def complete(self, kind: Kind, task: str) -> Iterator[str]:
        """Score the rows that are missing in the task's file; yields a sentence after each write."""
        path = self._folder / f"{kind.name}_{task}.npz"
        have = dict(np.load(path)) if path.is_file() else {}
        if len(have.get("mix", ())) >= kind.rows:
            return
        rows = kind.examples(task, self._data)
        if len(have.get("vectors", ())) != len(rows):
            shown = [(row.prompt, row.choices) for row in rows]
            have["vectors"] = self._encoder.encode(shown)
            have["labels"] = np.array([row.label_index for row in rows])
        mix = self._mix(task)
        for start in range(len(have.get("mix", ())), len(rows), TOGETHER):
            batch = rows[start : start + TOGETHER]
            found = dict(zip(("mix", "states"), self._scores(batch, mix), strict=True))
            if kind.name == "validation":
                found["base"], _ = self._scores(batch, Composition())
            for name, values in found.items():
                have[name] = np.concatenate([have[name], values]) if name in have else values
            np.savez(path.with_suffix(".new.npz"), **have)
            path.with_suffix(".new.npz").replace(path)
            yield f"{kind.name}, {task}: {start + len(batch)} of {len(rows)} rows"

    def _mix(self, task: str) -> Composition:
        """All adapters with equal weights. For a task of the library, adapters that were trained on a task of its
        family are left out."""
        family = load_entry(task).family if task in LIBRARY else None
        others = [each.weights for each in self._adapters if family not in _families(each)]
        ids, hashes = tuple(each.id for each in others), tuple(each.sha256 for each in others)
        return Composition(ids, hashes, (1 / len(ids),) * len(ids), "cat")

    def _scores(self, rows: Sequence[Example], composition: Composition) -> tuple[Scores, Scores]:
        """Scores [rows, choices] and states [rows, d] under a composition."""
        requests = [
            Request(
                row.prompt, row.choices, None, normalization=NORMALIZATION, composition=composition, reads_state=True
            )
            for row in rows
        ]
        (mix,) = self._predictor.compose([composition], self._predictor.load([composition], self._fetch))
        answering = self._predictor.begin()
        asked = [answering.add(request, mix) for request in requests]
        while answering:
            answering.step()
        return np.array([_scores_of(each.outcome) for each in asked]), np.array([each.state for each in asked])

    def _fetch(self, ids: Sequence[int]) -> list[LoraFactors]:
        return [each.weights for each in self._adapters if each.weights.id in ids]


def _families(adapter: MeasuredAdapter) -> set[str]:
    return {load_entry(task).family for task in adapter.training.get("tasks_seen", [adapter.task])}


def _scores_of(answer: Prediction | JobError | None) -> tuple[float, ...]:
    if isinstance(answer, JobError):
        raise answer
    assert answer is not None
    assert answer.choice_scores is not None
    return answer.choice_scores


PARTS = (
    Kind("train", FIXED, 160),
    Kind("labelled", UNFAMILIAR, 64),
    Kind("validation", UNFAMILIAR, 300),
    Kind("validation", FIXED, 100),
)


@app.command()
def score(data: Path, folder: Path) -> None:
    """Add the missing scores to the files in FOLDER."""
    scorer = Scorer(folder, data)
    for kind in PARTS:
        for task in kind.tasks:
            for sentence in scorer.complete(kind, task):
                print(sentence, flush=True)


Rows = dict[str, npt.NDArray[Any]]
"""A file's arrays: `labels` [rows], `mix` and `base` [rows, choices], `vectors` [rows, dimensions], and the `states`
[rows, d] of the prompts under the mix."""


def majority(labelled: Rows, test: Rows) -> npt.NDArray[np.float64]:
    """The most frequent label of the labelled rows. Like all methods below, it returns scores [test, choices]."""
    return np.tile(_right(labelled).mean(axis=0), (len(test["mix"]), 1))


def classifier(labelled: Rows, test: Rows) -> npt.NDArray[np.float64]:
    """A linear probe: logistic regression on the embeddings of the prompts."""
    scores = np.zeros_like(test["mix"])
    seen = np.unique(labelled["labels"])
    if len(seen) == 1:
        scores[:, seen] = 1
        return scores
    probe = LogisticRegression(C=10, max_iter=1000).fit(_of_prompts(labelled), labelled["labels"])
    scores[:, seen] = probe.predict_proba(_of_prompts(test))
    return scores


def nearest(labelled: Rows, test: Rows, count: int = 5) -> npt.NDArray[np.float64]:
    """A vote of the `count` nearest labelled rows, weighted by their similarity."""
    similar = _of_prompts(test) @ _of_prompts(labelled).T
    farther = similar < np.sort(similar, axis=1)[:, -count, None]
    return np.where(farther, 0, similar) @ _right(labelled)


def biased(labelled: Rows, test: Rows, smoothing: float = 3, decay: float = 0.03) -> npt.NDArray[np.float64]:
    """The mix with a bias for each choice, so that each is chosen as often as it is right."""
    scores, right = labelled["mix"], _right(labelled)
    shares = (right.sum(axis=0) + smoothing) / (len(right) + smoothing * right.shape[1])
    biases = np.zeros(len(shares))
    for _ in range(300):
        likely = np.exp(_normalised(scores + biases))
        biases = biases - (likely.mean(axis=0) - shares + 2 * decay * biases)
    return _normalised(test["mix"] + biases)


def product(labelled: Rows, test: Rows) -> npt.NDArray[np.float64]:
    """The product of the probabilities of the biased mix and of the classifier."""
    return biased(labelled, test) + np.log(classifier(labelled, test) + 1e-4)


def measured(labelled: Rows, test: Rows) -> npt.NDArray[np.float64]:
    """What the policy `measured` does once the weights of the mix are given: it weighs the mix and a classifier."""
    right = _right(labelled)
    scale = state_scale(labelled["vectors"], labelled["states"])
    known, asked = (join_features(rows["vectors"], rows["states"], scale) for rows in (labelled, test))
    fitted = fit_classifier(known, right)
    weights = fit_weights(np.stack([labelled["mix"], fitted.left_out], axis=2), right)
    scores: npt.NDArray[np.float64] = weights[0] * test["mix"] + weights[1] * fitted(asked) + weights[2:]
    return scores


WAYS = {
    "base": lambda _, test: test["base"],
    "majority": majority,
    "classifier": classifier,
    "nearest": nearest,
    "biased": biased,
    "product": product,
    "measured": measured,
}
COMPARED = (("unfamiliar", UNFAMILIAR, "labelled", (16, 64)), ("kept_out", FIXED, "train", (16, 64, 128)))
"""Parts of the comparison: name, tasks, the kind of the labelled rows, and their numbers."""
OTHERS = ("majority", "classifier", "nearest", "biased")
"""The single methods: `measured` must not be worse than any of them."""


def _right(rows: Rows) -> npt.NDArray[np.float64]:
    return np.eye(rows["mix"].shape[1])[rows["labels"]]


def _of_prompts(rows: Rows) -> npt.NDArray[np.float64]:
    """Unit embeddings of the prompts alone, taken from vectors that contain choices and shape too."""
    prompts = rows["vectors"][:, : (rows["vectors"].shape[1] - SHAPE) // VIEWS].astype(np.float64)
    return prompts / np.linalg.norm(prompts, axis=1, keepdims=True)


def _normalised(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)


def correct(labelled: Rows, test: Rows, count: int) -> npt.NDArray[np.float64]:
    """[methods, test]: the share of draws of `count` labelled rows with which a method answers a row correctly."""
    draws = 1 if count == len(labelled["labels"]) else DRAWS
    found = np.zeros((len(WAYS), len(test["labels"])))
    for draw in range(draws):
        drawn = np.random.default_rng([count, draw]).permutation(len(labelled["labels"]))[:count]
        known = {name: values[drawn] for name, values in labelled.items()}
        found += [way(known, test).argmax(axis=1) == test["labels"] for way in WAYS.values()]
    return found / draws


def interval(differences: Sequence[npt.NDArray[np.float64]]) -> tuple[float, float, float]:
    """The mean over tasks of the means over rows, and its 95 % bootstrap interval over the rows, in points."""
    deal = np.random.default_rng(0)
    means = [each[deal.integers(0, len(each), (2000, len(each)))].mean(axis=1) for each in differences]
    low, high = np.quantile(np.mean(means, axis=0), [0.025, 0.975])
    return tuple(round(100 * float(value), 1) for value in (np.mean([each.mean() for each in differences]), low, high))


def figures(found: dict[str, npt.NDArray[np.float64]]) -> dict[str, Any]:
    """Means of each method, and differences between `measured` and each other, from the result of `correct` by task."""
    of = {way: [each[number] for each in found.values()] for number, way in enumerate(WAYS)}
    less = {way: [mine - theirs for mine, theirs in zip(of["measured"], rows, strict=True)] for way, rows in of.items()}
    return {
        "rows": sum(each.shape[1] for each in found.values()),
        "right": {way: interval(rows) for way, rows in of.items()},
        "more": {way: interval(rows) for way, rows in less.items() if way != "measured"},
        "tasks": {
            task: {
                "right": {way: round(100 * float(rows[number].mean()), 1) for way, rows in of.items()},
                "more": {way: interval([less[way][number]]) for way in OTHERS},
            }
            for number, task in enumerate(found)
        },
    }


@app.command()
def compare(folder: Path) -> None:
    """Write docs/performance/few_labels.json from the files in FOLDER."""
    made = {}
    for part, tasks, kind, counts in COMPARED:
        read = {task: [_scored(folder / f"{each}_{task}.npz") for each in (kind, "validation")] for task in tasks}
        for count in counts:
            found = {task: correct(known, test, count) for task, (known, test) in read.items()}
            made[f"{part}_{count}"] = figures(found)
    KEPT.write_text(json.dumps(made) + "\n")


def _scored(path: Path) -> Rows:
    """The rows of a file that are already scored."""
    rows = dict(np.load(path))
    return {name: values[: len(rows["mix"])] for name, values in rows.items()}


if __name__ == "__main__":
    app()
