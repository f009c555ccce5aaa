"""Prints tables: routing with the chosen settings, with others, and for words that no example has."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.routing_quality.index import (
    NO_SHAPE,
    Array,
    Embedder,
    Index,
    Query,
    Settings,
    Shares,
    Similarities,
    joined,
    nearest,
    weigh,
)
from benchmarks.routing_quality.queries import handwritten_queries, held_out_queries
from loracomp.lab.catalogue import load_entry, read_examples

OTHER_WORDS = {
    "True": "entailment", "False": "contradiction", "Neither": "neutral", "yes": "Yes", "no": "No",
    "negative": "Negative", "positive": "Positive",
}  # fmt: skip
YES_AND_NO = {
    "True": "yes", "False": "no", "Neither": "maybe", "yes": "true", "no": "false",
    "negative": "bad", "positive": "good",
}  # fmt: skip


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
        return self.line(label, found, use)

    def line(self, label: str, found: Sequence[tuple[Array, npt.NDArray[np.int64]]], use: Settings) -> str:
        """The same, from what was found for each form."""
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
