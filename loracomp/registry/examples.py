"""The record of an example: every reader of examples returns it, and the database stores it."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loracomp.errors import RefusedError

HASH_VERSION = 1


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a dataset, with its prompt as the model sees it."""

    split: str
    prompt: str
    choices: tuple[str, ...] | None
    """The possible answers; None if the answer is free text."""
    label: str
    """The gold label: the text of the right choice, or the free text that is the right answer."""
    content_hash: bytes
    """Sha256 of the row's raw fields as canonical JSON, so that the same row has the same hash from any source."""
    source_ref: str
    """Where the row came from: task/split#row, with rows counted from 0."""
    hash_version: int = HASH_VERSION

    @property
    def label_index(self) -> int:
        """Index of the label among the choices, from 0."""
        return (self.choices or ()).index(self.label)

    @property
    def digest(self) -> bytes:
        """Sha256 of the content hash together with the prompt and choices, which phrasings change."""
        content = json.dumps([self.content_hash.hex(), self.prompt, self.choices])
        return hashlib.sha256(content.encode()).digest()


def json_object(line: str, place: str) -> dict[str, Any]:
    """Return the JSON object in a line. Raises RefusedError, which names the line, if it is not one."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"{place}: not JSON: {error}") from None
    if not isinstance(row, dict):
        raise RefusedError(f"{place}: a row is a JSON object, not {type(row).__name__}")
    return row


def content_hash(prompt: str, choices: Sequence[str] | None, label: str) -> bytes:
    """The content hash of an example that consists of these texts alone, as one of a user's file does."""
    row = {"prompt": prompt, "choices": None if choices is None else list(choices), "label": label}
    return hashlib.sha256(canonical_json(row).encode()).digest()


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no white space and no escapes, as hash version 1 needs it."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
