"""How well routing finds a row's task, in NumPy: what docs/routing.md tabulates, in Markdown.

    python -m benchmarks.routing_quality DATA [--split train] [--rows 20] [--library FOLDER] [--cache FILE.npz]

DATA holds TASK/train.jsonl and TASK/validation.jsonl. The index is the library's examples; queries are rows of the
split, as many of each task. Of train, only rows none of whose longer texts (a passage, a premise) stands in an example
of the library: settings are chosen on these, and validation is for the report. Rows of tasks that the library lacks
are routed too.
"""

import argparse
import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.evaluation.asked import HANDWRITTEN, TEXTS, handwritten_examples, texts_of
from loracomp.lab.catalogue import Phrased, entry_names, load_entry, read_examples
from loracomp.lab.catalogue.leaks import SHORTEST_SHARED
from loracomp.lab.catalogue.reading import rows_of
from loracomp.model.encoder import Encoder, load_encoder
from loracomp.model.encoding import (
    CHOICE_LENGTH_SHARE,
    CHOICE_LENGTHS,
    COUNT_SHARE,
    PROMPT_LENGTH_SHARE,
    PROMPT_LENGTHS,
    SHAPE,
    VIEWS,
    shape,
)
from loracomp.registry.library_files import PACKAGED, read_examples_file, read_manifest

Array = npt.NDArray[np.float64]

OTHER_WORDS = {
    "True": "entailment", "False": "contradiction", "Neither": "neutral", "yes": "Yes", "no": "No",
    "negative": "Negative", "positive": "Positive",
}  # fmt: skip
YES_AND_NO = {
    "True": "yes", "False": "no", "Neither": "maybe", "yes": "true", "no": "false",
    "negative": "bad", "positive": "good",
}  # fmt: skip


@dataclass(frozen=True)
class Query:
    """A row of a data set, worded in several ways."""

    task: str
    family: str
    prompts: dict[str, str]
    choices: tuple[str, ...]


@dataclass(frozen=True)
class Settings:
    k: int = 30
    temperature: float = 0.1
    top_p: float = 0.95
    max_adapters: int = 8


@dataclass(frozen=True)
class Shares:
    """Shares in the cosine, as in `model.encoding`; `prompt` is the prompt's part of the share that texts have."""

    prompt_length: float = PROMPT_LENGTH_SHARE
    choice_length: float = CHOICE_LENGTH_SHARE
    count: float = COUNT_SHARE
    prompt: float = 0.5

    @property
    def texts(self) -> float:
        return 1 - self.prompt_length - self.choice_length - self.count


NO_SHAPE = Shares(0, 0, 0)
PARTS = np.cumsum([len(PROMPT_LENGTHS), len(CHOICE_LENGTHS)])
"""Indexes at which the parts of a shape end: the prompt's length, the choices' length, their number."""


class Index:
    """A library's examples: unit vectors of prompts and choices [n, d], parts of the shape, and tasks."""

    def __init__(self, folder: Path) -> None:
        manifest = read_manifest(folder)
        self.encoder = manifest.encoder.source
        self.tasks = sorted(manifest.tasks)
        self.families = np.array([manifest.tasks[task].family for task in self.tasks])
        files = [read_examples_file(folder, task) for task in self.tasks]
        self.source_refs = [reference for file in files for reference in file.source_refs]
        vectors = np.concatenate([file.embeddings for file in files]).astype(float)
        texts, shapes = np.split(vectors, [vectors.shape[1] - SHAPE], axis=1)
        self.prompts, self.choices = map(unit, np.split(texts, VIEWS, axis=1))
        self.shapes = [unit(part) for part in np.split(shapes, PARTS, axis=1)]
        self.owners = np.repeat(np.arange(len(files)), [len(file.source_refs) for file in files])
        self.places = np.concatenate([np.arange(len(file.source_refs)) for file in files])


