"""Which train rows an adapter has not learnt from, so that it may be measured on them."""

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
    """Hashes of the rows that an adapter for `task` has not learnt from, in hex.

    `own`, `drawn`: rows of the task kept aside and learnt; `before`: rows of the tasks `seen_before` that the adapter
    which it started from had not learnt from.
    """
    left = set(before)
    # A start that has seen the task may have drawn other rows of it.
    unlearnt = own & left if task in seen_before else own
    return sorted(unlearnt | left - drawn)


def kept_aside(training: Mapping[str, Any], rows: Sequence[Example]) -> set[bytes]:
    """Hashes of the train rows that training kept aside, by its record; for older ones by its settings.

    `rows` are all train rows of the task that leak nothing, in the data set's order.
    """
    if (known := training.get("kept_aside")) is not None:
        return {row.content_hash for row in rows} & set(map(bytes.fromhex, known))
    if "hyper_parameters" not in training:
        return set()
    return {row.content_hash for row in split_rows(rows, TrainingConfig(**training["hyper_parameters"]))[0]}


def complete_record(folder: Path, rows: Sequence[Example], left_out: int, start: Mapping[str, Any] | None) -> bool:
    """Write `kept_aside` into the training record of an adapter that an older release trained; whether it is known.

    `rows`: as for `kept_aside`; `left_out`: how many were left out for leaking; `start`: the record of the adapter that
    it started from, with the sha256 of its file. Where other rows leak today than at the training, or the start is
    another one today, the rows can't be told, and the record stays as it is.
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
