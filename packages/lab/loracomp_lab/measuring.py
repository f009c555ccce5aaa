"""Measures how much each of a library's adapters improves answers to examples, and writes the scores into files. A
measurement that was killed continues when it is started again. If some adapters have changed, only the changed ones are
measured again.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loracomp.composition.strategies import LoraFactors
from loracomp.engine.predictor import Predictor
from loracomp.errors import JobError
from loracomp.model.loading import BaseModel
from loracomp.records import Composition, Prediction, Request
from loracomp.registry.adapter_checks import read_adapter
from loracomp.registry.adapter_files import TRAINING, WEIGHTS, own_scaling, parse_factors
from loracomp.registry.examples import Example
from loracomp.registry.library_files import read_examples_file
from loracomp.registry.measurement_files import MeasuredExample, MeasuredExamples, measurements_path, read_measurements
from loracomp_lab.library_build import MEASURED_A_TASK, MEASURED_WORDS, measured_examples, train_rows
from loracomp_lab.library_writing import tasks_with_examples, write_measurements

NORMALIZATION = "tokens"
"""How a choice's log-likelihood is normalised, which is as in the default policy."""
SCORED_TOGETHER = 8
"""Number of examples that are scored and written together."""
LIKELY = 30
"""Number of tasks whose adapters are measured on an example, which is as in the SQL function measure_task."""
BASE = ""
"""Key of the base model's scores, in place of an adapter's digest."""
Scores = dict[bytes, dict[str, npt.NDArray[np.float32]]]
"""For each example (by digest) and adapter (by digest, or BASE), the scores of the example's choices."""


@dataclass(frozen=True, slots=True)
class MeasuredAdapter:
    """An adapter of a library, with its weights loaded."""

    task: str
    digest: str
    """The adapter's digest (`AdapterFile.digest`)."""
    weights: LoraFactors
    training: Mapping[str, Any]

    def has_learnt_from(self, example: Example) -> bool:
        """Return whether the adapter was trained on an example, by the rules of the SQL function
        loracomp.has_learnt_from."""
        task = example.source_ref.partition("/")[0]
        seen = self.training.get("tasks_seen", [self.task])
        aside = self.training.get("kept_aside", ())
        return example.split == "train" and task in seen and example.content_hash.hex() not in aside


def read_adapters(folder: Path, base: BaseModel) -> list[MeasuredAdapter]:
    """Read the adapters of a library, sorted by task. Raises RefusedError if an adapter is incomplete or does not fit
    the base model."""
    found = []
    for number, path in enumerate(sorted(folder.glob(f"adapters/*/{WEIGHTS}")), start=1):
        file = read_adapter(path.parent, base)
        factors = parse_factors(file.weights)
        weights = LoraFactors(number, file.sha256, file.scaling, factors, own_scaling(file.config, factors))
        found.append(MeasuredAdapter(path.parent.name, file.digest, weights, file.training))
    return found


class Measuring:
    """Scores examples under a base model and adapters, and stores the scores in files."""

    def __init__(self, base: BaseModel, adapters: Sequence[MeasuredAdapter]) -> None:
        self._base = base
        self._adapters = adapters
        self._weights = {adapter.weights.id: adapter.weights for adapter in adapters}
        alone = {
            each.digest: Composition((each.weights.id,), (each.weights.sha256,), (1.0,), "cat") for each in adapters
        }
        self._compositions = {BASE: Composition(), **alone}
        self._predictor = Predictor(base)

    def complete(
        self,
        path: Path,
        examples: Sequence[Example],
        *,
        likely: Sequence[str] | None = None,
        first: int | None = None,
    ) -> Iterator[int]:
        """Compute the scores that a file lacks; after each write, yields the number of rows that were scored.

        `likely` has the tasks whose adapters are measured (None: all). Only the first `first` examples are scored
        (None: all). An adapter is not measured on examples that it was trained on. Scores of other examples, and of
        adapters that have changed, are removed from the file.
        """
        by_digest = {example.digest: example for example in examples}
        scores = self._known(path, by_digest)
        missing = {digest: self._missing(each, scores[digest], likely) for digest, each in by_digest.items()}
        todo = [digest for digest in list(by_digest)[:first] if missing[digest]]
        if not todo and path.is_file():
            self._write(path, by_digest, scores)  # removes outdated scores
        for start in range(0, len(todo), SCORED_TOGETHER):
            batch = todo[start : start + SCORED_TOGETHER]
            pairs = [(digest, name) for digest in batch for name in missing[digest]]
            answers = self._predictor.predict([self._request(by_digest[d], n) for d, n in pairs], self._fetch)
            for (digest, name), answer in zip(pairs, answers, strict=True):
                scores[digest][name] = _scores(answer)
            self._write(path, by_digest, scores)
            yield len(pairs)

    def _known(self, path: Path, by_digest: Mapping[bytes, Example]) -> Scores:
        """Return the scores in the file that belong to these examples and adapters."""
        scores: Scores = {digest: {} for digest in by_digest}
        found = read_measurements(path)
        if found is None or (found.base_model, found.normalization) != (self._base.fingerprint, NORMALIZATION):
            return scores
        columns = [BASE, *found.adapters.values()]
        current = self._compositions.keys()
        for example, rows in zip(found.examples, found.scores, strict=True):
            if example.digest in by_digest:
                known = zip(columns, rows, strict=True)
                scores[example.digest] = {name: row for name, row in known if name in current and not np.isnan(row[0])}
        return scores

    def _missing(self, example: Example, known: Mapping[str, Any], likely: Sequence[str] | None) -> list[str]:
        wanted = [
            adapter.digest
            for adapter in self._adapters
            if (likely is None or adapter.task in likely) and not adapter.has_learnt_from(example)
        ]
        return [name for name in (BASE, *wanted) if name not in known]

    def _request(self, example: Example, name: str) -> Request:
        composition = self._compositions[name]
        return Request(example.prompt, example.choices, None, normalization=NORMALIZATION, composition=composition)

    def _fetch(self, ids: Sequence[int]) -> list[LoraFactors]:
        return [self._weights[id_] for id_ in ids]

    def _write(self, path: Path, by_digest: Mapping[bytes, Example], scores: Scores) -> None:
        adapters = {adapter.task: adapter.digest for adapter in self._adapters}
        width = max(len(example.choices or ()) for example in by_digest.values())
        table = np.full((len(by_digest), 1 + len(adapters), width), np.nan, np.float32)
        for row, digest in zip(table, by_digest, strict=True):
            for column, name in enumerate((BASE, *adapters.values())):
                if (known := scores[digest].get(name)) is not None:
                    row[column, : len(known)] = known[:width]
        rows = tuple(MeasuredExample(e.content_hash, e.label_index, digest) for digest, e in by_digest.items())
        write_measurements(path, MeasuredExamples(self._base.fingerprint, NORMALIZATION, adapters, rows, table))


