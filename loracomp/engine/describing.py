"""The similarity of a prompt to each described choice of its job (docs/routing.md, "Described choices")."""

import hashlib
from collections.abc import Callable, Hashable, Sequence
from functools import partial

import numpy as np

from loracomp.composition.cache import ByteLimitedCache
from loracomp.model.encoder import Encoder, Part, Vector
from loracomp.records import Job, LabelledRow

KEPT_BYTES = 8 << 20
"""Memory for embeddings that are kept for later jobs: about 4,500 descriptions or labelled rows."""


DESCRIPTIONS_TOGETHER = 64
"""Texts embedded in one piece, half a second's work; a job may describe a thousand choices."""

Embedded = tuple[Sequence[Vector], Sequence[Vector]]


class Describer:
    """Embeds choices with their descriptions, and labelled rows; a text that was used lately is not embedded again."""

    def __init__(
        self, encoder: Encoder, compute: Callable[[Callable[[], Embedded]], Embedded] = lambda embed: embed()
    ) -> None:
        """`compute` runs the encoder on some texts; in a worker that lets the model's passes go on in between."""
        self._encoder = encoder
        self._compute = compute
        self._kept: ByteLimitedCache[bytes, Vector] = ByteLimitedCache(KEPT_BYTES)

    def embed_choices(self, jobs: Sequence[Job]) -> dict[Job, Vector]:
        """Unit embeddings [choices, d] of the choices of each job that describes them."""
        texts = {job: _described_choices(job) for job in jobs if job.descriptions is not None}
        known = self._embedded([(text, None) for own in texts.values() for text in own])
        return {job: np.stack([known[text, None] for text in own]) for job, own in texts.items()}

    def embed_rows(self, job: Job, rows: Sequence[LabelledRow]) -> Vector:
        """Unit embeddings [rows, d] of labelled rows of a job: of the part that corresponds to the job's own."""
        asked = [(row.prompt, _same_part(job, row.prompt)) for row in rows]
        known = self._embedded(asked)
        return np.stack([known[each] for each in asked])

    def _embedded(self, asked: Sequence[tuple[str, Part | None]]) -> dict[tuple[str, Part | None], Vector]:
        known = {each: kept for each in asked if (kept := self._kept.get(_digest(each))) is not None}
        missing = list(dict.fromkeys(each for each in asked if each not in known))
        for start in range(0, len(missing), DESCRIPTIONS_TOGETHER):
            some = missing[start : start + DESCRIPTIONS_TOGETHER]
            texts, parts = [text for text, _ in some], [part for _, part in some]
            _, embedded = self._compute(partial(self._encoder.embed_parts, texts, parts))
            for each, embedding in zip(some, embedded, strict=True):
                known[each] = embedding
                self._kept.put(_digest(each), embedding, embedding.nbytes + 200)
        return known


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
