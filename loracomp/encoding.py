"""What the encoder is shown of an example or a job: a versioned format, the same for both."""

from collections.abc import Sequence

INPUT_FORMAT_VERSION = 1
"""A change of `encoder_input` is a new version, and a new embedding of every example."""


def encoder_input(prompt: str, choices: Sequence[str] | None) -> str:
    """The prompt, then, where there are choices, a newline and the choices joined by ' | '."""
    return f"{prompt}\n{' | '.join(choices)}" if choices else prompt
