"""Accuracy of the base model and of each task's adapter, if a choice's log-likelihood is divided by different numbers.

    python -m benchmarks.choice_scores ../shared/data --tasks openbookqa,copa

The rows are those that training kept aside. The table is that of docs/evaluation.md.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor

from loracomp.config import load_settings
from loracomp.lab.catalogue import load_entry, read_examples
from loracomp.lab.catalogue.leaks import find_leaks
from loracomp.lab.training.config import TrainingConfig
from loracomp.lab.training.rows import TrainingRow, split_rows, tokenised
from loracomp.model.loading import load_base_model
from loracomp.model.scoring import Question, log_likelihoods
from loracomp.registry.library_files import PACKAGED, adapter_folder, read_manifest

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
    manifest = read_manifest(PACKAGED)
    base = load_base_model(manifest.base_model.source, cache_dir=load_settings().home)
    print(f"| task | n | {' | '.join(RULES)} |\n|{'---|' * (len(RULES) + 2)}")
    for task in options.tasks.split(",") if options.tasks else sorted(manifest.tasks):
        folder = adapter_folder(PACKAGED, task)
        if not (folder / "training.json").is_file():
            continue
        record = json.loads((folder / "training.json").read_text())
        entry, data = load_entry(task), str(options.data / task)
        leaks = find_leaks(entry, data).source_refs
        clean = [row for row in read_examples(entry, "train", data) if row.source_ref not in leaks]
        config = TrainingConfig(**record["hyper_parameters"])
        rows = tokenised(split_rows(clean, config)[0], base, config.max_tokens)
        model = PeftModel.from_pretrained(base.model, str(folder)).eval()
        with model.disable_adapter():
            before = shares(model, rows)
        after = shares(model, rows)
        model.unload()
        cells = [f"{before[rule]:.1%} to {after[rule]:.1%}" for rule in RULES]
        print(f"| {task} | {len(rows)} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
