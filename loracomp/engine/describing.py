"""The similarity of a prompt to each described choice of its job (docs/routing.md, "Described choices")."""

import hashlib
from collections.abc import Hashable, Sequence
from typing import TypeAlias

import numpy as np

from loracomp.composition.cache import ByteLimitedCache
from loracomp.model.encoder import Encoder, Part, Vector
from loracomp.records import Job, LabelledRow

KEPT_BYTES = 8 << 20
"""Memory for embeddings that are kept for later jobs: about 4,500 descriptions or labelled rows."""


TEXTS_IN_A_PIECE = 16
"""Texts embedded in one piece: a tenth of a second's work if they are short, and two seconds' at most. A job may
describe a thousand choices."""

Asked: TypeAlias = tuple[str, Part | None]
"""A text, and the part of it whose embedding is asked for; None for the whole text."""


class Describer:
    """Embeds choices with their descriptions, and labelled rows; a text that was used lately is not embedded again."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._kept: ByteLimitedCache[bytes, Vector] = ByteLimitedCache(KEPT_BYTES)

    def begin(self, job: Job, rows: Sequence[LabelledRow]) -> "Described":
        """What must be embedded for a job: its described choices, and the corresponding part of each labelled row."""
        return Described(_described_choices(job), [(row.prompt, _same_part(job, row.prompt)) for row in rows])

    def embed_some(self, described: "Described") -> None:
        """Take over what was embedded lately, and embed a piece of the rest."""
        kept = {each: vector for each in described.left if (vector := self._kept.get(_digest(each))) is not None}
        described.found |= kept
        if some := described.left[:TEXTS_IN_A_PIECE]:
            _, embedded = self._encoder.embed_parts([text for text, _ in some], [part for _, part in some])
            for each, embedding in zip(some, embedded, strict=True):
                described.found[each] = embedding
                self._kept.put(_digest(each), embedding, embedding.nbytes + 200)


class Described:
    """The described choices of a job, and its labelled rows, with the embeddings that are there so far."""

    def __init__(self, choices: Sequence[str], rows: Sequence[Asked]) -> None:
        self._choices: Sequence[Asked] = [(choice, None) for choice in choices]
        self._rows = rows
        self.found: dict[Asked, Vector] = {}

    @property
    def left(self) -> list[Asked]:
        """What is to be embedded, each text once."""
        return [each for each in dict.fromkeys([*self._choices, *self._rows]) if each not in self.found]

    def similarities(self, text: Vector) -> Vector:
        """Cosine similarities of an embedding to each choice."""
        return self._of_choices @ text

    @property
    def row_similarities(self) -> Vector | None:
        """Cosine similarities [rows, choices] of the rows; None if there are none."""
        return np.stack([self.found[each] for each in self._rows]) @ self._of_choices.T if self._rows else None

    @property
    def _of_choices(self) -> Vector:
        return np.stack([self.found[each] for each in self._choices])


def _digest(text: Hashable) -> bytes:
    """The key under which an embedding is kept; a digest, so that a worker keeps no text of an erased job or row."""
    return hashlib.sha256(repr(text).encode()).digest()


def _described_choices(job: Job) -> list[str]:
    """The texts that are embedded, one for each choice."""
    return [f"{choice}: {meant}" for choice, meant in zip(job.choices or (), job.descriptions or (), strict=True)]


def _same_part(job: Job, prompt: str) -> Part | None:
    """What lies in another prompt between the words around the job's text; None if it has other words there."""
    if job.text_at is None:
        return None
    before, after = job.prompt[: job.text_at[0]], job.prompt[job.text_at[1] :]
    part = (len(before), len(prompt) - len(after))
    return part if part[0] < part[1] and prompt.startswith(before) and prompt.endswith(after) else None
