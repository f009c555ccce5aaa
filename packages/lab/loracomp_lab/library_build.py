"""Builds a library: a folder with adapters that `loracomp train` wrote, and embedded examples of their tasks."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loracomp.model.encoder import Encoder
from loracomp.records import BaseModelDescription
from loracomp.registry import library_files as files
from loracomp.registry.adapter_files import TRAINING
from loracomp.registry.embeddings import progress_bar
from loracomp.registry.examples import Example
from loracomp.registry.library_files import BaseModelPart, EncoderPart, Manifest, TaskPart
from loracomp.registry.tasks import draw
from loracomp_lab.catalogue import Family, Phrased, data_note, load_entry, load_task, read_examples
from loracomp_lab.catalogue.leaks import find_leaks
from loracomp_lab.library_writing import tasks_with_examples, write_examples_file, write_manifest
from loracomp_lab.training.kept_aside import kept_aside

EXAMPLES_A_TASK = 300
PHRASED = 0.5
"""Share of the examples that are written in one of their task's phrasings, so that jobs in other wordings find them
too."""
MEASURED_A_TASK = 48
"""Number of further examples, which training kept aside; `lab.measuring` measures on them how much each adapter
helps."""
MEASURED_WORDS = 60
"""Maximum number of words of a text in the measured examples. The middle of longer texts is cut out, as in training, to
save time."""
CARD = "README.md"


def build_library(
    folder: Path,
    tasks: Sequence[str],
    base_model: BaseModelDescription,
    encoder: Encoder,
    *,
    data: str | None = None,
    limit: int = EXAMPLES_A_TASK,
    seed: int = 0,
) -> list[Path]:
    """Embed train examples of catalogue entries into a library's folder, and write its manifest and card.

    For each task, it embeds at most `limit` examples, drawn by `seed`, and MEASURED_A_TASK further examples that the
    task's adapter was not trained on. The files do not contain the examples' texts. Examples that leak a validation row
    (`lab.catalogue.leaks`) are left out. `data` is a folder with a folder of JSON lines for each task; None reads the
    hub. Other tasks of the library, and files that already have exactly these examples, are not changed. Returns the
    paths of the examples' files.
    """
    with progress_bar() as progress:
        written = [
            write_examples_file(folder, task, _examples(folder, task, data, limit, seed), encoder)
            for task in progress.track(tasks, description="embedding tasks")
        ]
    write_manifest(folder, _manifest(folder, base_model, encoder))
    (folder / CARD).write_text(library_card(folder), encoding="utf-8")
    return written


def _examples(folder: Path, task: str, data: str | None, limit: int, seed: int) -> list[Example]:
    rows = train_rows(task, data, seed)
    drawn = {row.source_ref: row for row in draw(rows, limit, seed)}
    aside = measured_examples(folder, task, rows)
    return [*drawn.values(), *(row for row in aside if row.source_ref not in drawn)]


def train_rows(task: str, data: str | None, seed: int = 0, max_words: int | None = None) -> list[Example]:
    """Return a task's train rows without leaks, in the wording of its examples. The rows of a family are always in
    phrasings."""
    found = load_task(task)
    phrased, rows = 1.0 if isinstance(found, Family) else PHRASED, []
    for entry in map(load_entry, found.entries):
        source = None if data is None else f"{data}/{entry.task}"
        leaks = find_leaks(entry, source).source_refs
        read = read_examples(entry, "train", source, phrased=phrased, seed=seed, max_words=max_words)
        rows += [row for row in read if row.source_ref not in leaks]
    return rows


def measured_examples(folder: Path, task: str, rows: Sequence[Example]) -> list[Example]:
    """Return MEASURED_A_TASK train rows of a task that its adapter was not trained on, in a random order."""
    aside = kept_aside(_record(files.adapter_folder(folder, task) / TRAINING), rows)
    return sorted((row for row in rows if row.content_hash in aside), key=lambda row: row.content_hash)[
        :MEASURED_A_TASK
    ]


def _manifest(folder: Path, base_model: BaseModelDescription, encoder: Encoder) -> Manifest:
    entries = {task: load_task(task) for task in tasks_with_examples(folder)}
    return Manifest(
        base_model=BaseModelPart.model_validate(base_model, from_attributes=True),
        encoder=EncoderPart.model_validate(encoder, from_attributes=True),
        tasks={task: TaskPart.model_validate(entry, from_attributes=True) for task, entry in entries.items()},
    )


def library_card(folder: Path) -> str:
    """Return the library's card in Markdown: each adapter's data, licence, training and scores, from its
    training.json."""
    manifest = files.read_manifest(folder)
    records = {task: _record(files.adapter_folder(folder, task) / TRAINING) for task in manifest.tasks}
    rows = [_card_row(task, record, manifest.tasks[task]) for task, record in records.items() if record]
    return "\n".join(
        [
            "# Library",
            "",
            f"LoRA adapters for {manifest.base_model.name}. For each task, the library also contains up to",
            f"{EXAMPLES_A_TASK} training examples, and {MEASURED_A_TASK} train rows that training kept aside,",
            "on which the adapters were measured. It stores examples and rows without their texts:",
            f"only their embeddings by {manifest.encoder.name}, their hashes and references to their origin.",
            "Rows whose text is also in a validation split, of the same task or of another one, were left out.",
            "Accuracies are on train rows that were kept aside from training; the answer is the choice with the "
            "highest summed log-likelihood (acc).",
            "The licences are the ones that are usually given for the data; nobody has verified them.",
            "",
            "| task | family | data | licence of the data | started from | rows seen | rank | base model | adapter "
            "| held-out phrasings: base model | adapter |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
            *rows,
            "",
            *_notes(records),
        ]
    )


def _notes(records: Mapping[str, dict[str, Any]]) -> list[str]:
    """Return the lines of the card on tasks whose rows do not come from the hub's splits."""
    origins = {task: record["data"].get("read_from") for task, record in records.items() if record}
    notes = [f"- {task}: {note}" for task, origin in origins.items() if (note := data_note(task, origin))]
    return (
        ["The rows of these tasks do not come from the splits that the catalogue names:", "", *notes, ""]
        if notes
        else []
    )


def _record(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return record


def _card_row(task: str, record: dict[str, Any], part: TaskPart) -> str:
    data, scores = record["data"], record["held_out"]
    dataset = " ".join(filter(None, [data["dataset_path"], data["dataset_name"]]))
    both = (scores, scores.get("phrased", {}).get(Phrased.HELD_OUT, {}))
    shown = [f"{each[who]['acc']:.1%}" if who in each else "-" for each in both for who in ("base", "adapter")]
    start, rank = (record.get("started_from") or {}).get("task", "-"), record["hyper_parameters"]["rank"]
    cells = [task, part.family, dataset, data["licence"], start, str(record["rows_seen"]), str(rank), *shown]
    return f"| {' | '.join(cells)} |"
