"""Finds prompts that begin with the same tokens, so that these need to be computed only once."""

from collections.abc import Iterator, Sequence
from itertools import takewhile

from loracomp.model.text import Text

ALIKE = 32
"""Prompts share their first tokens if at least this many are equal; for fewer, an extra forward pass costs more."""


def alike(one: Sequence[int], other: Sequence[int]) -> int:
    """Number of first tokens that are equal."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def runs_alike(texts: Sequence[Text]) -> Iterator[list[Text]]:
    """Cut sorted texts into runs; all texts of a run begin with the same ALIKE tokens, or the run is a single text."""
    run: list[Text] = []
    for text in texts:
        if run and alike(run[0].read, text.read) < ALIKE:
            yield run
            run = []
        run.append(text)
    yield run
