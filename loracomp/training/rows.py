"""Which rows are learnt from, and in what order: decided by the seed alone, before the first step."""

import hashlib
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from loracomp.catalogue import Example
from loracomp.errors import JobError, UsageError
from loracomp.registry.models import BaseModel
from loracomp.scoring import Question, encode_choices
from loracomp.training.config import TrainingConfig

# Batches are cut from this many batches' rows sorted by length: little padding, still random enough.
SORTED_TOGETHER = 8


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """A tokenised example and the place of its right choice, from 0."""

    question: Question
    answer: int
    content_hash: bytes

    @property
    def tokens(self) -> int:
        """Tokens of its longest sequence."""
        return max(len(row.tokens) for row in self.question.rows)


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows to learn from, and train rows kept aside to score on."""

    learnt: tuple[TrainingRow, ...]
    held_out: tuple[TrainingRow, ...]
    too_long: int
    """Rows left out because of max_tokens."""

    def digest(self) -> str:
        """Sha256 hex of the learnt rows' content hashes, in their order."""
        return hashlib.sha256(b"".join(row.content_hash for row in self.learnt)).hexdigest()


def choose_rows(examples: Iterable[Example], base: BaseModel, config: TrainingConfig) -> Rows:
    """Shuffle by seed, keep some for scoring, draw the rest up to max_rows; rows over max_tokens are left out.

    Raises UsageError if no row is left or an example has no choices.
    """
    shuffled = list(examples)
    random.Random(config.seed).shuffle(shuffled)  # noqa: S311  reproducible, not secret
    aside = min(config.held_out, len(shuffled) // 5)
    drawn = shuffled[aside:][: config.max_rows]
    held_out, learnt = (_tokenised(part, base, config.max_tokens) for part in (shuffled[:aside], drawn))
    if not learnt:
        raise UsageError(f"no row to learn from: {len(shuffled)} were read, none fits max_tokens = {config.max_tokens}")
    return Rows(tuple(learnt), tuple(held_out), aside + len(drawn) - len(held_out) - len(learnt))


def _tokenised(examples: Sequence[Example], base: BaseModel, max_tokens: int) -> list[TrainingRow]:
    rows = (_row(example, base, max_tokens) for example in examples)
    return [row for row in rows if row is not None]


def _row(example: Example, base: BaseModel, max_tokens: int) -> TrainingRow | None:
    if example.choices is None:
        raise UsageError(f"row {example.source_ref} has no choices: adapters are trained on choices (doc_to_choice)")
    try:
        question = encode_choices(
            base.tokenizer, example.prompt, example.choices, max_tokens, shared_prompt=base.shares_prompts
        )
    except JobError:
        return None
    return TrainingRow(question, example.answer_index, example.content_hash)


def training_order(rows: Sequence[TrainingRow], config: TrainingConfig) -> list[TrainingRow]:
    """The rows of all steps, one after another: epochs shuffled, like lengths together, whole batches only."""
    rng = random.Random(config.seed)  # noqa: S311
    size = min(config.batch_size, len(rows))
    total = max(round(config.epochs * len(rows)) // size, 1) * size
    stream: list[TrainingRow] = []
    while len(stream) < total:
        stream += rng.sample(rows, len(rows))
    batches: list[list[TrainingRow]] = []
    for start in range(0, total, size * SORTED_TOGETHER):
        together = sorted(stream[start : min(start + size * SORTED_TOGETHER, total)], key=lambda row: row.tokens)
        cut = [together[i : i + size] for i in range(0, len(together), size)]
        batches += rng.sample(cut, len(cut))
    return [row for batch in batches for row in batch]
