"""The format in which an example or a job becomes a vector. It has a version, and is the same for both."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Shown: TypeAlias = tuple[str, Sequence[str] | None]
"""A prompt and its choices; the choices are None if the answer is free text."""
Vector: TypeAlias = npt.NDArray[np.float32]

INPUT_FORMAT_VERSION = 3
"""Version of this file's format, stored with each encoder. Raise it with each change: examples are embedded again."""

VIEWS = 2
"""Number of texts of a job that the encoder embeds: its prompt, and its choices."""

PROMPT_LENGTHS = np.geomspace(8, 16384, 34)[1:-1]
CHOICE_LENGTHS = np.geomspace(2, 512, 26)[1:-1]
"""Steps of the scales for lengths, in characters. Each step is 1.26 (prompt) or 1.25 (choices) times the one before."""
COUNTS = 8
"""Classes of the number of choices: 0 to 6, and more."""
SHAPE = len(PROMPT_LENGTHS) + len(CHOICE_LENGTHS) + COUNTS
PROMPT_LENGTH_SHARE, CHOICE_LENGTH_SHARE, COUNT_SHARE = 0.15, 0.1, 0.1
"""Shares of the three parts of the shape in the cosine of two vectors.

The embeddings of prompt and choices have half of the rest each. Chosen on train rows (docs/decisions.md).
"""


def encoder_views(prompt: str, choices: Sequence[str] | None) -> tuple[str, str | None]:
    """The two texts to embed: the prompt, and the choices joined by ' | ' (None without choices).

    Choices are embedded apart because they show what kind of answer is asked for; in one text with a long prompt, the
    encoder would hardly notice them or cut them off. docs/decisions.md compares both.
    """
    return prompt, " | ".join(choices) if choices else None


def shape(prompt: str, choices: Sequence[str] | None) -> Vector:
    """Vector [SHAPE] of the prompt's length, the choices' length and their number, which embeddings hardly contain.

    A length is encoded as a thermometer on a logarithmic scale: the inner product of two lengths falls linearly with
    the logarithm of their ratio. The number of choices is one-hot over COUNTS. Without choices, the part for their
    length is zero. The norm of each part is the square root of its share in the cosine.
    """
    count = np.zeros(COUNTS)
    count[min(len(choices or ()), COUNTS - 1)] = 1
    parts = (
        np.sqrt(PROMPT_LENGTH_SHARE) * _thermometer([prompt], PROMPT_LENGTHS),
        np.sqrt(CHOICE_LENGTH_SHARE) * _thermometer(choices or (), CHOICE_LENGTHS),
        np.sqrt(COUNT_SHARE) * count,
    )
    return np.concatenate(parts).astype(np.float32)


def _thermometer(texts: Sequence[str], steps: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Unit vector [steps]: positive at each step that the texts' mean length reaches, else negative. No text: zeros."""
    if not texts:
        return np.zeros(len(steps))
    length = sum(map(len, texts)) / len(texts)
    reached: npt.NDArray[np.float64] = np.where(length >= steps, 1, -1) / np.sqrt(len(steps))
    return reached


def vector_dimensions(embedding_dimensions: int) -> int:
    """Length of the vectors that `join_views` makes from embeddings of this length."""
    return VIEWS * embedding_dimensions + SHAPE


def join_views(prompt: Vector, choices: Vector | None, shaped: Vector) -> Vector:
    """A job's unit vector [2 d + SHAPE], from the unit embeddings [d] of its prompt and its choices, and its shape.

    The cosine of two such vectors is the weighted mean of the similarities of their prompts, choices and shapes.
    Without choices their part is zero, so jobs and examples without choices are nearest to each other.
    """
    share = np.sqrt((1 - PROMPT_LENGTH_SHARE - CHOICE_LENGTH_SHARE - COUNT_SHARE) / VIEWS)
    texts = (share * prompt, share * (np.zeros_like(prompt) if choices is None else choices))
    vector: Vector = np.concatenate((*texts, shaped)).astype(np.float32)
    return vector / np.float32(np.linalg.norm(vector))
