"""`loracomp task import-catalogue`."""

from pathlib import Path
from typing import Annotated

import typer

from loracomp.cli.common import AsJson, open_database, remark
from loracomp.cli.tasks import Limit, Seed, Splits, import_groups
from loracomp.registry.tasks import add_task
from loracomp_lab.catalogue import SPLITS, Entry, load_entry, read_examples


def import_catalogue(
    task: Annotated[
        str, typer.Argument(help="A catalogue entry (piqa, ...), or your own .yaml file in the same format.")
    ],
    data: Annotated[
        str | None, typer.Argument(help="Folder or hub id of its data set. Defaults to the entry's.")
    ] = None,
    *,
    split: Splits = None,
    limit: Limit = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Import a catalogue entry's data set, and add its task. If it is killed, run it again to continue."""
    entry = load_entry(task)
    warn_of_other_splits(entry, data)
    chosen = split or [each for each in SPLITS if each != "train" or entry.training_split]
    groups = [read_examples(entry, each, data) for each in chosen]
    with open_database() as connection:
        add_task(connection, entry.task, family=entry.family, description=entry.description)
        import_groups(connection, entry.task, groups, limit=limit, seed=seed, as_json=as_json)


def warn_of_other_splits(entry: Entry, data: str | None) -> None:
    """If rows are read from the hub, print the entry's note on which rows the shipped library was trained and measured
    on."""
    if entry.data_note and not Path(data or entry.dataset_path).expanduser().is_dir():
        remark(f"{entry.task}: {entry.data_note}")
