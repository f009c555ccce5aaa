"""Accuracy of the base model and of each task's adapter, if a choice's log-likelihood is divided by different numbers.

    python -m benchmarks.choice_scores ../shared/data --tasks openbookqa,copa

The rows are those that training kept aside. The table is that of docs/evaluation.md.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor

from loracomp.lab.catalogue import load_entry
from loracomp.lab.training.rows import TrainingRow, tokenised
from loracomp.model.scoring import Question, log_likelihoods

from .kept_rows import chosen_tasks, kept_aside, library_base, settings_of, with_adapter

RULES: dict[str, Callable[[Question], Tensor]] = {
    "sum": lambda question: torch.ones(len(question.token_counts)),
    "a root of tokens": lambda question: torch.tensor(question.token_counts).sqrt(),
    "a token": lambda question: torch.tensor(question.token_counts),
    "a character": lambda question: torch.tensor(question.character_counts),
}
BATCH = 8


@torch.inference_mode()
def shares(model: PeftModel, rows: Sequence[TrainingRow]) -> dict[str, float]:
    """Share of rows whose right choice scores highest, by rule."""
    right = dict.fromkeys(RULES, 0)
    ordered = sorted(rows, key=lambda row: row.tokens)
    for start in range(0, len(ordered), BATCH):
        some = ordered[start : start + BATCH]
        for row, scores in zip(some, log_likelihoods(model, [row.question for row in some]), strict=True):
            for rule, divisor in RULES.items():
                right[rule] += int((scores / divisor(row.question)).argmax()) == row.answer
    return {rule: count / len(rows) for rule, count in right.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--tasks", help="Defaults to all that the library has an adapter for.")
    options = parser.parse_args()
    base = library_base()
    print(f"| task | n | {' | '.join(RULES)} |\n|{'---|' * (len(RULES) + 2)}")
    for task in chosen_tasks(options):
        rows = tokenised(kept_aside(load_entry(task), options.data), base, settings_of(task).max_tokens)
        model = with_adapter(base, task)
        with model.disable_adapter():
            before = shares(model, rows)
        after = shares(model, rows)
        model.unload()
        cells = [f"{before[rule]:.1%} to {after[rule]:.1%}" for rule in RULES]
        print(f"| {task} | {len(rows)} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