def unit(vectors: Array) -> Array:
    """The vectors scaled to length 1; zero vectors stay zero."""
    lengths: Array = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def queries_of(task: str, folder: Path, split: str, count: int, index: Index) -> list[Query]:
    """Rows of a task in a fixed random order; train rows only if they share no text with the index."""
    entry = load_entry(task)
    examples = {example.source_ref: example for example in read_examples(entry, split, str(folder))}
    raw = {f"{task}/{split}#{n}": row for n, row in enumerate(rows_of(str(folder), None, split, ""))}
    texts = {reference: texts_of(task, raw[reference]) for reference in examples}
    embedded = set(index.source_refs)
    taken = {text for ref in texts.keys() & embedded for text in texts[ref] if len(text) >= SHORTEST_SHARED}
    free = [reference for reference in examples if reference not in embedded]
    free = [reference for reference in free if split != "train" or taken.isdisjoint(texts[reference])]
    random.Random(0).shuffle(free)
    return [
        Query(
            task, entry.family, _prompts(examples[ref].prompt, TEXTS[task][0], texts[ref]), examples[ref].choices or ()
        )
        for ref in free[:count]
    ]


def _prompts(prompt: str, template: str, texts: list[str]) -> dict[str, str]:
    return {
        "catalogue's template": prompt,
        "bare": "\n".join(texts),
        "bare, fields reversed": "\n".join(reversed(texts)),
        "another template": template.format(*texts),
    }


