"""The similarity of a prompt to each described choice of its job (docs/routing.md, "Described choices")."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from loracomp.composition.composer import ByteLimitedCache
from loracomp.model.encoder import Encoder, Vector
from loracomp.records import Job, Request

KEPT_BYTES = 4 << 20
"""Memory for embeddings that are kept for later jobs: about 2,500 descriptions."""


class Describer:
    """Embeds choices together with their descriptions; a text that was used lately is not embedded again."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._kept: ByteLimitedCache[bytes, Vector] = ByteLimitedCache(KEPT_BYTES)

    def embedded(self, jobs: Sequence[Job]) -> dict[Job, Vector]:
        """Unit embeddings [choices, d] of the choices of each job that describes them."""
        texts = {job: _described_choices(job) for job in jobs if job.descriptions is not None}
        wanted = list(dict.fromkeys(text for own in texts.values() for text in own))
        known = {text: kept for text in wanted if (kept := self._kept.get(_digest(text))) is not None}
        missing = [text for text in wanted if text not in known]
        for text, embedding in zip(missing, self._encoder.embed(missing), strict=True):
            known[text] = embedding
            self._kept.put(_digest(text), embedding, embedding.nbytes + 200)
        return {job: np.stack([known[text] for text in own]) for job, own in texts.items()}


def _digest(text: str) -> bytes:
    """The key under which a text's embedding is kept; a digest, so that a worker keeps no text of an erased job."""
    return hashlib.sha256(text.encode()).digest()


def _described_choices(job: Job) -> list[str]:
    """The texts that are embedded, one for each choice."""
    return [f"{choice}: {meant}" for choice, meant in zip(job.choices or (), job.descriptions or (), strict=True)]


def described_request(request: Request, vector: Vector, described: Vector, weight: float) -> Request:
    """The request with the similarities of its prompt to its described choices.

    `vector` is the job's vector, and `weight` the weight of the similarities, in nats, if it is not fitted on labelled
    rows.
    """
    similar = similarities(vector, described).tolist()
    return replace(request, description_similarities=tuple(similar), score_weights=(1.0, 0.0, weight))


def similarities(vectors: npt.NDArray[np.floating], described: Vector) -> Vector:
    """Cosines [..., choices] between prompts, taken from jobs' vectors [..., dimensions], and choices [choices, d].

    A vector begins with the embedding of its prompt, scaled (`join_views`).
    """
    prompts = np.asarray(vectors[..., : described.shape[1]], np.float32)
    norms = np.linalg.norm(prompts, axis=-1, keepdims=True)
    cosines: Vector = (prompts / np.maximum(norms, np.float32(1e-12))) @ described.T
    return cosines
