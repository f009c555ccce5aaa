"""Accuracy on held-out train rows of prompts as they are and in the chat template, of base model and own adapter.

    python -m benchmarks.chat_template ../shared/data --rows 40

The rows are those that training kept aside, in the entries' own templates. Differences are in points, with the p value
of an exact McNemar test over all rows.
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import PeftModel
from scipy.stats import binomtest

from loracomp.lab.catalogue import load_entry
from loracomp.model.chat import render
from loracomp.model.loading import BaseModel
from loracomp.model.scoring import encode_choices, log_likelihoods, normalize
from loracomp.registry.examples import Example

from .kept_rows import chosen_tasks, kept_aside, library_base, with_adapter

BATCH = 8


@torch.inference_mode()
def right(base: BaseModel, model: PeftModel, rows: Sequence[Example], in_template: bool) -> list[bool]:
    """Whether the right choice of each row scores highest, by the token."""
    questions = [
        encode_choices(
            base.tokenizer,
            render(base.tokenizer, row.prompt) if in_template else row.prompt,
            row.choices or (),
            base.context_length,
            rendered=in_template,
        )
        for row in rows
    ]
    scores = [
        normalize(found, question, "tokens")
        for start in range(0, len(rows), BATCH)
        for found, question in zip(
            log_likelihoods(model, questions[start : start + BATCH]), questions[start : start + BATCH], strict=True
        )
    ]
    return [int(found.argmax()) == row.answer_index for found, row in zip(scores, rows, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rows", type=int, default=40, help="a task at most; 40")
    parser.add_argument("--tasks", help="Defaults to all that the library has an adapter for.")
    options = parser.parse_args()
    base = library_base()
    counts: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    print("| task | n | base | base in template | own adapter | own adapter in template |\n|---|---|---|---|---|---|")
    for task in chosen_tasks(options):
        rows = sorted(kept_aside(load_entry(task), options.data)[: options.rows], key=lambda row: len(row.prompt))
        model = with_adapter(base, task)
        with model.disable_adapter():
            of_base = [right(base, model, rows, each) for each in (False, True)]
        of_own = [right(base, model, rows, each) for each in (False, True)]
        model.unload()
        for who, (plain, templated) in (("base model", of_base), ("own adapters", of_own)):
            counts[who] += zip(plain, templated, strict=True)
        cells = " | ".join(f"{sum(each) / len(rows):.1%}" for each in (*of_base, *of_own))
        print(f"| {task} | {len(rows)} | {cells} |", flush=True)
    for who, pairs in counts.items():
        gained, lost = sum(b and not a for a, b in pairs), sum(a and not b for a, b in pairs)
        p = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
        difference = 100 * (gained - lost) / len(pairs)
        print(f"\n{who}: {difference:+.1f} points in the template (n {len(pairs)}, p {p:.2g})")


if __name__ == "__main__":
    main()
