"""Measures what policies are worth for a task that nothing in the library resembles.

    python -m benchmarks.evaluation.families --data ../shared/data --cache FOLDER

The rows of each task are answered by a library without the whole family of that task, and without all adapters that
were trained on a task of the family, so that no twin of the task answers. Rules of routing are chosen on the rows of
*train* that training kept aside (`--part train`; half of them in phrasings), which the remaining adapters have never
seen. Rows of *validation*, in the tasks' own template and in held-out phrasings, measure the chosen rules, and are
stored with the other results. Each score is computed once and kept in the cache.
"""

import argparse
import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from loracomp.composition.strategies import LoraFactors
from loracomp.config import load_settings
from loracomp.engine.predictor import Predictor
from loracomp.model.encoder import Encoder, load_encoder
from loracomp.model.loading import load_base_model
from loracomp.records import Composition, Prediction, Request
from loracomp.registry.adapter_files import TRAINING
from loracomp.registry.examples import Example
from loracomp.registry.library_files import adapter_folder, packaged, read_examples_file, read_manifest
from loracomp.registry.measurement_files import measurements_path, read_measurements
from loracomp_lab.catalogue import Phrased, load_entry, read_examples
from loracomp_lab.library_build import MEASURED_WORDS, PHRASED
from loracomp_lab.measuring import NORMALIZATION, MeasuredAdapter, read_adapters
from tests.routing_reference import Settings, expect, weigh, weigh_by_gain

from .plan import LIBRARY
from .prompts import validation_examples
from .results import add_rows

Floats = npt.NDArray[np.float64]
TOGETHER = 64
"""Number of questions that are answered before their scores are written."""


class Library:
    """The shipped library in NumPy: examples with their tasks, and gains [examples, adapters]."""

    def __init__(self) -> None:
        folder = packaged()
        self.families = {task: part.family for task, part in read_manifest(folder).tasks.items()}
        self.tasks = list(self.families)
        files = [read_examples_file(folder, task) for task in self.tasks]
        self.vectors = np.concatenate([file.embeddings for file in files])
        self.owners = np.repeat(np.arange(len(self.tasks)), [len(file.embeddings) for file in files])
        hashes = [each.tobytes() for file in files for each in file.content_hashes]
        self.gains = np.full((len(hashes), len(self.tasks)), np.nan)
        for number, task in enumerate(self.tasks):
            self._add_gains(number, folder, task, hashes)

    def _add_gains(self, number: int, folder: Path, task: str, hashes: Sequence[bytes]) -> None:
        if (measured := read_measurements(measurements_path(folder, task))) is None:
            return
        numbers = {hashes[n]: n for n in np.flatnonzero(self.owners == number)}
        columns = [self.tasks.index(adapter) for adapter in measured.adapters]
        for example, gains in zip(measured.examples, measured.gains().gains, strict=True):
            if example.content_hash in numbers:
                self.gains[numbers[example.content_hash], columns] = gains

    def without_family(self, family: str) -> list[int]:
        """Numbers of the tasks that remain without a family and without the adapters that were trained on it."""
        gone = {task for task, its in self.families.items() if its == family}
        records = {task: json.loads((adapter_folder(packaged(), task) / TRAINING).read_text()) for task in self.tasks}
        return [number for number, task in enumerate(self.tasks) if not gone & {task, *records[task]["tasks_seen"]}]


@dataclass(frozen=True)
class Question:
    """A question, and the part of the library that may answer it."""

    task: str
    family: str
    example: Example
    vector: Floats
    library: Library
    allowed: Sequence[int]
    """Numbers of the tasks whose examples and adapters may be used."""

    @cached_property
    def similarities(self) -> Floats:
        """Cosine similarity to each example of the library; -1 for examples that may not be used."""
        found = self.library.vectors.astype(np.float64) @ self.vector
        return np.where(np.isin(self.library.owners, self.allowed), found, -1.0)

    def nearest(self, count: int) -> npt.NDArray[np.int64]:
        """Numbers of the nearest examples, nearest first."""
        return np.argsort(-self.similarities, kind="stable")[:count]


Weights = dict[str, float]
"""Maps the task of each adapter to the adapter's weight. If it is empty, the base model answers alone."""


