"""Which rule makes the best weights of measured gains, on train rows that training kept aside and on labelled rows.

    python -m benchmarks.gains ../shared/data --rows 32

First it scores labelled rows of tasks that nothing in the library is like (DATA/TASK/labelled.jsonl) under each of the
library's adapters alone, and keeps the scores, without text, in benchmarks/gains; killed, it goes on. The library has
those of its own tasks' rows (`loracomp library measure`). Rules are then tried without a model: each row is routed by
the NumPy reference, with all other rows as examples. A mix's answer is estimated: the choice with the highest weighted
mean of its adapters' log-likelihoods. No validation row is read.
"""

import argparse
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.evaluation.plan import UNFAMILIAR
from benchmarks.kept_rows import library_base
from loracomp.lab.catalogue import load_entry
from loracomp.lab.catalogue.reading import rows_of
from loracomp.lab.catalogue.templates import Templates
from loracomp.lab.measuring import Measuring, read_adapters
from loracomp.model.encoder import load_encoder
from loracomp.registry.examples import Example
from loracomp.registry.library_files import PACKAGED, read_examples_file, read_manifest, write_examples_file
from loracomp.registry.measurement_files import measurements_path, read_measurements
from routing_reference import Settings, expect, weigh, weigh_by_gain

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
KEPT = Path(__file__).with_suffix("")
DRAWS = 8
"""How often labelled rows are drawn."""
TRIED = {
    "k": (10, 20, 50, 100, 200),
    "temperature": (0.02, 0.05, 0.1, 0.2),
    "gain_prior": (0.0, 0.03, 0.1, 0.3, 1.0),
    "gain_margin": (-0.05, 0.0, 0.02, 0.05, 0.1),
    "max_adapters": (1, 2, 3, 5),
    "shares": ("gain", "equal", "probability x gain"),
    "accuracy": (1.0, 2.0, 4.0),
}


@dataclass(frozen=True)
class Rule:
    """How weights are made of gains."""

    k: int = 100
    temperature: float = 0.1
    gain_prior: float = 0.1
    gain_margin: float = 0.0
    max_adapters: int = 3
    shares: str = "gain"
    accuracy: float = 0.0
    """Nats that a right answer adds to a gain, which is otherwise a difference of log-probabilities."""

    def settings(self) -> Settings:
        """The rule as settings of the reference implementation."""
        return Settings(
            temperature=self.temperature,
            max_adapters=self.max_adapters,
            weighting="measured",
            gain_prior=self.gain_prior,
            gain_margin=self.gain_margin,
        )


@dataclass(frozen=True)
class Index:
    """Examples of the library and of labelled tasks; n examples, m adapters, c choices at most."""

    tasks: list[str]
    """Tasks that have an adapter come first, in the order of the adapters' columns."""
    adapters: int
    owners: Ints
    """[n], place of each example's task."""
    vectors: Floats
    """[n, dimensions]"""
    gains: Floats
    """[n, m], NaN where not measured."""
    scores: Floats
    """[n, 1 + m, c], log-likelihoods, the base model's first; NaN where there are none."""
    answers: Ints
    """[n], -1 where the example is not measured."""
    seen: npt.NDArray[np.bool_]
    """[tasks, m], whether an adapter has learnt from a task."""

    @cached_property
    def turned(self) -> Ints:
        """[n, m], 1 where an adapter turns the base model's wrong answer into a right one, -1 for the opposite."""
        are_right = np.nan_to_num(self.scores, nan=-np.inf).argmax(2) == self.answers[:, None]
        return are_right[:, 1:].astype(int) - are_right[:, :1]


def labelled(task: str, data: Path) -> Iterator[Example]:
    """The labelled rows of a task that has no train split, as examples to retrieve."""
    entry = load_entry(task)
    templates = Templates(task, entry.doc_to_text, entry.doc_to_choice, entry.doc_to_target)
    for number, row in enumerate(rows_of(str(data / task), None, "labelled", "")):
        if example := templates.example(row, "train", f"{task}/labelled#{number}"):
            yield example


def score(data: Path, rows: int) -> None:
    """Complete the files in KEPT; breadth first."""
    base, encoder = library_base(), load_encoder(read_manifest(PACKAGED).encoder.source)
    measuring = Measuring(base, read_adapters(PACKAGED, base))
    examples = {task: list(labelled(task, data)) for task in UNFAMILIAR}
    for task, each in examples.items():
        write_examples_file(KEPT, task, each, encoder)
    for first in range(8, rows + 1, 8):
        for task, each in examples.items():
            for scored in measuring.complete(measurements_path(KEPT, task), each, first=first):
                print(f"{task}: {first} rows, {scored} scores", flush=True)


