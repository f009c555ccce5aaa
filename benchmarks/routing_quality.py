"""How well routing finds a row's task, in NumPy: what docs/routing.md tabulates, in Markdown.

    python benchmarks/routing_quality.py DATA [--split train] [--rows 20] [--library FOLDER] [--cache FILE.npz]

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
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from loracomp.catalogue import entry_names, load_entry, read_examples
from loracomp.catalogue.leaks import SHORTEST_SHARED
from loracomp.catalogue.reading import rows_of
from loracomp.encoding import VIEWS
from loracomp.registry.library_files import PACKAGED, read_examples_file, read_manifest
from loracomp.registry.models import Encoder, load_encoder

Array = npt.NDArray[np.float64]

NLI = ("Premise: {}\nHypothesis: {}\nDoes the premise imply the hypothesis?", "premise", "hypothesis")
REVIEW = ("{}\n\nHow does the writer feel?\n", "text")
QUESTION = ("{}\n\nPick the best option.\n", "question")
# A template that the library has never seen, and the columns that it takes: joined by newlines they are the bare text.
TEXTS: dict[str, tuple[str, ...]] = {
    "piqa": ("{}\n\nPick the best option.\n", "goal"),
    "hellaswag": ("{}. {}\nWhat happens next?", "activity_label", "ctx"),
    "winogrande": ("{}\n\nPick the best option.\n", "sentence"),
    "social_i_qa": ("Situation: {}\n{}", "context", "question"),
    "commonsense_qa": QUESTION,
    "copa": ("{}\nWhat was the {}?", "premise", "question"),
    "arc_easy": QUESTION,
    "arc_challenge": QUESTION,
    "qasc": QUESTION,
    "openbookqa": ("{}\n\nPick the best option.\n", "question_stem"),
    "boolq": ("Read this.\n{}\n\nQ: {}", "passage", "question"),
    "multirc": ("Read this.\n{}\n\nQ: {}\nProposed answer: {}\nIs that right?", "paragraph", "question", "answer"),
    "sciq": ("Read this.\n{}\n\nQ: {}", "support", "question"),
    "rte": (NLI[0], "sentence1", "sentence2"),
    "cb": NLI,
    "mnli": NLI,
    "snli": NLI,
    "anli": NLI,
    "scitail": NLI,
    "qnli": ("Q: {}\nContext: {}\nIs the answer in the context?", "question", "sentence"),
    "mrpc": ("A: {}\nB: {}\nParaphrase?", "sentence1", "sentence2"),
    "sst2": (REVIEW[0], "sentence"),
    "imdb": REVIEW,
    "rotten_tomatoes": REVIEW,
    "yelp_polarity": REVIEW,
    "amazon_polarity": ("Title: {}\nReview: {}\nHow does the writer feel?", "title", "content"),
}
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
    aggregation: str = "softmax_sum"
    nucleus: str = "tasks"
    top_p: float = 0.95
    max_adapters: int = 8


class Index:
    """A library's examples: prompts' and choices' unit vectors [n, d], and each one's task."""

    def __init__(self, folder: Path) -> None:
        manifest = read_manifest(folder)
        self.encoder = manifest.encoder.source
        self.tasks = sorted(manifest.tasks)
        self.families = np.array([manifest.tasks[task].family for task in self.tasks])
        files = [read_examples_file(folder, task) for task in self.tasks]
        self.source_refs = [reference for file in files for reference in file.source_refs]
        vectors = np.concatenate([file.embeddings for file in files]).astype(float) * np.sqrt(2)
        self.prompts, self.choices = np.split(vectors, 2, axis=1)
        self.owners = np.repeat(np.arange(len(files)), [len(file.source_refs) for file in files])
        self.places = np.concatenate([np.arange(len(file.source_refs)) for file in files])


def queries_of(task: str, folder: Path, split: str, count: int, index: Index) -> list[Query]:
    """Rows of a task in a fixed random order, of train those that share no text with the index."""
    entry = load_entry(task)
    examples = {example.source_ref: example for example in read_examples(entry, split, str(folder))}
    raw = {f"{task}/{split}#{n}": row for n, row in enumerate(rows_of(str(folder), None, split, ""))}
    template, *columns = TEXTS[task]
    texts = {reference: [str(raw[reference][column]).strip() for column in columns] for reference in examples}
    embedded = set(index.source_refs)
    taken = {text for ref in texts.keys() & embedded for text in texts[ref] if len(text) >= SHORTEST_SHARED}
    free = [reference for reference in examples if reference not in embedded]
    free = [reference for reference in free if split != "train" or taken.isdisjoint(texts[reference])]
    random.Random(0).shuffle(free)
    return [
        Query(task, entry.family, _prompts(examples[ref].prompt, template, texts[ref]), examples[ref].choices or ())
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
    """The encoder, which embeds a text once; with a file, once for ever. The file holds hashes, no text."""

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
            self._known |= dict(zip(some, vectors[:, : self._encoder.dimensions // VIEWS], strict=True))
            if self._cache:
                np.savez(self._cache, keys=list(self._known), vectors=np.array(list(self._known.values())))
        return np.array([self._known[key] for key in keys], dtype=float)


def batched(keys: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (keys[start : start + size] for start in range(0, len(keys), size))


def joined(choices: Sequence[str]) -> str:
    return " | ".join(choices)


def nearest(similarities: Array, owners: npt.NDArray[np.int64], k: int = 200) -> tuple[Array, npt.NDArray[np.int64]]:
    """The k largest similarities of each row [m, k], falling, and their tasks."""
    some = np.argpartition(-similarities, min(k, similarities.shape[1]) - 1, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(similarities, some, 1), axis=1)
    best = np.take_along_axis(some, order, 1)
    return np.take_along_axis(similarities, best, 1), owners[best]


def weigh(found: tuple[Array, npt.NDArray[np.int64]], tasks: int, use: Settings) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Probabilities [m, tasks] and what the nucleus keeps, as `loracomp.task_weights`."""
    similarities, owners = found[0][:, : use.k], found[1][:, : use.k]
    shares = np.exp((similarities - similarities[:, :1]) / use.temperature)
    shares /= shares.sum(1, keepdims=True)
    if use.nucleus == "examples":
        shares = np.where(np.cumsum(shares, 1) - shares < use.top_p - 1e-9, shares, 0)
    place = (np.arange(len(shares))[:, None] * tasks + owners).ravel()
    counts: Array = np.bincount(place, (shares > 0).ravel(), len(shares) * tasks)
    masses: Array = np.bincount(place, shares.ravel(), len(shares) * tasks)
    if use.aggregation == "vote":
        masses = counts
    elif use.aggregation == "mean":
        masses = masses / np.maximum(counts, 1)
    elif use.aggregation == "max":
        masses = np.zeros(len(masses))
        np.maximum.at(masses, place, shares.ravel())
    masses = masses.reshape(len(shares), tasks) / masses.reshape(len(shares), tasks).sum(1, keepdims=True)
    order = np.argsort(-masses, axis=1, kind="stable")
    falling = np.take_along_axis(masses, order, 1)
    kept = (falling > 0) & (np.arange(tasks) < use.max_adapters)
    if use.nucleus == "tasks":
        kept &= np.cumsum(falling, 1) - falling < use.top_p - 1e-9
    inside = np.zeros_like(kept)
    np.put_along_axis(inside, order, kept, 1)
    return masses, inside


