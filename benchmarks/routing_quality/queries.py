"""The rows that are routed, each worded in several ways."""

import random
from pathlib import Path

from benchmarks.evaluation.asked import HANDWRITTEN, TEXTS, handwritten_examples, texts_of
from benchmarks.routing_quality.index import Index, Query
from loracomp.lab.catalogue import Phrased, load_entry, read_examples
from loracomp.lab.catalogue.leaks import SHORTEST_SHARED
from loracomp.lab.catalogue.reading import rows_of


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
