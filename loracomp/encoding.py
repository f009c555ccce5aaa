"""What the encoder is shown of an example or a job: a versioned format, the same for both."""

from collections.abc import Sequence
from typing import TypeAlias

Shown: TypeAlias = tuple[str, Sequence[str] | None]
"""A prompt and its choices; None where the answer is free text."""

INPUT_FORMAT_VERSION = 2
"""A change of `encoder_views` is a new version, and a new embedding of every example."""

VIEWS = 2


def encoder_views(prompt: str, choices: Sequence[str] | None) -> tuple[str, str | None]:
    """The prompt, and the choices joined by ' | ', each embedded alone; None where there are no choices.

    A vector is the two unit embeddings one after the other (zeros for None), brought to length 1, so that the cosine of
    two vectors is the mean of their prompts' and their choices' cosines. Choices tell what kind of answer is asked,
    which in one text with the prompt is drowned, or cut off, by a long one. Jobs and examples without choices are
    nearest to each other. docs/routing.md has what other formats were worth.
    """
    return prompt, " | ".join(choices) if choices else None