class Bench:
    """Queries against an index; figures are means over tasks, each counting alike."""

    def __init__(self, index: Index, queries: list[Query], embed: Embedder) -> None:
        self.index, self.queries, self.embed = index, queries, embed
        self.own = np.array([index.tasks.index(query.task) for query in queries])
        self.choices = self.embed([joined(query.choices) for query in queries]) @ index.choices.T
        self.forms = list(queries[0].prompts)
        self.prompts = {form: self._prompts(form) @ index.prompts.T for form in self.forms}

    def _prompts(self, form: str) -> Array:
        return self.embed([query.prompts[form] for query in self.queries])

    def mixed(self, form: str, share: float = 0.5, choices: Array | None = None) -> Array:
        """Similarities [m, n]: `share` of the prompts', the rest of the choices'."""
        return share * self.prompts[form] + (1 - share) * (self.choices if choices is None else choices)

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
            print(self.row(str(count), self.mixed, Settings(), self.index.places < count), flush=True)

    def by_task(self, form: str) -> None:
        masses, inside = weigh(nearest(self.mixed(form), self.index.owners), len(self.index.tasks), Settings())
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
    """What was chosen among."""
    shares = {
        "prompt alone": 1.0,
        "choices alone": 0.0,
        "0.7 prompt": 0.7,
        "0.6 prompt": 0.6,
        "halves": 0.5,
        "0.4 prompt": 0.4,
    }
    bench.table("views", [(label, _share(bench, share), Settings()) for label, share in shares.items()])
    grid = [(k, t, p) for k in (10, 20, 30, 50, 100) for t in (0.05, 0.1, 0.2) for p in (0.9, 0.95)]
    bench.table(
        "k, temperature, top_p",
        [(f"{k}, {t}, {p}", bench.mixed, Settings(k=k, temperature=t, top_p=p)) for k, t, p in grid],
    )
    others = {
        "mean": Settings(aggregation="mean"),
        "max": Settings(aggregation="max"),
        "vote": Settings(aggregation="vote"),
        "nucleus over examples": Settings(nucleus="examples"),
        "nucleus over examples, top_p 0.8": Settings(nucleus="examples", top_p=0.8),
        **{f"at most {n} adapters": Settings(max_adapters=n) for n in (3, 4, 6)},
    }
    bench.table("aggregation, nucleus", [(label, bench.mixed, use) for label, use in others.items()])
    bench.examples_a_task([25, 50, 100, 200, 300])


