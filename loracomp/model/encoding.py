"""What an embedding holds of an example or a job: a versioned format, the same for both."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Shown: TypeAlias = tuple[str, Sequence[str] | None]
"""A prompt and its choices; None where the answer is free text."""
Vector: TypeAlias = npt.NDArray[np.float32]

INPUT_FORMAT_VERSION = 3
"""Stored with each encoder and its vectors. Whoever changes this file raises it: all examples are embedded again."""

VIEWS = 2
"""Texts of a job that the encoder embeds: its prompt, and its choices."""

PROMPT_LENGTHS = np.geomspace(8, 16384, 34)[1:-1]
CHOICE_LENGTHS = np.geomspace(2, 512, 26)[1:-1]
"""Steps of the scales in characters; 1.26 and 1.25 times the one before."""
COUNTS = 8
"""Numbers of choices that are told apart: 0 to 6, and more."""
SHAPE = len(PROMPT_LENGTHS) + len(CHOICE_LENGTHS) + COUNTS
PROMPT_LENGTH_SHARE, CHOICE_LENGTH_SHARE, COUNT_SHARE = 0.15, 0.1, 0.1
"""Of a cosine; prompt and choices have halves of the rest. Chosen on train (docs/routing.md)."""


def encoder_views(prompt: str, choices: Sequence[str] | None) -> tuple[str, str | None]:
    """The prompt, and the choices joined by ' | ', each embedded alone; None where there are no choices.

    Choices tell what kind of answer is asked, which in one text with the prompt is drowned, or cut off, by a long one.
    docs/routing.md has what other formats were worth.
    """
    return prompt, " | ".join(choices) if choices else None


def shape(prompt: str, choices: Sequence[str] | None) -> Vector:
    """Vector [SHAPE] of the prompt's length, the choices' length and number: sentence embeddings hardly contain these.

    A length is encoded as a thermometer on a logarithmic scale: the inner product of two lengths falls linearly with
    the logarithm of their ratio. The number of choices is one-hot over COUNTS. Without choices, their length is all
    zeros. The norm of each part is the square root of its share of the cosine.
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
    """Unit vector [steps]: positive for each that the texts' mean length reaches, else negative; of no text, zeros."""
    if not texts:
        return np.zeros(len(steps))
    length = sum(map(len, texts)) / len(texts)
    reached: npt.NDArray[np.float64] = np.where(length >= steps, 1, -1) / np.sqrt(len(steps))
    return reached


def vector_dimensions(embedding_dimensions: int) -> int:
    """Length of the vectors that `join_views` makes of embeddings [embedding_dimensions]."""
    return VIEWS * embedding_dimensions + SHAPE


def join_views(prompt: Vector, choices: Vector | None, shaped: Vector) -> Vector:
    """A job's vector of length 1 [2 d + SHAPE], from the unit embeddings of its views [d] and its shape.

    The cosine of two vectors is the weighted mean of their prompts', their choices' and their shapes' similarities.
    Without choices there is nothing in their place: such jobs and examples are nearest to each other.
    """
    share = np.sqrt((1 - PROMPT_LENGTH_SHARE - CHOICE_LENGTH_SHARE - COUNT_SHARE) / VIEWS)
    texts = (share * prompt, share * (np.zeros_like(prompt) if choices is None else choices))
    vector: Vector = np.concatenate((*texts, shaped)).astype(np.float32)
    return vector / np.float32(np.linalg.norm(vector))