def _scores(answer: Prediction | JobError) -> npt.NDArray[np.float32]:
    if isinstance(answer, JobError):
        raise answer
    return np.array(answer.choice_scores, np.float32)


def measure_library(
    folder: Path,
    base: BaseModel,
    *,
    data: str | None = None,
    rows: int = MEASURED_A_TASK,
    adapters: int = LIKELY,
    seed: int = 0,
) -> Iterator[str]:
    """Measure a library's adapters on examples that they were not trained on; yields a sentence for each step.

    At most `rows` examples of each task are measured, under each adapter alone: the adapters of the task itself and of
    the nearest tasks, `adapters` in total. All tasks get a few rows before any task gets more. `data` and `seed` must
    be those of `build_library`.
    """
    tasks = tasks_with_examples(folder)
    read = {task: train_rows(task, data, seed, MEASURED_WORDS) for task in tasks}
    yield from unmeasured(folder)
    chosen = {task: measured_examples(folder, task, found)[:rows] for task, found in read.items()}
    near = likely_tasks(folder, tasks, adapters)
    measuring = Measuring(base, read_adapters(folder, base))
    for first in range(SCORED_TOGETHER, rows + SCORED_TOGETHER, SCORED_TOGETHER):
        for task, examples in chosen.items():
            path = measurements_path(folder, task)
            for scored in measuring.complete(path, examples, likely=near[task], first=first):
                yield f"{task}: {min(first, len(examples))} of {len(examples)} examples, {scored} scores"


def unmeasured(folder: Path) -> Iterator[str]:
    """Return a sentence for each adapter whose training record does not list the rows kept aside. Such an adapter may
    have been trained on any row."""
    for path in sorted(folder.glob(f"adapters/*/{TRAINING}")):
        if "kept_aside" not in json.loads(path.read_text()):
            yield (
                f"{path.parent.name}: its training record doesn't say which rows were kept aside, so its adapter is "
                "not measured on rows of its tasks; train it again"
            )


def likely_tasks(folder: Path, tasks: Sequence[str], most: int) -> dict[str, list[str]]:
    """Return for each task the task itself and the tasks that have most of the nearest neighbours of its examples,
    `most` in total. Like the SQL function likely_tasks, it searches the 200 nearest examples of other tasks for 20
    examples of the task.
    """
    vectors = {task: read_examples_file(folder, task).embeddings for task in tasks}
    owners = np.repeat(np.arange(len(tasks)), [len(each) for each in vectors.values()])
    everything = np.concatenate(list(vectors.values()))
    found = {}
    for number, (task, own) in enumerate(vectors.items()):
        others = np.flatnonzero(owners != number)
        similarities = own[:20] @ everything[others].T
        near = np.argsort(-similarities, axis=1)[:, :200]
        counts = np.bincount(owners[others][near].ravel(), minlength=len(tasks))
        order = [place for place in np.argsort(-counts, kind="stable") if place != number]
        found[task] = [task, *(tasks[place] for place in order[: most - 1])]
    return found