def routed(question: Question, settings: Settings, k: int = 30) -> Weights:
    """The weights that a policy with router retrieval gives."""
    nearest = question.nearest(k)
    owners = question.library.owners[nearest].tolist()
    similarities = question.similarities[nearest].tolist()
    if settings.weighting == "measured":
        gains = expect(similarities, question.library.gains[nearest], settings)
        gains[[number not in question.allowed for number in range(len(gains))]] = np.nan
        tasks, weights = range(len(gains)), weigh_by_gain(gains, settings)
    else:
        found = weigh(owners, similarities, settings)
        tasks, weights = found.tasks, found.weights
    names = question.library.tasks
    return {names[task]: float(weight) for task, weight in zip(tasks, weights, strict=True) if weight > 0}


def everything(question: Question) -> Weights:
    """All adapters that may be used, with equal weights: the library's closest thing to one general adapter."""
    return {question.library.tasks[task]: 1 / len(question.allowed) for task in question.allowed}


RULES: dict[str, Callable[[Question], Weights]] = {
    "base": lambda _: {},
    "default": lambda question: routed(question, Settings()),
    "uniform": lambda question: routed(question, Settings(weighting="uniform")),
    "nearest": lambda question: routed(question, Settings(max_adapters=1)),
    "measured": lambda question: routed(question, Settings(weighting="measured", max_adapters=3), k=100),
    "everything": everything,
}


class Scores:
    """Scores of the questions' choices under mixes; each is computed once and kept in a file."""

    def __init__(self, path: Path, predictor: Predictor, adapters: Sequence[MeasuredAdapter]) -> None:
        self._path = path
        self._predictor = predictor
        self._weights = {adapter.task: adapter.weights for adapter in adapters}
        self._by_id = {weights.id: weights for weights in self._weights.values()}
        hashes = "".join(sorted(weights.sha256 for weights in self._weights.values()))
        self.digest = hashlib.sha256(hashes.encode()).hexdigest()[:12]
        lines = path.read_text().splitlines() if path.is_file() else []
        self._known: dict[str, list[float]] = dict(json.loads(line) for line in lines if line.endswith("]]"))

    def of(self, example: Example, weights: Weights) -> list[float]:
        """The scores of a question under a mix that `complete` has been given."""
        return self._known[self._key(example, weights)]

    def complete(self, mixes: Iterable[tuple[Example, Weights]]) -> Iterator[int]:
        """Compute the missing scores; after each write, yields how many are still missing."""
        missing = {self._key(*each): each for each in mixes if self._key(*each) not in self._known}
        todo = sorted(missing, key=lambda key: len(missing[key][0].prompt))
        for start in range(0, len(todo), TOGETHER):
            keys = todo[start : start + TOGETHER]
            answers = self._predictor.predict([self._request(*missing[key]) for key in keys], self._fetch)
            with self._path.open("a") as file:
                for key, answer in zip(keys, answers, strict=True):
                    assert isinstance(answer, Prediction), answer
                    self._known[key] = list(answer.choice_scores or ())
                    file.write(json.dumps([key, self._known[key]]) + "\n")
            yield len(todo) - start - len(keys)

    def _key(self, example: Example, weights: Weights) -> str:
        mix = sorted((self._weights[task].sha256, round(weight * 1e6)) for task, weight in weights.items())
        return hashlib.sha256(example.digest + json.dumps(mix).encode()).hexdigest()[:24]

    def _request(self, example: Example, weights: Weights) -> Request:
        mixed = [self._weights[task] for task in weights]
        ids, hashes = tuple(each.id for each in mixed), tuple(each.sha256 for each in mixed)
        composition = Composition(ids, hashes, tuple(weights.values()), "cat")
        return Request(example.prompt, example.choices, None, normalization=NORMALIZATION, composition=composition)

    def _fetch(self, ids: Sequence[int]) -> list[LoraFactors]:
        return [self._by_id[id_] for id_ in ids]


def kept_rows(task: str, folder: str) -> list[Example]:
    """The train rows of a task that training kept aside, and on which the library's adapters are measured."""
    measured = read_measurements(measurements_path(packaged(), task))
    assert measured
    hashes = {each.content_hash for each in measured.examples}
    rows = read_examples(load_entry(task), "train", folder, phrased=PHRASED, max_words=MEASURED_WORDS)
    return [row for row in rows if row.content_hash in hashes]