class Embedder:
    """The encoder with a cache of embeddings, optionally in a file, which contains hashes of the texts, no texts."""

    def __init__(self, encoder: Encoder, cache: Path | None) -> None:
        self._encoder, self._cache = encoder, cache
        self._known: dict[str, Array] = {}
        if cache and cache.is_file():
            stored = np.load(cache)
            self._known = dict(zip(stored["keys"].tolist(), stored["vectors"], strict=True))

    def __call__(self, texts: Sequence[str]) -> Array:
        """Unit vectors [n, d] of single texts."""
        keys = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
        unknown = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._known}
        for some in batched(sorted(unknown, key=lambda key: len(unknown[key])), 512):
            vectors = self._encoder.encode([(unknown[key], None) for key in some])
            prompts = unit(vectors[:, : (self._encoder.dimensions - SHAPE) // VIEWS])
            self._known |= dict(zip(some, prompts, strict=True))
            if self._cache:
                np.savez(self._cache, keys=list(self._known), vectors=np.array(list(self._known.values())))
        return np.array([self._known[key] for key in keys], dtype=float)


def batched(keys: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (keys[start : start + size] for start in range(0, len(keys), size))


def joined(choices: Sequence[str]) -> str:
    return " | ".join(choices)


def nearest(similarities: Array, owners: npt.NDArray[np.int64], k: int = 200) -> tuple[Array, npt.NDArray[np.int64]]:
    """For each row its k largest similarities [m, k], in descending order, and their tasks."""
    some = np.argpartition(-similarities, min(k, similarities.shape[1]) - 1, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(similarities, some, 1), axis=1)
    best = np.take_along_axis(some, order, 1)
    return np.take_along_axis(similarities, best, 1), owners[best]


def weigh(found: tuple[Array, npt.NDArray[np.int64]], tasks: int, use: Settings) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Probabilities [m, tasks], and which tasks the nucleus keeps, as in `loracomp.task_weights`."""
    similarities, owners = found[0][:, : use.k], found[1][:, : use.k]
    shares = np.exp((similarities - similarities[:, :1]) / use.temperature)
    shares /= shares.sum(1, keepdims=True)
    place = (np.arange(len(shares))[:, None] * tasks + owners).ravel()
    masses: Array = np.bincount(place, shares.ravel(), len(shares) * tasks).reshape(len(shares), tasks)
    order = np.argsort(-masses, axis=1, kind="stable")
    falling = np.take_along_axis(masses, order, 1)
    kept = (falling > 0) & (np.arange(tasks) < use.max_adapters)
    kept &= np.cumsum(falling, 1) - falling < use.top_p - 1e-9
    inside = np.zeros_like(kept)
    np.put_along_axis(inside, order, kept, 1)
    return masses, inside


class Similarities:
    """Similarities [m, n] between queries and the examples of an index, separately for each part of the vectors."""

    def __init__(self, index: Index, queries: Sequence[Query], embed: Embedder) -> None:
        self._index, self._queries = index, queries
        texts = embed([joined(query.choices) for query in queries])
        # For a query without choices this part of the similarity is 0.
        self._choices = texts @ index.choices.T * np.array([[bool(query.choices)] for query in queries])
        forms = queries[0].prompts
        self._prompts = {form: embed([q.prompts[form] for q in queries]) @ index.prompts.T for form in forms}
        self._shapes = {form: self._shape(form) for form in forms}

    def _shape(self, form: str) -> list[Array]:
        shapes = np.array([shape(query.prompts[form], query.choices) for query in self._queries])
        parts = map(unit, np.split(shapes.astype(float), PARTS, axis=1))
        return [ours @ theirs.T for ours, theirs in zip(parts, self._index.shapes, strict=True)]

    def __call__(self, form: str, shares: Shares = Shares()) -> Array:
        """The cosines that `loracomp.model.encoding.join_views` would give with these shares."""
        parts = (self._prompts[form], self._choices, *self._shapes[form])
        weights = (
            shares.texts * shares.prompt,
            shares.texts * (1 - shares.prompt),
            shares.prompt_length,
            shares.choice_length,
            shares.count,
        )
        chosen = np.array([[bool(query.choices)] for query in self._queries])
        missing = np.where(chosen, 0, weights[1] + weights[3])
        total: Array = sum(weight * part for weight, part in zip(weights, parts, strict=True)) / np.sqrt(1 - missing)
        return total


class Bench:
    """Evaluates queries against an index; figures are means over tasks, which all have the same weight."""

    def __init__(self, index: Index, queries: list[Query], embed: Embedder) -> None:
        self.index, self.queries, self.embed = index, queries, embed
        self.own = np.array([index.tasks.index(query.task) for query in queries])
        self.forms = list(queries[0].prompts)
        self.similarities = Similarities(index, queries, embed)

    def with_shares(self, shares: Shares) -> Callable[[str], Array]:
        return lambda form: self.similarities(form, shares)

    def with_choices(self, words: Callable[[Query], Sequence[str]]) -> Callable[[str], Array]:
        return Similarities(self.index, [replace(q, choices=tuple(words(q))) for q in self.queries], self.embed)

    def row(
        self, label: str, similarities: Callable[[str], Array], use: Settings, chosen: npt.NDArray[np.bool_]
    ) -> str:
        """A line of a table: for each form true task first, its family first, true task inside (%), adapters."""
        found = [nearest(similarities(form)[:, chosen], self.index.owners[chosen]) for form in self.forms]
        cells = ["{:.1f} / {:.1f} / {:.1f} / {:.2f}".format(*self._means(each, use)) for each in found]
        return f"| {label} | {' | '.join(cells)} |"

    def _means(self, found: tuple[Array, npt.NDArray[np.int64]], use: Settings) -> Array:
        masses, inside = weigh(found, len(self.index.tasks), use)
        first, each = masses.argmax(1), np.arange(len(masses))
        families = self.index.families
        shares = [first == self.own, families[first] == families[self.own], inside[each, self.own]]
        figures = np.array([*(100.0 * share for share in shares), inside.sum(1)])
        means: Array = np.mean([figures[:, self.own == task].mean(1) for task in np.unique(self.own)], axis=0)
        return means

    def table(self, title: str, lines: Sequence[tuple[str, Callable[[str], Array], Settings]]) -> None:
        everything = np.ones(len(self.index.owners), dtype=bool)
        print(self.head(title))
        for label, similarities, use in lines:
            print(self.row(label, similarities, use, everything), flush=True)

    def head(self, title: str) -> str:
        return f"\n| {title} | {' | '.join(self.forms)} |\n|{'---|' * (len(self.forms) + 1)}"

    def examples_a_task(self, counts: Sequence[int]) -> None:
        print(self.head("examples a task"))
        for count in counts:
            print(self.row(str(count), self.similarities, Settings(), self.index.places < count), flush=True)

    def by_task(self, form: str) -> None:
        masses, inside = weigh(nearest(self.similarities(form), self.index.owners), len(self.index.tasks), Settings())
        print(f"\n| {form} | n | family first | inside | adapters | first |\n|---|---|---|---|---|---|")
        for number, task in enumerate(self.index.tasks):
            if not (rows := self.own == number).any():
                continue
            first = masses[rows].argmax(1)
            family = (self.index.families[first] == self.index.families[number]).mean()
            figures = f"{family:.1%} | {inside[rows, number].mean():.1%} | {inside[rows].sum(1).mean():.2f}"
            print(f"| {task} | {rows.sum()} | {figures} | {most(self.index.tasks[place] for place in first)} |")


def most(tasks: Iterable[str]) -> str:
    counts = Counter(tasks)
    return ", ".join(f"{task} {count / counts.total():.0%}" for task, count in counts.most_common(4))


def sweeps(bench: Bench) -> None:
    """Print tables of the settings among which the defaults were chosen."""
    shares = {
        "prompt alone": 1.0,
        "choices alone": 0.0,
        "0.7 prompt": 0.7,
        "0.6 prompt": 0.6,
        "halves": 0.5,
        "0.4 prompt": 0.4,
    }
    bench.table(
        "views", [(label, bench.with_shares(Shares(prompt=share)), Settings()) for label, share in shares.items()]
    )
    shapes = [(0, 0, 0), (0.15, 0, 0), (0, 0.1, 0), (0, 0, 0.1), (0.1, 0.05, 0.05), (0.15, 0.05, 0.1), (0.15, 0.1, 0.1)]
    shapes += [(0.2, 0.1, 0.1), (0.25, 0.1, 0.1), (0.2, 0.1, 0.2), (0.3, 0.15, 0.1)]
    bench.table("shape", [(str(each), bench.with_shares(Shares(*each)), Settings()) for each in shapes])
    grid = [(k, t, p) for k in (10, 20, 30, 50, 100) for t in (0.05, 0.1, 0.2) for p in (0.9, 0.95)]
    bench.table(
        "k, temperature, top_p",
        [(f"{k}, {t}, {p}", bench.similarities, Settings(k=k, temperature=t, top_p=p)) for k, t, p in grid],
    )
    bench.table("adapters at most", [(str(n), bench.similarities, Settings(max_adapters=n)) for n in (3, 4, 6)])
    bench.examples_a_task([25, 50, 100, 200, 300])


def robustness(bench: Bench) -> None:
    """Print how routing works if a job's choices are not the catalogue's, or if it has none."""
    worded: dict[str, Callable[[Query], Sequence[str]]] = {
        "the catalogue's": lambda query: query.choices,
        "in reverse order": lambda query: query.choices[::-1],
        "in other words (entailment, ...)": lambda query: [OTHER_WORDS.get(choice, choice) for choice in query.choices],
        "as yes, no, maybe": lambda query: [YES_AND_NO.get(choice, choice) for choice in query.choices],
        "none: generated": lambda query: (),
    }
    bench.table("choices", [(label, bench.with_choices(words), Settings()) for label, words in worded.items()])


def one_text(bench: Bench, data: Path, count: int) -> None:
    """Compare prompt and choices embedded as one text with two separate texts, on `count` examples for each task."""
    few = bench.index.places < count
    entries = {task: read_examples(load_entry(task), "train", str(data / task)) for task in bench.index.tasks}
    texts = {each.source_ref: _one_text(each.prompt, each.choices) for rows in entries.values() for each in rows}
    references = [bench.index.source_refs[place] for place in np.flatnonzero(few)]
    examples = bench.embed([texts[reference] for reference in references])

    def similarities(form: str) -> Array:
        every = np.full((len(bench.queries), len(few)), -1.0)
        shown = [_one_text(query.prompts[form], query.choices) for query in bench.queries]
        every[:, few] = bench.embed(shown) @ examples.T
        return every

    print(bench.head(f"{count} examples a task"))
    for use in (Settings(k=20, top_p=0.9), Settings()):
        settings = f"k {use.k}, top_p {use.top_p}"
        print(bench.row(f"one text, {settings}", similarities, use, few), flush=True)
        print(bench.row(f"two views, {settings}", bench.with_shares(NO_SHAPE), use, few), flush=True)
        print(bench.row(f"two views and shape, {settings}", bench.similarities, use, few), flush=True)


def _one_text(prompt: str, choices: Sequence[str] | None) -> str:
    return f"{prompt}\n{joined(choices)}" if choices else prompt


def unseen(index: Index, queries: list[Query], embed: Embedder) -> None:
    """Print to which tasks and families rows are routed whose own task the library lacks."""
    print("\n| unseen task | prompts | family first | adapters | first |\n|---|---|---|---|---|")
    for task in sorted({query.task for query in queries}):
        rows = [query for query in queries if query.task == task]
        similarities = Similarities(index, rows, embed)
        for form in ("catalogue's template", "bare"):
            masses, inside = weigh(nearest(similarities(form), index.owners), len(index.tasks), Settings())
            first = masses.argmax(1)
            family = (index.families[first] == rows[0].family).mean()
            names = most(index.tasks[place] for place in first)
            print(f"| {task} | {form} | {family:.1%} | {inside.sum(1).mean():.2f} | {names} |")


def strangers(index: Index, data: Path, split: str, count: int, embed: Embedder) -> None:
    """Print how often the right family comes first, by the shares of the shape, for prompts in unfamiliar words.

    These are rows in held-out phrasings, and handwritten questions (which are not used to choose settings); both are
    means over rows.
    """
    worded = [query for task in index.tasks for query in held_out_queries(task, data / task, split, count, index)]
    groups = {"phrasings held out": worded, "written by hand": handwritten_queries(data)}
    found = {label: Similarities(index, queries, embed) for label, queries in groups.items()}
    shapes = [(0, 0, 0), (0.05, 0.05, 0.05), (0.075, 0.05, 0.05), (0, 0, 0.1), (0.15, 0.1, 0), (0.15, 0.1, 0.1)]
    print(f"\n| shape | {' | '.join(f'{label}, n {len(rows)}' for label, rows in groups.items())} |\n|---|---|---|")
    for each in shapes:
        cells = []
        for label, queries in groups.items():
            masses, _ = weigh(nearest(found[label]("", Shares(*each)), index.owners), len(index.tasks), Settings())
            families = np.array([query.family for query in queries])
            cells.append(f"{100 * (index.families[masses.argmax(1)] == families).mean():.1f}")
        print(f"| {each} | {' | '.join(cells)} |", flush=True)


def held_out_queries(task: str, folder: Path, split: str, count: int, index: Index) -> list[Query]:
    """Rows of a task that are not in the index, in held-out phrasings."""
    entry = load_entry(task)
    rows = [
        example
        for example in read_examples(entry, split, str(folder), phrased=Phrased.HELD_OUT)
        if example.source_ref not in set(index.source_refs)
    ]
    random.Random(0).shuffle(rows)
    return [Query(task, entry.family, {"": each.prompt}, each.choices or ()) for each in rows[:count]]


def handwritten_queries(data: Path) -> list[Query]:
    """The questions written by hand."""
    return [
        Query(task, family, {"": each.prompt}, each.choices or ())
        for task, family in HANDWRITTEN.items()
        for each in handwritten_examples(task, str(data))
    ]


def main() -> None:
    options = parse_arguments()
    index = Index(options.library)
    embed = Embedder(load_encoder(index.encoder), options.cache)
    if options.strangers:
        strangers(index, options.data, options.split, options.rows, embed)
        return
    rows = {
        task: queries_of(task, options.data / task, options.split, options.rows, index)
        for task in entry_names()
        if (options.data / task / f"{options.split}.jsonl").is_file()
    }
    known = [query for task in index.tasks for query in rows.pop(task, [])]
    print(f"{options.split}: {len(known)} rows of {len(index.tasks)} tasks, {len(index.owners)} examples")
    bench = Bench(index, known, embed)
    lines = [("without shape", bench.with_shares(NO_SHAPE), Settings()), ("chosen", bench.similarities, Settings())]
    bench.table("k 30, temperature 0.1, top_p 0.95", lines)
    for form in ("catalogue's template", "bare"):
        bench.by_task(form)
    robustness(bench)
    if options.split == "train":
        sweeps(bench)
        if options.one_text:
            one_text(bench, options.data, options.one_text)
    unseen(index, [query for task in rows for query in rows[task]], embed)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--split", choices=["train", "validation"], default="train")
    parser.add_argument("--rows", type=int, default=20, help="Queries a task at most.")
    parser.add_argument("--one-text", type=int, default=0, help="Examples a task to embed as one text.")
    parser.add_argument("--strangers", action="store_true", help="Only words that no example has, by hand as well.")
    parser.add_argument("--library", type=Path, default=PACKAGED)
    parser.add_argument("--cache", type=Path, help="Keep embeddings of queries in this .npz file.")
    return parser.parse_args()


if __name__ == "__main__":
    main()