def robustness(bench: Bench) -> None:
    """Choices that are not the catalogue's, or none."""
    worded = {
        "the catalogue's": lambda query: query.choices,
        "in reverse order": lambda query: query.choices[::-1],
        "in other words (entailment, ...)": lambda query: [OTHER_WORDS.get(choice, choice) for choice in query.choices],
        "as yes, no, maybe": lambda query: [YES_AND_NO.get(choice, choice) for choice in query.choices],
    }
    lines = []
    for label, words in worded.items():
        choices = bench.embed([joined(words(query)) for query in bench.queries]) @ bench.index.choices.T
        lines.append((label, _with_choices(bench, choices), Settings()))
    # Such a vector is the prompt's alone, and meets the prompts' halves of examples, 1 / sqrt(2) long.
    lines.append(("none: generated", lambda form: np.sqrt(0.5) * bench.prompts[form], Settings()))
    bench.table("choices", lines)


def one_text(bench: Bench, data: Path, count: int) -> None:
    """Version 1 of the input, prompt and choices in one text, beside two views: on `count` examples a task."""
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
        print(bench.row(f"two views, {settings}", bench.mixed, use, few), flush=True)


def _one_text(prompt: str, choices: Sequence[str] | None) -> str:
    return f"{prompt}\n{joined(choices)}" if choices else prompt


def _share(bench: Bench, share: float) -> Callable[[str], Array]:
    return lambda form: bench.mixed(form, share)


def _with_choices(bench: Bench, choices: Array) -> Callable[[str], Array]:
    return lambda form: bench.mixed(form, choices=choices)


def unseen(index: Index, queries: list[Query], embed: Embedder) -> None:
    """Where rows of tasks that the library lacks go."""
    print("\n| unseen task | prompts | family first | adapters | first |\n|---|---|---|---|---|")
    for task in sorted({query.task for query in queries}):
        rows = [query for query in queries if query.task == task]
        choices = embed([joined(query.choices) for query in rows]) @ index.choices.T
        for form in ("catalogue's template", "bare"):
            prompts = embed([query.prompts[form] for query in rows]) @ index.prompts.T
            masses, inside = weigh(nearest((prompts + choices) / 2, index.owners), len(index.tasks), Settings())
            first = masses.argmax(1)
            family = (index.families[first] == rows[0].family).mean()
            names = most(index.tasks[place] for place in first)
            print(f"| {task} | {form} | {family:.1%} | {inside.sum(1).mean():.2f} | {names} |")


def main() -> None:
    options = parse_arguments()
    index = Index(options.library)
    embed = Embedder(load_encoder(index.encoder), options.cache)
    rows = {
        task: queries_of(task, options.data / task, options.split, options.rows, index)
        for task in entry_names()
        if (options.data / task / f"{options.split}.jsonl").is_file()
    }
    known = [query for task in index.tasks for query in rows.pop(task, [])]
    print(f"{options.split}: {len(known)} rows of {len(index.tasks)} tasks, {len(index.owners)} examples")
    bench = Bench(index, known, embed)
    bench.table("chosen", [("two views, k 30, temperature 0.1, top_p 0.95", bench.mixed, Settings())])
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
    parser.add_argument("--one-text", type=int, default=0, help="Examples a task to embed in version 1 of the input.")
    parser.add_argument("--library", type=Path, default=PACKAGED)
    parser.add_argument("--cache", type=Path, help="Keep embeddings of queries in this .npz file.")
    return parser.parse_args()


if __name__ == "__main__":
    main()