def examples_of(part: str, data: str, rows: int) -> Iterator[tuple[str, Example]]:
    """The rows of a part, each with its task."""
    for task in LIBRARY:
        folder = f"{data}/{task}"
        found = kept_rows(task, folder) if part == "train" else validation_examples(task, PARTS[part], folder)
        # In the order of loracomp.draw_examples.
        ordered = sorted(found, key=lambda each: hashlib.sha256(each.content_hash + bytes(4)).digest())
        yield from ((task, example) for example in ordered[:rows])


PARTS = {"train": "", "families": Phrased.OWN, "families_held_out": Phrased.HELD_OUT}
"""The kind of prompt in each part; rows of train have the same prompts as the library's examples."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data", help="folder with TASK/validation.jsonl")
    parser.add_argument("--part", choices=PARTS, default="train", help="which rows; train is for choosing rules")
    parser.add_argument("--rows", type=int, default=24, help="rows a task")
    parser.add_argument("--rules", default=",".join(RULES), help="some rules only, such as base,default")
    parser.add_argument("--cache", type=Path, required=True, help="folder that keeps scores")
    options = parser.parse_args(arguments)
    right: dict[str, list[int]] = {}
    manifest = read_manifest(packaged())
    questions = ask(options.part, options.data, options.rows, load_encoder(manifest.encoder.source))
    base = load_base_model(manifest.base_model.source, cache_dir=load_settings().home / "models")
    options.cache.mkdir(parents=True, exist_ok=True)
    scores = Scores(options.cache / f"{base.fingerprint[:8]}.jsonl", Predictor(base), read_adapters(packaged(), base))
    for name in options.rules.split(","):
        mixes = [(each.example, RULES[name](each)) for each in questions]
        for left in scores.complete(mixes):
            print(f"{name}: {left} left", flush=True)
        right[name] = [int(np.argmax(scores.of(*each)) == each[0].label_index) for each in mixes]
    show(questions, right)
    if options.part != "train":
        keep(options.part, questions, right, scores.digest)


def ask(part: str, data: str, rows: int, encoder: Encoder) -> list[Question]:
    """The questions of a part, each with the whole library and with the library without its family."""
    library, found = Library(), list(examples_of(part, data, rows))
    vectors = encoder.encode([(example.prompt, example.choices) for _, example in found]).astype(np.float64)
    left = {family: library.without_family(family) for family in set(library.families.values())}
    return [
        Question(task, library.families[task], example, vector, library, left[library.families[task]])
        for (task, example), vector in zip(found, vectors, strict=True)
    ]


def show(questions: Sequence[Question], right: dict[str, list[int]]) -> None:
    """Print the accuracy of each rule on each task, in %, and the means over tasks."""
    by_task: dict[str, list[int]] = defaultdict(list)
    for number, each in enumerate(questions):
        by_task[each.task].append(number)
    shares = {
        task: [100 * np.mean([values[number] for number in numbers]) for values in right.values()]
        for task, numbers in by_task.items()
    }
    print(f"{'':22}" + "".join(f"{rule:>12}" for rule in right))
    for task, values in [*shares.items(), ("mean", np.mean(list(shares.values()), axis=0))]:
        print(f"{task:22}" + "".join(f"{value:12.1f}" for value in values))


def keep(part: str, questions: Sequence[Question], right: dict[str, list[int]], digest: str) -> None:
    """Store the answers where `make figures` reads results."""
    lines: dict[str, list[dict[str, str]]] = defaultdict(list)
    for rule, values in right.items():
        for each, correct in zip(questions, values, strict=True):
            about = {"part": part, "task": each.task, "family": each.family, "policy": rule, "router": "retrieval"}
            row = each.example.source_ref.partition("#")[2]
            lines[each.task].append(about | {"is_mix": "0", "row": row, "correct": str(correct), "digest": digest})
    for task, rows in lines.items():
        add_rows(Path(__file__).parent, part, task, rows)


if __name__ == "__main__":
    main()
