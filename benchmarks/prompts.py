"""Measures with which templates and wordings of the phrasings an adapter works: the tables of docs/prompts.md.

    python -m benchmarks.prompts ../shared/data [--rows 60] [--tasks sst2,mnli]

For each template (with wordings drawn at random) and each wording (with templates drawn at random): accuracy of the
base model and of the task's own adapter, on train rows that training kept aside. Writes docs/prompts.jsonl, which holds
no text of a row, and fills the page.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from loracomp.lab.catalogue import Entry, Phrased, load_entry, phrasings_of, read_examples
from loracomp.lab.catalogue.leaks import find_leaks
from loracomp.lab.catalogue.phrasing import Phrasings, Template, Wording
from loracomp.lab.training.rows import split_rows, tokenised
from loracomp.lab.training.train import accuracies

from .evaluation.report import as_markdown, copy_tables
from .kept_rows import library_base, settings_of, with_adapter

ROOT = Path(__file__).parents[1]
TASKS = ("sst2", "mnli", "rte", "boolq", "qnli", "arc_easy", "openbookqa", "piqa", "copa", "winogrande")
RESULTS, PAGE = ROOT / "docs" / "prompts.jsonl", ROOT / "docs" / "prompts.md"
console = Console(stderr=True, highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rows", type=int, default=60, help="rows a template and a wording")
    parser.add_argument("--tasks", default=",".join(TASKS))
    options = parser.parse_args()
    tasks = options.tasks.split(",")
    kept = [line for line in read_results() if line["task"] not in tasks]
    for task in tasks:
        console.print(task)
        kept += measure(task, str(options.data / task), options.rows)
        RESULTS.write_text("".join(json.dumps(line) + "\n" for line in kept))
    fill_page()


def read_results() -> list[dict[str, Any]]:
    """The lines of RESULTS; none if the file does not exist."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.is_file() else []


def measure(task: str, folder: str, count: int) -> Iterator[dict[str, Any]]:
    """Measure a task; yields a line for each template and each wording that fits the task."""
    base, config, entry = library_base(), settings_of(task), load_entry(task)
    model = with_adapter(base, task)
    leaks = find_leaks(entry, folder).source_refs
    for kind, shown, held_out, phrasings in alternatives(entry):
        worded = entry.model_copy(update={"phrasings": phrasings})
        read = read_examples(worded, "train", folder, phrased=Phrased.TRAINED, seed=1, max_words=config.max_words)
        aside, _ = split_rows((row for row in read if row.source_ref not in leaks), config)
        rows = tokenised(aside[:count], base, config.max_tokens)
        with model.disable_adapter():
            alone = accuracies(model, rows)
        scores = {"base": alone["acc_token"], "adapter": accuracies(model, rows)["acc_token"]}
        yield {"task": task, "kind": kind, "shown": shown, "held_out": held_out, "n": len(rows), **scores}


def alternatives(entry: Entry) -> Iterator[tuple[str, str, bool, Phrasings]]:
    """Each template with all wordings, and each wording that fits the entry with all templates."""
    phrasings = phrasings_of(entry.task)
    assert phrasings is not None
    fitting = [each for each in phrasings.wordings if (each.choices and set(each.choices)) == _labels(entry)]
    for template in phrasings.templates:
        yield "template", template.text, template.held_out, _only([template], fitting)
    for wording in fitting if entry.labels else ():
        shown = f"{wording.ask} {' / '.join((wording.choices or {}).values())}"
        yield "wording", shown, wording.held_out, _only(phrasings.templates, [wording])


def _labels(entry: Entry) -> set[str] | None:
    return entry.labels and set(entry.labels)  # type: ignore[return-value]


def _only(templates: Any, wordings: list[Wording]) -> Phrasings:
    """Phrasings with only these templates and wordings, which may be drawn even if they are held out."""
    one = len(wordings) == 1
    free: list[Template] = [
        each.model_copy(update={"held_out": False}) for each in templates if len(templates) == 1 or not each.held_out
    ]
    named = [each.model_copy(update={"held_out": False}) for each in wordings if one or not each.held_out]
    return Phrasings(templates=tuple(free), wordings=tuple(named))


def fill_page() -> None:
    """Put the table of RESULTS into the page."""
    header = ["task", "template or wording", "", "base model", "own adapter", "n"]
    lines = [
        [
            line["task"],
            f"`{line['shown']}`".replace("\n", "⏎").replace("|", "\\|"),
            "held out" if line["held_out"] else "",
            f"{100 * line['base']:.0f} %",
            f"{100 * line['adapter']:.0f} %",
            str(line["n"]),
        ]
        for line in read_results()
    ]
    copy_tables(PAGE, {"phrasings": as_markdown([header, *lines])})


if __name__ == "__main__":
    main()