def read_index() -> Index:
    """What the library and KEPT hold. Adapters' columns are those that the library has now."""
    library = sorted(read_manifest(PACKAGED).tasks)
    names = [*library, *UNFAMILIAR]
    sha256, seen = {}, np.zeros((len(names), len(library)), bool)
    for column, task in enumerate(library):
        record = json.loads((PACKAGED / "adapters" / task / "training.json").read_text())
        seen[[names.index(each) for each in record["tasks_seen"]], column] = True
        sha256[task] = _sha256(PACKAGED / "adapters" / task / "adapter_model.safetensors")
    parts = []
    for owner, task in enumerate(names):
        folder = PACKAGED if task in sha256 else KEPT
        file = read_examples_file(folder, task)
        count = len(file.source_refs)
        scores = np.full((count, 1 + len(library), 8), np.nan)
        answers = np.full(count, -1)
        gains = np.full((count, len(library)), np.nan)
        if measured := read_measurements(measurements_path(folder, task)):
            places = {each.tobytes(): place for place, each in enumerate(file.content_hashes)}
            found = measured.gains()
            columns = [
                (at, library.index(of))
                for at, (of, sha) in enumerate(measured.adapters.items())
                if sha256.get(of) == sha
            ]
            for row, example in enumerate(measured.examples):
                place, width = places[example.content_hash], measured.scores.shape[2]
                scores[place, 0, :width] = measured.scores[row, 0]
                for at, column in columns:
                    gains[place, column] = found.gains[row, at]
                    scores[place, 1 + column, :width] = measured.scores[row, 1 + at]
                if not np.isnan(scores[place, :, 0]).all():
                    answers[place] = example.answer
        parts.append((np.full(count, owner), file.embeddings.astype(float), gains, scores, answers))
    owners, vectors, gains, scores, answers = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Index(names, len(library), owners, vectors, gains, scores, answers, seen)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass(frozen=True)
class Query:
    """A row whose answer is looked for, with what it may retrieve and use."""

    row: int
    task: int
    examples: Ints
    """Places in the index, the nearest 400 first."""
    similarities: Floats
    usable: npt.NDArray[np.bool_]
    """[m], adapters that may answer."""


Weigh = Callable[[Index, Query], Floats]
"""Weights of the adapters [m] for a query; all 0: the base model alone."""


def own_in(index: Index) -> list[Query]:
    """Rows of the library's tasks; all adapters, all other examples."""
    rows = np.flatnonzero((index.answers >= 0) & (index.owners < index.adapters))
    return [_query(index, row, index.owners < index.adapters, np.ones(index.adapters, bool)) for row in rows]


def own_out(index: Index) -> list[Query]:
    """The same, without the adapters that have learnt from the row's task; its other measured rows stay."""
    rows = np.flatnonzero((index.answers >= 0) & (index.owners < index.adapters))
    library = index.owners < index.adapters
    return [_query(index, row, library, ~index.seen[index.owners[row]]) for row in rows]


def unfamiliar(index: Index, known: int, draw: int = 0) -> tuple[list[Query], list[Query]]:
    """Labelled rows of tasks without an adapter: `known` of each task, drawn at random, and the others.

    Each may retrieve the library's examples and the known rows of its task.
    """
    deal = np.random.default_rng(1000 + draw)
    learnt: list[Query] = []
    asked: list[Query] = []
    for task in range(index.adapters, len(index.tasks)):
        rows = deal.permutation(np.flatnonzero((index.answers >= 0) & (index.owners == task)))
        allowed = index.owners < index.adapters
        allowed[rows[:known]] = True
        found = [_query(index, row, allowed, np.ones(index.adapters, bool)) for row in rows]
        learnt += found[:known]
        asked += found[known:]
    return learnt, asked


def _query(index: Index, row: int, allowed: npt.NDArray[np.bool_], usable: npt.NDArray[np.bool_]) -> Query:
    similarities = np.where(allowed, index.vectors @ index.vectors[row], -np.inf)
    similarities[row] = -np.inf
    near = np.argsort(-similarities)[:400]
    return Query(row, int(index.owners[row]), near, similarities[near], usable)


def by_similarity(index: Index, query: Query, k: int = 30) -> Floats:
    """The weights of similarity, among the tasks whose adapters may answer."""
    may = np.append(query.usable, np.zeros(len(index.tasks) - index.adapters, bool))[index.owners[query.examples]]
    near = query.examples[may][:k]
    found = weigh(index.owners[near].tolist(), query.similarities[may][:k].tolist(), Settings())
    weights = np.zeros(index.adapters)
    weights[found.tasks] = found.weights
    return weights


