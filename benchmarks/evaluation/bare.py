"""Rows as people type them: the texts of their columns, without a template's words, beside the choices."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace

from benchmarks.routing_quality import texts_of
from loracomp.database.connections import Connection
from loracomp.lab.catalogue import load_entry, read_examples
from loracomp.lab.catalogue.reading import rows_of
from loracomp.registry.examples import Example
from loracomp.registry.tasks import import_examples

from .plan import BARE


def import_bare(connection: Connection, task: str, data: str) -> None:
    """Import the validation rows of a task that is there once more, bare; running it again changes nothing."""
    import_examples(connection, task, bare_examples(task, f"{data}/{task}"))


def bare_examples(task: str, folder: str) -> Iterator[Example]:
    """The rows of `read_examples`, with `source_ref` as it is there: they are the same rows."""
    raw = list(rows_of(folder, None, "validation", ""))
    for example in read_examples(load_entry(task), "validation", folder):
        prompt = "\n".join(texts_of(task, raw[int(example.source_ref.partition("#")[2])]))
        content_hash = hashlib.sha256(b"bare" + example.content_hash).digest()  # a row stands in one split
        yield replace(example, split=BARE, prompt=prompt, content_hash=content_hash)
