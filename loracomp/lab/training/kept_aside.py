"""Finds the train rows that an adapter was not trained on, so that it may be measured on them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from loracomp.lab.training.config import TrainingConfig
from loracomp.lab.training.rows import split_rows
from loracomp.registry.adapter_files import TRAINING
from loracomp.registry.examples import Example


def not_learnt(
    task: str, own: set[str], drawn: set[str], before: Iterable[str], seen_before: Sequence[str]
) -> list[str]:
    """Hashes in hex of the rows that an adapter for `task` was not trained on.

    `own` and `drawn` are the task's rows that were kept aside and trained on. `before` are the rows of the tasks
    `seen_before` that the adapter from which it started was not trained on.
    """
    left = set(before)
    # If the adapter that it started from was trained on this task too, it may have used rows kept aside here.
    unlearnt = own & left if task in seen_before else own
    return sorted(unlearnt | left - drawn)


def kept_aside(training: Mapping[str, Any], rows: Sequence[Example]) -> set[bytes]:
    """Hashes of the train rows that a training kept aside, from its record, or for older records from its settings.

    `rows` are all train rows of the task without leaks, in the data set's order.
    """
    if (known := training.get("kept_aside")) is not None:
        return {row.content_hash for row in rows} & set(map(bytes.fromhex, known))
    if "hyper_parameters" not in training:
        return set()
    return {row.content_hash for row in split_rows(rows, TrainingConfig(**training["hyper_parameters"]))[0]}


def complete_record(folder: Path, rows: Sequence[Example], left_out: int, start: Mapping[str, Any] | None) -> bool:
    """Add `kept_aside` to the training record that an older release wrote; returns whether the rows are known.

    `rows` are as for `kept_aside`; `left_out` is the number of rows left out as leaks; `start` is the record of the
    adapter that it started from, with the sha256 of its file. If the leaks or that adapter have changed since the
    training, the rows are not known, and the record is not changed.
    """
    path = folder / TRAINING
    record = json.loads(path.read_text(encoding="utf-8"))
    if "kept_aside" in record:
        return True
    lineage = record["started_from"]
    if record["leaks"]["rows_left_out"] != left_out or (lineage and (start or {}).get("sha256") != lineage["sha256"]):
        return False
    before = (start or {}).get("kept_aside")
    if before is None and lineage:
        return False
    own, drawn = (
        {row.content_hash.hex() for row in some}
        for some in split_rows(rows, TrainingConfig(**record["hyper_parameters"]))
    )
    seen_before = lineage["tasks_seen"] if lineage else ()
    record["kept_aside"] = not_learnt(record["task"], own, drawn, before or (), seen_before)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    unfinished.replace(path)
    return True
