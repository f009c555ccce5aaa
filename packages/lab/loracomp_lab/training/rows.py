"""Chooses the rows to train on, their phrasings and their order. All of this depends only on the seed, and is done
before the first step."""

import hashlib
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from loracomp.errors import JobError, UsageError
from loracomp.model.loading import BaseModel
from loracomp.model.tokens import Question, encode_choices
from loracomp.registry.examples import Example
from loracomp_lab.catalogue import Phrased
from loracomp_lab.training.config import TrainingConfig

# Number of batches whose rows are sorted by length together, to save padding. The order stays random enough.
SORTED_TOGETHER = 8

Read: TypeAlias = Callable[[float | Phrased, int], Iterable[Example]]
"""Reads all rows, always in the same order; its arguments are `phrased` and `seed` of `catalogue.read_examples`."""


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """A tokenised example and the index of its right choice, from 0."""

    question: Question
    label: int
    digest: bytes
    """Sha256 that identifies the example: `Example.digest`."""

    @property
    def tokens(self) -> int:
        """Return the number of tokens in the longest sequence."""
        return max(len(row.tokens) for row in self.question.rows)


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows to train on, and the train rows that are kept aside for scoring."""

    epochs: tuple[tuple[TrainingRow, ...], ...]
    """The rows of each epoch; a row may have a different phrasing in each epoch."""
    held_out: Mapping[Phrased, tuple[TrainingRow, ...]]
    """The rows kept aside, in the entry's own template and, if it has phrasings, in trained and in held-out
    phrasings."""
    kept_aside: tuple[frozenset[bytes], ...]
    """Content hashes of all rows kept aside, for each data set, including rows longer than max_tokens."""
    drawn: frozenset[bytes]
    """Content hashes of the rows drawn for training."""
    too_long: int
    """Number of rows that were left out because they are longer than max_tokens, in the first epoch and among the rows
    kept aside."""

    def digest(self) -> str:
        """Return the sha256 (in hex) over the digests of the training rows, in their order."""
        return hashlib.sha256(b"".join(row.digest for rows in self.epochs for row in rows)).hexdigest()


def choose_rows(reads: Sequence[Read], base: BaseModel, config: TrainingConfig, *, phrasings: bool = False) -> Rows:
    """Shuffle the rows by the seed, keep some aside for scoring, and take up to max_rows of the others for training.

    Each data set (one of `reads`) is split as it would be alone. A row that is kept aside for one data set is therefore
    not trained on here either, even if another data set has the same row. All data sets together are scored on as many
    rows as a single one. Rows longer than max_tokens are left out. `phrasings` says whether the rows can be written in
    phrasings. Raises UsageError if no row is left or an example has no choices.
    """
    kinds = tuple(Phrased) if phrasings else (Phrased.OWN,)
    aside = {kind: [split_rows(read(kind, config.seed), config)[0] for read in reads] for kind in kinds}
    apart = {kind: [row for rows in found for row in rows][:: len(reads)] for kind, found in aside.items()}
    held_out = {kind: tuple(tokenised(examples, base, config.max_tokens)) for kind, examples in apart.items()}
    kept_aside = tuple(frozenset(example.content_hash for example in rows) for rows in aside[Phrased.OWN])
    epochs: list[tuple[TrainingRow, ...]] = []
    learnt: list[Example] = []
    while not epochs or (epochs[-1] and len(epochs) < config.passes(len(epochs[0]))):
        if phrasings or not epochs:
            phrased, seed = config.phrased_in(len(epochs)), config.seed + len(epochs)
            own = [row for read in reads for row in split_rows(read(phrased, seed), config)[1]]
            learnt = [row for row in own if not any(row.content_hash in hashes for hashes in kept_aside)]
            drawn = tuple(tokenised(learnt, base, config.max_tokens))
        epochs.append(drawn)
    if not epochs[-1]:
        raise UsageError(
            f"no row to train on: {len(learnt)} were drawn, and none of them fits into max_tokens = {config.max_tokens}"
        )
    fitting = len(epochs[0]) + len(held_out[Phrased.OWN])
    return Rows(
        tuple(epochs),
        held_out,
        kept_aside=kept_aside,
        drawn=frozenset(example.content_hash for example in learnt),
        too_long=len(learnt) + len(apart[Phrased.OWN]) - fitting,
    )


def split_rows(examples: Iterable[Example], config: TrainingConfig) -> tuple[list[Example], list[Example]]:
    """Split examples into rows kept aside and rows to train on; the phrasing does not change which rows these are.

    If a row occurs several times and one copy is kept aside, the other copies are not trained on.
    """
    shuffled = list(examples)
    random.Random(config.seed).shuffle(shuffled)  # noqa: S311  reproducible, not secret
    count = min(config.held_out, len(shuffled) // 5)
    aside = shuffled[:count]
    hashes = {example.content_hash for example in aside}
    return aside, [example for example in shuffled[count:] if example.content_hash not in hashes][: config.max_rows]


def tokenised(examples: Sequence[Example], base: BaseModel, max_tokens: int) -> list[TrainingRow]:
    """Return the examples as tokens, without the examples longer than `max_tokens`. Raises UsageError if one has no
    choices."""
    rows = (_row(example, base, max_tokens) for example in examples)
    return [row for row in rows if row is not None]


def _row(example: Example, base: BaseModel, max_tokens: int) -> TrainingRow | None:
    if example.choices is None:
        raise UsageError(
            f"row {example.source_ref} has no choices: adapters are trained on choices (column choices of a file, "
            "doc_to_choice of a catalogue entry); `loracomp train` can't learn free text"
        )
    try:
        question = encode_choices(
            base.tokenizer,
            example.prompt,
            example.choices,
            max_tokens,
            shared_prompt=base.shares_prompts,
            length_limits=base.length_limits,
        )
    except JobError:
        return None
    return TrainingRow(question, example.label_index, example.digest)


def training_order(epochs: Sequence[Sequence[TrainingRow]], config: TrainingConfig) -> list[TrainingRow]:
    """Return the rows of all steps in order. Each epoch is shuffled, rows of similar length are put together, and all
    batches are full."""
    rng = random.Random(config.seed)  # noqa: S311
    size = min(config.batch_size, len(epochs[0]))
    total = max(round(config.passes(len(epochs[0])) * len(epochs[0])) // size, 1) * size
    stream = [row for rows in epochs for row in rng.sample(rows, len(rows))]
    total = min(total, len(stream) // size * size)
    batches: list[list[TrainingRow]] = []
    for start in range(0, total, size * SORTED_TOGETHER):
        together = sorted(stream[start : min(start + size * SORTED_TOGETHER, total)], key=lambda row: row.tokens)
        cut = [together[i : i + size] for i in range(0, len(together), size)]
        batches += rng.sample(cut, len(cut))
    return [row for batch in batches for row in batch]
