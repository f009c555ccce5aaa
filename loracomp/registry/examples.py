"""The record of an example, as every reader of examples makes it and the database stores it."""

import json
from dataclasses import dataclass
from typing import Any

HASH_VERSION = 1


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a dataset as the model sees it."""

    split: str
    prompt: str
    choices: tuple[str, ...] | None
    """None where the answer is free text."""
    answer: str
    """The right choice's text, or the free text."""
    content_hash: bytes
    """Sha256 of the fields that it was made of, as canonical JSON: the same row from the hub or from a folder."""
    source_ref: str
    """task/split#row, rows counted from 0 in the dataset that was read."""
    hash_version: int = HASH_VERSION

    @property
    def answer_index(self) -> int:
        """Place of the answer among the choices, from 0."""
        return (self.choices or ()).index(self.answer)


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no white space and no escapes: hash version 1."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
