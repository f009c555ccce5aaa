"""What was computed for a prompt lately, so that the same prompt in another row of a table costs no pass.

A table may have many rows with the same text. Each row's job is still claimed, routed and recorded, because its answer
depends on the corrections and adapters of that moment. Only what the models computed is used again: the scores of the
choices under the same composition, and the encoder's vectors.

Keys are digests, because a worker keeps no text of a job that may be erased. They contain the submitter, because
otherwise the time that a job takes would tell whether somebody else has asked the same.
"""

import hashlib
from collections.abc import Hashable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from loracomp.composition.cache import ByteLimitedCache
from loracomp.model.encoder import Vector
from loracomp.records import Job, Request

KEPT_BYTES = 128 << 20
"""Memory for scores, and as much again for vectors. With SmolLM2 and MiniLM it holds the scores of some 45,000 prompts
and the vectors of some 25,000."""


class Scores(NamedTuple):
    """What a pass finds out about a prompt and its choices."""

    log_likelihoods: Tensor
    """[choices], on the CPU."""
    state: npt.NDArray[np.float32] | None
    """[d], the prompt's state (`model.states`), if the request reads it."""

    @property
    def nbytes(self) -> int:
        """Approximate memory in bytes."""
        return self.log_likelihoods.nbytes + (0 if self.state is None else self.state.nbytes) + 400


class KnownScores:
    """Scores of the requests that were scored lately."""

    def __init__(self) -> None:
        self._kept: ByteLimitedCache[bytes, Scores] = ByteLimitedCache(KEPT_BYTES)

    def get(self, key: bytes) -> Scores | None:
        """The scores under a key (`key_of`), or None."""
        return self._kept.get(key)

    def put(self, key: bytes, scores: Scores) -> None:
        """Keep scores for later requests with this key."""
        self._kept.put(key, scores, scores.nbytes)


def key_of(request: Request) -> bytes | None:
    """A digest of everything on which the scores of a request's choices depend; None if it must be scored itself."""
    if request.submitted_by is None or request.choices is None:
        return None
    return _digest(
        (
            request.submitted_by,
            request.prompt,
            request.choices,
            request.chat_template,
            request.system_text,
            request.composition,
            request.reads_state,
        )
    )


class KnownVectors:
    """What the encoder computed for the jobs that it encoded lately: a job's vector, and the embedding of its text."""

    def __init__(self) -> None:
        self._kept: ByteLimitedCache[bytes, tuple[Vector, Vector]] = ByteLimitedCache(KEPT_BYTES)

    def get(self, job: Job) -> tuple[Vector, Vector] | None:
        """The vectors of an earlier job with the same texts, or None."""
        return self._kept.get(_vectors_key(job))

    def put(self, job: Job, vector: Vector, compared: Vector) -> None:
        """Keep the vectors of a job for later ones; copies, because they may be views of a whole batch."""
        kept = vector.copy(), compared.copy()
        self._kept.put(_vectors_key(job), kept, vector.nbytes + compared.nbytes + 400)


def _vectors_key(job: Job) -> bytes:
    return _digest((job.submitted_by, job.prompt, job.choices, job.descriptions is not None and job.text_at))


def _digest(content: Hashable) -> bytes:
    return hashlib.sha256(repr(content).encode("utf-8", "surrogatepass")).digest()
