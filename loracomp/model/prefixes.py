"""Finds prompts that begin with the same tokens, so that these need to be computed only once."""

from collections.abc import Iterator, Sequence
from itertools import takewhile

from loracomp.model.cpu import ROW_TOKENS
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


def branches_of_a_row(texts: Sequence[Text], common: int) -> Iterator[list[Text]]:
    """Cut texts that have their first `common` tokens in common into parts of at most ROW_TOKENS other tokens.

    A part is read as one row, in which each token attends to all columns; a longer text is a part of its own.
    """
    part: list[Text] = []
    length = 0
    for text in texts:
        if part and length + text.width - common > ROW_TOKENS:
            yield part
            part, length = [], 0
        part.append(text)
        length += text.width - common
    yield part