def by_gains(rule: Rule, shuffle: bool = False) -> Weigh:
    """The weights of a rule; `shuffle`: a control, each row's gains dealt among the adapters."""
    deal = np.random.default_rng(0)

    def weights_of(index: Index, query: Query) -> Floats:
        near = query.examples[: rule.k]
        gains = np.where(query.usable, index.gains[near] + rule.accuracy * index.turned[near], np.nan)
        expected = expect(query.similarities[: rule.k].tolist(), gains, rule.settings())
        if shuffle:
            known = np.flatnonzero(~np.isnan(expected))
            expected[known] = expected[deal.permutation(known)]
        weights = weigh_by_gain(expected, rule.settings())
        if rule.shares == "equal":
            weights = (weights > 0) / max(1, (weights > 0).sum())
        elif rule.shares != "gain":
            shares = np.exp((query.similarities[: rule.k] - query.similarities[0]) / rule.temperature)
            mass = np.bincount(index.owners[near], shares, len(index.tasks))[: index.adapters] + 1e-6
            weights = weights * mass / ((weights * mass).sum() or 1)
        return weights

    return weights_of


@dataclass
class Outcome:
    """What a rule comes to on queries; figures count every task alike."""

    right: list[bool] = field(default_factory=list)
    log: list[float] = field(default_factory=list)
    base_right: list[bool] = field(default_factory=list)
    tasks: list[int] = field(default_factory=list)
    adapters: list[int] = field(default_factory=list)
    expected: list[float] = field(default_factory=list)

    def mean(self, values: Sequence[float]) -> float:
        tasks = np.array(self.tasks)
        return float(np.mean([np.mean(np.array(values, float)[tasks == task]) for task in np.unique(tasks)]))

    def line(self, names: Sequence[str]) -> str:
        """Accuracy, over the base model's, worst task, log-probability, adapters, share of the base model alone."""
        tasks, differences = np.array(self.tasks), {}
        for task in np.unique(tasks):
            mine = tasks == task
            differences[names[task]] = np.array(self.right)[mine].mean() - np.array(self.base_right)[mine].mean()
        worst = min(differences, key=lambda task: differences[task])
        return (
            f"{100 * self.mean(self.right):.1f} | {100 * np.mean(list(differences.values())):+.1f} | "
            f"{worst} {100 * differences[worst]:+.0f} | {self.mean(self.log):.3f} | {np.mean(self.adapters):.1f} | "
            f"{100 * self.mean([not each for each in self.adapters]):.0f} %"
        )


def outcome(index: Index, queries: Sequence[Query], rule: Weigh) -> Outcome:
    """Answer the queries; adapters of which nothing is known on a row are left out of its mix."""
    found = Outcome()
    for query in queries:
        scores, answer = index.scores[query.row], index.answers[query.row]
        choices = ~np.isnan(scores[0])
        weights = np.where(np.isnan(scores[1:, 0]), 0, rule(index, query))
        mixed = weights @ np.nan_to_num(scores[1:, choices]) / weights.sum() if weights.any() else scores[0, choices]
        found.right.append(bool(mixed.argmax() == answer))
        found.log.append(float(mixed[answer] - np.logaddexp.reduce(mixed)))
        found.base_right.append(bool(scores[0, choices].argmax() == answer))
        found.tasks.append(query.task)
        found.adapters.append(int((weights > 0).sum()))
    return found


HEAD = (
    "| rule | right | over base | worst task | log-probability | adapters | base alone |\n|---|---|---|---|---|---|---|"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rows", type=int, default=32, help="labelled rows a task to score; 0: only try rules")
    options = parser.parse_args()
    if options.rows:
        score(options.data, options.rows)
    index = read_index()
    groups = {
        "library tasks": own_in(index),
        "own adapter kept out, labelled rows kept in": own_out(index),
        "unfamiliar, no labelled rows": unfamiliar(index, 0)[1],
    }
    # One draw of 16 rows says little: the next is up to ten points better or worse.
    for known in (16, 48):
        asked = [each for draw in range(DRAWS) for each in unfamiliar(index, known, draw)[1]]
        groups[f"unfamiliar, {known} labelled rows, {DRAWS} draws"] = asked
    rule = Rule()
    for name, queries in groups.items():
        print(f"\n{name}: {len(queries)} rows\n\n{HEAD}")
        lines: dict[str, Weigh] = {
            "base": lambda index, _: np.zeros(index.adapters),
            "similarity": by_similarity,
            "nearest": lambda index, query: (w := by_similarity(index, query)) * (w == w.max()),
            "measured": by_gains(rule),
            "measured, gains shuffled": by_gains(rule, shuffle=True),
            "measured, never base alone": by_gains(replace(rule, gain_margin=-1000.0)),
        }
        for setting, values in TRIED.items():
            lines |= {f"{setting} {value}": by_gains(replace(rule, **{setting: value})) for value in values}
        for label, weigh_by in lines.items():
            print(f"| {label} | {outcome(index, queries, weigh_by).line(index.tasks)} |", flush=True)


if __name__ == "__main__":
    main()
