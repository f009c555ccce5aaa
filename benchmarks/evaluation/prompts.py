"""The validation rows that the evaluation answers, in each kind of prompt."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from loracomp.database.connections import Connection
from loracomp.registry.examples import Example
from loracomp.registry.tasks import add_task, import_examples
from loracomp_lab.catalogue import Phrased, load_entry, read_examples
from loracomp_lab.catalogue.reading import rows_of

NLI = ("Premise: {}\nHypothesis: {}\nDoes the premise imply the hypothesis?", "premise", "hypothesis")
REVIEW = ("{}\n\nHow does the writer feel?\n", "text")
QUESTION = ("{}\n\nPick the best option.\n", "question")
# For each task a template that no adapter was trained with, and the columns whose texts fill it. Prompts of the kind
# BARE don't use the template: they are the texts of the columns, one a line.
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
    "qqp": ("A: {}\nB: {}\nParaphrase?", "question1", "question2"),
    "sick": (NLI[0], "sentence_A", "sentence_B"),
    "subj": REVIEW,
    "trec": ("{}\n\nPick the best option.\n", "text"),
    "tweet_eval_sentiment": REVIEW,
    "sst2": (REVIEW[0], "sentence"),
    "imdb": REVIEW,
    "rotten_tomatoes": REVIEW,
    "yelp_polarity": REVIEW,
    "amazon_polarity": ("Title: {}\nReview: {}\nHow does the writer feel?", "title", "content"),
}
HANDWRITTEN = {
    "handwritten_sentiment": "sentiment",
    "handwritten_nli": "nli",
    "handwritten_reading": "question_answering",
    "handwritten_science": "question_answering",
    "handwritten_commonsense": "commonsense",
}
"""Tasks of handwritten questions, and the family of the library to which each belongs."""
BARE = "bare"
"""The kind of prompt that users might type: only the texts of a row's columns, without the words of a template."""
KINDS = (*map(str, Phrased), BARE)
"""The kinds of prompts for the rows of a data set. Each kind has a database of its own."""


def import_validation(connection: Connection, task: str, kind: str, data: str) -> None:
    """Import a task and its validation rows. Calling it again changes nothing."""
    if task in HANDWRITTEN:
        add_task(connection, task, family=HANDWRITTEN[task])
        import_examples(connection, task, handwritten_examples(task, data))
        return
    entry = load_entry(task)
    add_task(connection, task, family=entry.family, description=entry.description)
    import_examples(connection, task, validation_examples(task, kind, f"{data}/{task}"))


def validation_examples(task: str, kind: str, folder: str) -> Iterator[Example]:
    """The validation rows of a task in one kind of prompt. A row has the same `source_ref` in every kind."""
    entry = load_entry(task)
    if kind != BARE:
        yield from read_examples(entry, "validation", folder, phrased=Phrased(kind))
        return
    raw = list(rows_of(folder, None, "validation", ""))
    for example in read_examples(entry, "validation", folder):
        prompt = "\n".join(texts_of(task, raw[int(example.source_ref.partition("#")[2])]))
        yield replace(example, prompt=prompt)


def handwritten_examples(task: str, data: str) -> Iterator[Example]:
    """The questions of a handwritten task, in the order of the file."""
    lines = (Path(data) / "handwritten" / "validation.jsonl").read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        row = json.loads(line)
        if f"handwritten_{row['family']}" == task:
            reference, digest = f"{task}/validation#{number}", sha256(line.encode()).digest()
            yield Example("validation", row["prompt"], tuple(row["choices"]), row["answer"], digest, reference)


def texts_of(task: str, row: Mapping[str, Any]) -> list[str]:
    """The texts of a row's columns, in the order of TEXTS."""
    return [str(row[column]).strip() for column in TEXTS[task][1:]]
